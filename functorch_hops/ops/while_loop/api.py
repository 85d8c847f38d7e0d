"""``while_loop``, and ``fori_loop``, which is a scan where its bounds are Python ints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import _torch, pytree
from ...capture.output import OutputSpec, number_as_tensor, numbers_as_tensors
from ...capture.passes.forwarding import forward_call
from ...capture.signature import merge_lifted
from ...capture.speculate import speculate_subgraph
from ...capture.validate import check_callable, check_carry, check_tensor_leaves
from ...errors import ArgumentTypeError, ArgumentValueError, InfiniteLoopError, message
from ..mode import is_capturing
from ..scan.api import check_unroll, scan
from ..scan.steps import carry_check

__all__ = ["fori_loop", "while_loop"]


def while_loop(
    cond_fn: Callable[[Any], Any],
    body_fn: Callable[[Any], Any],
    init_val: Any,
    /,
    *,
    max_steps: int | None = None,
    checkpoints: int | None = None,
) -> Any:
    """Loop while a condition holds. Differentiable in forward and reverse mode, without a bound on the trip count.

    ``while_loop : ((c -> bool), (c -> c), c) -> c``. Equivalent to::

        def while_loop(cond_fn, body_fn, init_val):
            value = init_val
            while cond_fn(value):
                value = body_fn(value)
            return value

    Arguments:
        cond_fn: the condition, a function of the carry to a bool or a one-element tensor (non-zero is true).
        body_fn: one step, from the carry to a carry of the same tree, shapes, dtypes and devices.
        init_val: the initial carry, any tree of tensors; Python numbers become 0-d tensors.
        max_steps: stop after so many iterations, silently; 0 is allowed.
        checkpoints: how many carries reverse mode keeps; comes later.

    Under ``vmap`` with a batched condition the loop runs until every lane is done; a finished lane keeps its value and
    is never poisoned by what the others still compute.

    Raises:
        TreeMismatchError, MetadataMismatchError: the carry changes.
        ArgumentTypeError: a function is not callable, the condition has several elements.
        InfiniteLoopError: a captured condition is constantly true and ``max_steps`` is None.

    Cost: one call of the condition and the body per iteration. Reverse mode stores, per iteration, what the body's
    derivative reads.

    Source: ``jax.lax.while_loop``; reverse mode as asked for in jax-ml/jax 2469 and 13062.

    >>> import torch, functorch_hops as fh
    >>> fh.while_loop(lambda x: x < 100, lambda x: x * 3, torch.tensor(1.0))
    tensor(243.)
    """
    check_callable("while_loop", "cond_fn", cond_fn)
    check_callable("while_loop", "body_fn", body_fn)
    _check_count("max_steps", max_steps, least=0)
    _check_count("checkpoints", checkpoints, least=1)
    init = numbers_as_tensors(init_val)
    check_tensor_leaves("while_loop", "init_val", init)
    if is_capturing() or checkpoints is not None:
        return _captured(cond_fn, body_fn, init, max_steps, checkpoints)
    return _plain(cond_fn, body_fn, init, max_steps)


def fori_loop(lower: Any, upper: Any, body_fn: Callable[[Any, Any], Any], init_val: Any, /, *, unroll: int = 1) -> Any:
    """Loop over a range of integers.

    ``fori_loop : (int, int, ((int, c) -> c), c) -> c``. Equivalent to::

        def fori_loop(lower, upper, body_fn, init_val):
            value = init_val
            for i in range(lower, upper):
                value = body_fn(i, value)  # i is a 0-d int64 tensor
            return value

    Arguments:
        lower, upper: Python ints or one-element integer tensors.
        body_fn: one step, from the index and the carry to the next carry.
        init_val: the initial carry, any tree of tensors; Python numbers become 0-d tensors.
        unroll: how many steps a captured loop takes per iteration; more than 1 needs Python bounds.

    Raises:
        ArgumentTypeError: a bound is no integer, ``body_fn`` is not callable.
        ArgumentValueError: ``unroll < 1``, or ``unroll > 1`` with tensor bounds.
        TreeMismatchError, MetadataMismatchError: the carry changes.

    Cost: as :func:`scan` with Python bounds, as :func:`while_loop` with tensor bounds.

    Source: ``jax.lax.fori_loop``; asked for in pytorch/pytorch 166516.

    >>> import torch, functorch_hops as fh
    >>> fh.fori_loop(0, 5, lambda i, total: total + i, torch.tensor(0))
    tensor(10)
    """
    check_callable("fori_loop", "body_fn", body_fn)
    check_unroll("fori_loop", unroll)
    bounds = [_bound("lower", lower), _bound("upper", upper)]
    init = numbers_as_tensors(init_val)
    check_tensor_leaves("fori_loop", "init_val", init)
    if unroll > 1 and any(isinstance(b, Tensor) for b in bounds):
        raise ArgumentValueError(
            message("fori_loop", "tensor bounds can't be unrolled", parameter="unroll", expected="Python bounds")
        )
    if any(isinstance(b, Tensor) for b in bounds):
        return _tensor_bounds(bounds[0], bounds[1], body_fn, init)
    if not is_capturing():
        next_carry, value = carry_check("fori_loop", "body_fn", init), init
        for i in range(bounds[0], bounds[1]):
            value = next_carry(body_fn(torch.tensor(i), value))
        return value
    if bounds[1] <= bounds[0]:
        return init
    indices = torch.arange(bounds[0], bounds[1])
    step = _as_scan_body(body_fn)
    return scan(step, init, indices, unroll=unroll)[0]


def _as_scan_body(body_fn: Callable[[Any, Any], Any]) -> Callable[[Any, Any], tuple[Any, None]]:
    return lambda value, i: (body_fn(i, value), None)


def _bound(parameter: str, bound: Any) -> Any:
    if isinstance(bound, Tensor):
        is_integer = not (bound.dtype.is_floating_point or bound.dtype.is_complex or bound.dtype == torch.bool)
        if bound.numel() == 1 and is_integer:
            return bound.reshape(()).to(torch.int64)
        got = f"{bound.dtype} of shape {tuple(bound.shape)}"
    elif isinstance(bound, (int, torch.SymInt)) and not isinstance(bound, bool):
        return bound
    else:
        got = f"{type(bound).__name__} {bound!r}"
    raise ArgumentTypeError(
        message(
            "fori_loop",
            "not an integer",
            parameter=parameter,
            expected="an int or a one-element integer tensor",
            got=got,
        )
    )


def _tensor_bounds(lower: Any, upper: Any, body_fn: Callable[[Any, Any], Any], init: Any) -> Any:
    device = next(b.device for b in (lower, upper) if isinstance(b, Tensor))
    first, last = (b if isinstance(b, Tensor) else torch.full((), b, device=device) for b in (lower, upper))
    first = first + torch.zeros_like(last)  # batched if either bound is
    _, value = while_loop(
        lambda state: state[0] < last,
        lambda state: (state[0] + 1, body_fn(state[0], state[1])),
        (first, init),
    )
    return value


def _check_count(parameter: str, value: Any, least: int) -> None:
    if value is None:
        return
    expected = f"an int >= {least}"
    if not isinstance(value, int) or isinstance(value, bool):
        got = f"{type(value).__name__} {value!r}"
        raise ArgumentTypeError(message("while_loop", "not an int", parameter=parameter, expected=expected, got=got))
    if value < least:
        raise ArgumentValueError(
            message("while_loop", "out of range", parameter=parameter, expected=expected, got=value)
        )


def _plain(cond_fn: Callable[..., Any], body_fn: Callable[..., Any], init: Any, max_steps: int | None) -> Any:
    next_carry, value, steps = carry_check("while_loop", "body_fn", init), init, 0
    while max_steps is None or steps < max_steps:
        pred = cond_fn(value)
        if isinstance(pred, Tensor):
            _check_one_element(pred)
            if _torch.is_batched(pred):
                return _captured(cond_fn, body_fn, value, None if max_steps is None else max_steps - steps, None)
            pred = _torch.read_number(pred)
        else:
            _check_predicate(pred)
        if not pred:
            break
        value = next_carry(body_fn(value))
        steps += 1
    return value


def _check_one_element(pred: Tensor) -> None:
    if pred.numel() != 1:
        raise ArgumentTypeError(
            message(
                "while_loop",
                "not a single value",
                parameter="cond_fn",
                expected="a bool or a tensor of one element",
                got=f"shape {tuple(pred.shape)}",
                remedy="reduce it with .any() or .all(), or vmap the loop",
            )
        )


def _check_predicate(pred: Any) -> None:
    if not isinstance(pred, (bool, int, float, complex, torch.SymBool, torch.SymInt)):
        got = f"{type(pred).__name__} {pred!r}"
        raise ArgumentTypeError(
            message("while_loop", "neither a number nor a tensor", parameter="cond_fn", expected="a bool", got=got)
        )


def _captured(
    cond_fn: Callable[..., Any],
    body_fn: Callable[..., Any],
    init: Any,
    max_steps: int | None,
    checkpoints: int | None,
) -> Any:
    """The loop as one node; a bound on the steps is a counter in its carry."""
    from . import while_loop_op
    from .eager import while_static
    from .forwarding import while_loop_forward

    if max_steps is not None:
        start = torch.zeros((), dtype=torch.int64)
        _, value = _captured(
            lambda state: _and_then(state[0] < max_steps, cond_fn(state[1])),
            lambda state: (state[0] + 1, body_fn(state[1])),
            (start, init),
            None,
            checkpoints,
        )
        return value
    leaves, carry = OutputSpec.flatten(init)
    constants: list[Any] = []

    def run_cond(*flat: Tensor) -> list[Tensor]:
        pred = cond_fn(carry.unflatten(flat))
        if not isinstance(pred, Tensor):
            _check_predicate(pred)
            constants.append(bool(pred))
            return [torch.full((), bool(pred))]
        _check_one_element(pred)
        pred = pred.reshape(())
        return [pred if pred.dtype == torch.bool else pred != 0]

    def run_body(*flat: Tensor) -> list[Tensor]:
        out, returned = OutputSpec.flatten(pytree.map(number_as_tensor, body_fn(carry.unflatten(flat))))
        check_carry("while_loop", "body_fn", carry, returned)
        return out

    cond = speculate_subgraph(run_cond, carry.metas, operation="while_loop", parameter="cond_fn")
    if constants == [False]:
        return init
    if constants == [True]:
        raise InfiniteLoopError(
            message(
                "while_loop",
                "the condition is constantly true",
                parameter="cond_fn",
                expected="a condition that depends on the carry",
                remedy="pass max_steps=, or compute the condition from the carry",
            )
        )
    body = speculate_subgraph(run_body, carry.metas, operation="while_loop", parameter="body_fn")
    (cond_graph, body_graph), lifted = merge_lifted([cond, body], len(leaves))
    static = while_static(cond_graph, body_graph, len(leaves), checkpoints=checkpoints)
    static, operands, restore = forward_call(while_loop_forward, static, [*leaves, *lifted])
    return carry.unflatten(restore(while_loop_op(static, *operands)))


def _and_then(bound: Tensor, pred: Any) -> Any:
    if not isinstance(pred, Tensor):
        _check_predicate(pred)
        return bound if pred else False
    _check_one_element(pred)
    return bound & (pred.reshape(()) != 0)
