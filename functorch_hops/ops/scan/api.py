"""``scan``: arguments, plain eager, capture; and its entry for the loops that are scans."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from torch import Tensor

from ... import _torch, pytree
from ...calls.leaf import one_node
from ...calls.notes import note_body
from ...calls.numbers import numbers_as_tensors
from ...calls.output import OutputSpec
from ...calls.recording import recorded_as_bodies_say, untracked_under_no_grad
from ...calls.spelling import spelled
from ...calls.trace_cache import as_graph
from ...calls.validate import as_flag, as_int, check_callable, check_tensor_leaves, kind_of, order_of
from ...errors import ArgumentValueError, ErrorContext, message
from ...ir.meta import TensorMeta
from ...trace.history import Carried, Part, Source
from ..checkpoint.api import checkpointed_plainly
from ..effect.marking import begin_loop, in_loop
from ..loops.steps import PlainCarry, elements, stack_outputs
from ..loops.weak_carry import InitialCarry, Weak, capture_step, converted, kinds_of, pair_of, step_kinds
from ..mode import is_capturing, is_stepwise
from .remat import as_remat, run_scan_graph, segment_length

__all__ = ["run_scan", "scan", "trip_count"]


@one_node
@spelled(
    combine_fn="pass it by position: fh.scan(f, init, xs)",
    dim="the loop is over dimension 0: move it there with xs.movedim(dim, 0)",
    axis="the loop is over dimension 0: move it there with xs.movedim(axis, 0)",
)
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
        init: the initial carry, any tree of tensors and Python numbers. A number becomes a 0-d tensor of the dtype that
            ``f`` returns for it, ``torch.result_type(number, returned)``; plain eager's first step sees it in its own.
        xs: a tree of tensors, all of the same size T at dimension 0, or None.
        length: T; needed where ``xs`` has no leaf.
        reverse: go from the last element to the first; ys stay aligned with xs.
        unroll: how many steps a captured loop takes per iteration, if T is known then. It changes speed, never results.
        remat: what reverse mode computes again. None: what a minimum cut finds not worth storing, and no matrix
            product. ``"step"``: the whole step, from its carry and x. A number K: segments of T / K steps each (the
            last one may be shorter), from the carries between them; ``"sqrt"``: as many segments as steps in one. A
            program exported for any T recomputes by steps instead of segments.

    Returns:
        The final carry, and the ys stacked at dimension 0 (T at front). A Python number that ``f`` returns is a 0-d
        tensor; a leaf of y that is neither tensor nor number comes back once.

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
    unroll = as_int("scan", "unroll", unroll, at_least=1, is_option=True)
    remat = as_remat(remat)
    leaves, xs_spec = check_tensor_leaves("scan", "xs", numbers_as_tensors(xs))
    steps = trip_count("scan", leaves, xs_spec, length)
    start = InitialCarry.of("scan", "init", init)
    carry, ys = run_scan(ErrorContext("scan", "f"), f, start, leaves, xs_spec, steps, reverse, unroll, remat)
    return start.check_range("scan", "init", carry), ys


def run_scan(
    context: ErrorContext,
    f: Callable[..., Any],
    init: InitialCarry,
    leaves: list[Tensor],
    xs_spec: pytree.Spec,
    length: Any,
    reverse: bool = False,
    unroll: int = 1,
    remat: Any = None,
) -> tuple[Any, Any]:
    """``scan`` of checked arguments, for the loops that are scans: ``context`` is the one that the user wrote."""
    remat = None if is_stepwise() else remat
    is_plain = not is_capturing() and (remat is None or _torch.top_interpreter() is None)
    if is_plain and length > 0:
        return _plain_scan(context, f, init, leaves, xs_spec, length, reverse, remat)
    operands, static = (init.tree, leaves), (context, init.weak, xs_spec, length, reverse, unroll, remat)
    carry_and_ys: tuple[Any, Any] = as_graph("scan", _captured_scan, (f,), operands, *static, observed=True)
    return carry_and_ys


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
                remedy=f"{order_of(operation)}; where there is no xs, pass length=",
            )
            raise ArgumentValueError(text)
        return length
    expected = length
    for i, x in enumerate(leaves):
        if x.dim() == 0 or (expected is not None and x.shape[0] != expected):
            _refuse_sizes(operation, pytree.leaf_paths(spec, "xs"), i, x, expected)
        expected = x.shape[0]
        if _torch.is_distributed_tensor(x) and any(p.is_shard(0) for p in x.placements):  # type: ignore[attr-defined]
            _refuse_shards(operation, pytree.leaf_paths(spec, "xs")[i], x)
    return expected


def _refuse_shards(operation: str, path: str, x: Any) -> NoReturn:
    from torch.distributed.tensor import Replicate

    placements = tuple(Replicate() if p.is_shard(0) else p for p in x.placements)
    text = message(
        operation,
        "a DTensor is sharded on the dimension that is looped over",
        path=path,
        expected="it whole on each rank, or sharded on other dimensions",
        got=x.placements,
        remedy=f"x.redistribute(placements={placements}); or fh.sharded_scan over x.to_local()",
    )
    raise ArgumentValueError(text)


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
        remedy="close over what is the same in all steps",
    )
    raise ArgumentValueError(text)


def _plain_scan(
    context: ErrorContext,
    f: Callable[..., Any],
    init: InitialCarry,
    leaves: list[Tensor],
    xs_spec: pytree.Spec,
    length: int,
    reverse: bool,
    remat: Any,
) -> tuple[Any, Any]:
    carries = PlainCarry(context, init, leaves, length)

    def run(carry: Any, xs: Iterable[Any]) -> tuple[Any, list[Any]]:
        ys = []
        try:
            for x in xs:
                result = f(carry, x)
                returned, y = result if type(result) is tuple and len(result) == 2 else pair_of(result)
                carry = carries.follow(returned)
                ys.append(y)
        except Exception as error:
            note_body(error, context.operation, f, (), step=carries.steps)
            raise
        return carry, ys

    xs = elements(leaves, xs_spec, length, reverse)
    if remat is None:
        carry, ys = run(init.tree, xs)
    else:
        carry, ys = init.tree, []
        size = segment_length(remat, length)
        while segment := list(itertools.islice(xs, size)):
            carry, segment_ys = checkpointed_plainly(run, (carry, segment), {})
            ys += segment_ys
    first = carries.settled_at
    if not carries.is_settled:
        of_carry, of_output = step_kinds(context, f, init, [x[0] for x in leaves], xs_spec)
        carry, ys = converted(carry, of_carry), [converted(y, of_output) for y in ys]
    elif first:
        of_output = tuple(kinds_of(OutputSpec.of_body(ys[first])[1]))
        ys[:first] = [converted(y, of_output) for y in ys[:first]]
    if reverse:
        ys.reverse()
    stacked = stack_outputs(ys, context)
    made = [carry]
    del carry, ys
    return carries.own(made), stacked


def _captured_scan(
    functions: Sequence[Callable[..., Any]],
    operands: tuple[Any, list[Tensor]],
    context: ErrorContext,
    weak: Weak,
    xs_spec: pytree.Spec,
    length: Any,
    reverse: bool,
    unroll: int,
    remat: Any,
) -> tuple[Any, Any]:
    (f,), (init, leaves) = functions, operands
    slices = [TensorMeta(tuple(x.shape[1:]), x.dtype, x.device) for x in leaves]
    given, initial = OutputSpec.flatten(init)
    sources: list[Source] = [*(Carried(x, i) for i, x in enumerate(given)), *map(Part, leaves)]
    try:
        carry, step = capture_step(context, f, initial, weak, sources, slices, xs_spec)
    except Exception as error:
        note_body(error, context.operation, f, ())
        raise
    carry_leaves = pytree.flatten(converted(init, kinds_of(carry)))[0]
    body = step.body
    if body.holds_effects:
        body = in_loop(body, begin_loop(context.operation))
    n = len(carry_leaves)
    with recorded_as_bodies_say(body, n_returned=n):
        outs = run_scan_graph(body, length, carry_leaves, leaves, step.lifted, reverse, unroll, remat)
    return carry.unflatten(outs[:n]), step.output.unflatten(untracked_under_no_grad(outs[n:]))
