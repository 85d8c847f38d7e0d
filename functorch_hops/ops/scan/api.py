"""``scan``: arguments, plain eager, capture; and its entry for the loops that are scans."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from torch import Tensor

from ... import _torch, pytree
from ...calls.output import OutputSpec, number_as_tensor, numbers_as_tensors
from ...calls.trace_cache import as_graph
from ...calls.validate import as_flag, as_int, check_callable, check_carry, check_tensor_leaves, kind_of
from ...errors import ArgumentValueError, ErrorContext, TreeMismatchError, message
from ...ir.meta import TensorMeta
from ...trace.history import Carried, Part, Source
from ...trace.speculate import speculate_subgraph
from ..checkpoint.api import checkpointed_plainly
from ..loops.steps import carry_check, elements, stack_outputs
from ..mode import is_capturing
from .remat import as_remat, run_scan_graph, segment_length

__all__ = ["run_scan", "scan", "trip_count"]


def scan(
    f: Callable[[Any, Any], tuple[Any, Any]],
    init: Any,
    xs: Any = None,
    length: int | None = None,
    *,
    reverse: bool = False,
    unroll: int = 1,
    remat: Any = None,
) -> tuple[Any, Any]:
    """Loop over the leading dimension of ``xs`` while carrying a state.

    ``scan : ((c, a) -> (c, b), c, [a]) -> (c, [b])``. Equivalent to::

        def scan(f, init, xs=None, length=None, *, reverse=False):
            carry, ys = init, []
            for x in reversed(xs) if reverse else xs:  # xs = [None] * length if it is None
                carry, y = f(carry, x)
                ys.append(y)
            return carry, stack(reversed(ys) if reverse else ys)

    Arguments:
        f: one step; it may close over anything. The carry that it returns must be like the one that it gets, in tree,
            shapes, dtypes and devices.
        init: the initial carry, any tree of tensors; Python numbers become 0-d tensors.
        xs: a tree of tensors, all of the same size T at dimension 0, or None.
        length: T; needed where ``xs`` has no leaf.
        reverse: go from the last element to the first; ys stay aligned with xs.
        unroll: how many steps a captured loop takes per iteration, if T is known then. It changes speed, never results.
        remat: what reverse mode computes again. None: what a minimum cut finds not worth storing, and no matrix
            product. ``"step"``: the whole step, from its carry and x. A number K: segments of T / K steps each (the
            last one may be shorter), from the carries between them; ``"sqrt"``: as many segments as steps in one. A
            program exported for any T recomputes by steps instead of segments.

    Returns:
        The final carry, and the ys stacked at dimension 0 (T at front). A leaf of y that is no tensor comes back once.

    Raises:
        TreeMismatchError: the carry changes its tree, or ``f`` returns no pair.
        MetadataMismatchError: the carry changes shape, dtype or device.
        ArgumentTypeError, ArgumentValueError: ``f`` is not callable, lengths disagree, ``unroll < 1``, ``remat`` is
            none of the above.

    Cost: T calls of the body. Reverse mode stores, per step, the fewest bytes from which the body's derivative follows
    without another matrix product; closed-over tensors are stored once. With ``remat`` it calls the body T times more,
    and stores T carries (``"step"``), or K carries and the residuals of T / K steps. A captured body that
    draws random numbers stores them, whatever ``remat`` is, and is computed again by steps even if segments are asked
    for. A captured scan is one node whatever T is.

    Source: ``jax.lax.scan``; asked for in pytorch/pytorch 50688. ``remat``: Griewank and Walther 2000; asked for in
    jax-ml/jax 2139 and 3186.

    >>> import torch, functorch_hops as fh
    >>> fh.scan(lambda c, x: (c + x, c * x), torch.tensor(0.0), torch.arange(4.0))
    (tensor(6.), tensor([0., 0., 2., 9.]))
    """
    check_callable("scan", "f", f)
    reverse = as_flag("scan", "reverse", reverse)
    unroll = as_int("scan", "unroll", unroll, at_least=1)
    remat = as_remat(remat)
    leaves, xs_spec = check_tensor_leaves("scan", "xs", numbers_as_tensors(xs))
    steps = trip_count("scan", leaves, xs_spec, length)
    init = numbers_as_tensors(init)
    check_tensor_leaves("scan", "init", init)
    return run_scan(ErrorContext("scan", "f"), f, init, leaves, xs_spec, steps, reverse, unroll, remat)


def run_scan(
    context: ErrorContext,
    f: Callable[..., Any],
    init: Any,
    leaves: list[Tensor],
    xs_spec: pytree.Spec,
    length: Any,
    reverse: bool = False,
    unroll: int = 1,
    remat: Any = None,
) -> tuple[Any, Any]:
    """``scan`` of checked arguments, for the loops that are scans: ``context`` names the one that was called."""
    is_plain = not is_capturing() and (remat is None or _torch.top_interpreter() is None)
    if is_plain and length > 0:
        return _plain_scan(context, f, init, leaves, xs_spec, length, reverse, remat)
    return as_graph("scan", _captured_scan, (f,), (init, leaves), context, xs_spec, length, reverse, unroll, remat)


def trip_count(operation: str, leaves: list[Tensor], spec: pytree.Spec, length: Any = None) -> Any:
    """How many elements ``xs`` has, which must agree with ``length``."""
    if length is not None:
        length = as_int(operation, "length", length, at_least=0)
    if not leaves:
        if length is None:
            text = message(
                operation,
                "the number of steps is unknown",
                parameter="length",
                expected="an int, or a tensor in xs",
                got="neither",
            )
            raise ArgumentValueError(text)
        return length
    expected = length
    for i, x in enumerate(leaves):
        if x.dim() == 0 or (expected is not None and x.shape[0] != expected):
            _refuse_sizes(operation, pytree.leaf_paths(spec, "xs"), i, x, expected)
        expected = x.shape[0]
    return expected


def _refuse_sizes(operation: str, paths: list[str], i: int, x: Tensor, expected: Any) -> NoReturn:
    if x.dim() == 0:
        text = message(
            operation,
            "a leaf has no dimension to loop over",
            path=paths[i],
            expected="at least one dimension",
            got=kind_of(x),
            remedy="pass a tensor for each leaf, of which each step gets a slice; a list of numbers is no tensor",
        )
        raise ArgumentValueError(text)
    given = "length" if i == 0 else paths[0]
    text = message(
        operation,
        "lengths disagree",
        path=paths[i],
        expected=f"{expected} at dimension 0, as in {given}",
        got=f"{x.shape[0]}, in {kind_of(x)}",
    )
    raise ArgumentValueError(text)


def _plain_scan(
    context: ErrorContext,
    f: Callable[..., Any],
    init: Any,
    leaves: list[Tensor],
    xs_spec: pytree.Spec,
    length: int,
    reverse: bool,
    remat: Any,
) -> tuple[Any, Any]:
    next_carry = carry_check(context, init)

    def run(carry: Any, xs: Iterable[Any]) -> tuple[Any, list[Any]]:
        ys = []
        for x in xs:
            result = f(carry, x)
            returned, y = result if type(result) is tuple and len(result) == 2 else _carry_and_output(result)
            carry = next_carry(returned)
            ys.append(y)
        return carry, ys

    xs = elements(leaves, xs_spec, length, reverse)
    if remat is None:
        carry, ys = run(init, xs)
    else:
        carry, ys = init, []
        size = segment_length(remat, length)
        while segment := list(itertools.islice(xs, size)):
            carry, segment_ys = checkpointed_plainly(run, (carry, segment), {})
            ys += segment_ys
    if reverse:
        ys.reverse()
    return carry, stack_outputs(ys, context)


def _carry_and_output(result: Any) -> tuple[Any, Any]:
    if not isinstance(result, tuple) or len(result) != 2:
        kind = f"a tuple of {len(result)}" if isinstance(result, tuple) else kind_of(result)
        raise TreeMismatchError(
            message(
                "scan",
                "the body returns no pair",
                parameter="f",
                expected="a pair (carry, y)",
                got=kind,
                remedy="return (carry, None) where there is no y",
            )
        )
    return result


def _captured_scan(
    functions: Sequence[Callable[..., Any]],
    operands: tuple[Any, list[Tensor]],
    context: ErrorContext,
    xs_spec: pytree.Spec,
    length: Any,
    reverse: bool,
    unroll: int,
    remat: Any,
) -> tuple[Any, Any]:
    (f,), (init, leaves) = functions, operands
    carry_leaves, carry = OutputSpec.flatten(init)
    slices = [TensorMeta(tuple(x.shape[1:]), x.dtype, x.device) for x in leaves]
    inputs = [*carry.metas, *slices]
    ys: list[OutputSpec] = []

    def run(*flat: Tensor) -> list[Tensor]:
        state = carry.unflatten(flat[: len(carry_leaves)])
        x = pytree.unflatten(xs_spec, flat[len(carry_leaves) :])
        returned, y = _carry_and_output(f(state, x))
        carry_out, returned_spec = OutputSpec.flatten(_as_carry(returned))
        check_carry(context, carry, returned_spec)
        y_out, y_spec = OutputSpec.flatten(y)
        ys.append(y_spec)
        return [*carry_out, *y_out]

    sources: list[Source] = [*(Carried(x, i) for i, x in enumerate(carry_leaves)), *map(Part, leaves)]
    body, lifted = speculate_subgraph(
        run, inputs, operation=context.operation, parameter=context.parameter, sources=sources
    )
    outs = run_scan_graph(body, length, carry_leaves, leaves, lifted, reverse, unroll, remat)
    return carry.unflatten(outs[: len(carry_leaves)]), ys[-1].unflatten(outs[len(carry_leaves) :])


def _as_carry(tree: Any) -> Any:
    return pytree.map(number_as_tensor, tree)
