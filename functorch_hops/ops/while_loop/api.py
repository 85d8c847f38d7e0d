"""``while_loop``, and ``fori_loop``, which is a scan where its bounds are Python ints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import _torch, pytree
from ...capture.output import OutputSpec, number_as_tensor, numbers_as_tensors
from ...capture.passes.forwarding import forward_call
from ...capture.signature import merge_lifted
from ...capture.speculate import speculate_subgraph
from ...capture.traces import as_graph
from ...capture.validate import (
    PYTHON_NUMBERS,
    as_int,
    as_number,
    check_callable,
    check_carry,
    check_tensor_leaves,
    kind_of,
)
from ...errors import ArgumentTypeError, ArgumentValueError, Caller, InfiniteLoopError, message
from ..mode import is_capturing
from ..scan.api import run_scan
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
        checkpoints: reverse mode keeps the initial carry and at most so many others, and runs the body again for the
            rest. The loop is then captured in plain eager too. The body must draw no random numbers where gradients are
            taken.

    Under ``vmap`` with a batched condition the loop runs until every lane is done; a finished lane keeps its value and
    is never poisoned by what the others still compute.

    Raises:
        TreeMismatchError, MetadataMismatchError: the carry changes.
        ArgumentTypeError: a function is not callable, the condition has several elements, a count is no int.
        ArgumentValueError: ``max_steps < 0``, ``checkpoints < 1``; gradients of a body with random numbers, with
            ``checkpoints``.
        InfiniteLoopError: a captured condition is constantly true and ``max_steps`` is None.

    Cost: one call of the condition and the body per iteration. Reverse mode stores, per iteration, what the body's
    derivative reads. With ``checkpoints=k`` it stores k carries for any number T of iterations, and the body runs at
    most (r + 1) T times in all, its evaluation within each step's derivative included, for the least r with
    C(k + r, r) >= T. A derivative of a derivative stores, while it is computed, something for each of these runs.

    Source: ``jax.lax.while_loop``; reverse mode as asked for in jax-ml/jax 2469 and 13062; checkpoints after Wang, Moin
    and Iaccarino 2009, "Minimal repetition dynamic checkpointing algorithm for unsteady adjoint calculation".

    >>> import torch, functorch_hops as fh
    >>> fh.while_loop(lambda x: x < 100, lambda x: x * 3, torch.tensor(1.0))
    tensor(243.)
    """
    check_callable("while_loop", "cond_fn", cond_fn)
    check_callable("while_loop", "body_fn", body_fn)
    if max_steps is not None:
        max_steps = as_int("while_loop", "max_steps", max_steps, at_least=0)
    if checkpoints is not None:
        checkpoints = as_int("while_loop", "checkpoints", checkpoints, at_least=1)
    init = numbers_as_tensors(init_val)
    check_tensor_leaves("while_loop", "init_val", init)
    if checkpoints is not None and max_steps is not None:
        checkpoints = max(1, min(checkpoints, max_steps))  # slots that no step could fill
    return _run(Caller("while_loop", "body_fn"), cond_fn, body_fn, init, max_steps, checkpoints)


def _run(
    caller: Caller,
    cond_fn: Callable[..., Any],
    body_fn: Callable[..., Any],
    init: Any,
    max_steps: int | None = None,
    checkpoints: int | None = None,
) -> Any:
    """``while_loop`` of checked arguments, for the loops that are while loops: ``caller`` is the one the user wrote."""
    if is_capturing() or checkpoints is not None:
        return as_graph("while_loop", _captured, (cond_fn, body_fn), (init,), caller, max_steps, checkpoints)
    return _plain(caller, cond_fn, body_fn, init, max_steps)


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
    unroll = as_int("fori_loop", "unroll", unroll, at_least=1)
    bounds = [_bound("lower", lower), _bound("upper", upper)]
    init = numbers_as_tensors(init_val)
    check_tensor_leaves("fori_loop", "init_val", init)
    if unroll > 1 and any(isinstance(b, Tensor) for b in bounds):
        text = message(
            "fori_loop",
            "a loop whose bounds are tensors can't be unrolled",
            parameter="unroll",
            expected="1, or Python ints as bounds",
            got=unroll,
        )
        raise ArgumentValueError(text)
    caller = Caller("fori_loop", "body_fn")
    if any(isinstance(b, Tensor) for b in bounds):
        return _tensor_bounds(caller, bounds[0], bounds[1], body_fn, init)
    if not is_capturing():
        next_carry, value = carry_check(caller, init), init
        for i in range(bounds[0], bounds[1]):
            value = next_carry(body_fn(torch.tensor(i), value))
        return value
    if bounds[1] <= bounds[0]:
        return init
    indices = torch.arange(bounds[0], bounds[1])
    leaves, spec = pytree.flatten(indices)
    step = lambda value, i: (body_fn(i, value), None)
    return run_scan(caller, step, init, leaves, spec, indices.shape[0], unroll=unroll)[0]


_BOUND = "an int or a one-element integer tensor"


def _bound(parameter: str, bound: Any) -> Any:
    if not isinstance(bound, Tensor):
        return as_int("fori_loop", parameter, bound, expected=_BOUND)
    is_integer = not (bound.dtype.is_floating_point or bound.dtype.is_complex or bound.dtype == torch.bool)
    if bound.numel() == 1 and is_integer:
        return bound.reshape(()).to(torch.int64)
    text = message("fori_loop", "not an int", parameter=parameter, expected=_BOUND, got=kind_of(bound))
    raise ArgumentTypeError(text)


def _tensor_bounds(caller: Caller, lower: Any, upper: Any, body_fn: Callable[[Any, Any], Any], init: Any) -> Any:
    device = next(b.device for b in (lower, upper) if isinstance(b, Tensor))
    first, last = (b if isinstance(b, Tensor) else torch.full((), b, device=device) for b in (lower, upper))
    first = first + torch.zeros_like(last)  # batched if either bound is
    _, value = _run(caller, lambda state: state[0] < last, _Counting(body_fn, carry_check(caller, init)), (first, init))
    return value


class _Counting:
    """A step of ``fori_loop`` as one of ``while_loop``, whose carry is the index and the user's carry."""

    __environment__ = ("_body_fn",)  # the check follows from the carry

    def __init__(self, body_fn: Callable[[Any, Any], Any], next_carry: Callable[[Any], Any]) -> None:
        self._body_fn, self._next_carry = body_fn, next_carry

    def __call__(self, state: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        i, value = state
        return i + 1, self._next_carry(self._body_fn(i, value))


def _plain(
    caller: Caller, cond_fn: Callable[..., Any], body_fn: Callable[..., Any], init: Any, max_steps: int | None
) -> Any:
    next_carry, value, steps = carry_check(caller, init), init, 0
    while max_steps is None or steps < max_steps:
        pred = _checked_predicate(cond_fn(value))
        if isinstance(pred, Tensor):
            if _torch.is_batched(pred):
                rest = None if max_steps is None else max_steps - steps
                return as_graph("while_loop", _captured, (cond_fn, body_fn), (value,), caller, rest, None)
            pred = _torch.read_number(pred)
        if not pred:
            break
        value = next_carry(body_fn(value))
        steps += 1
    return value


def _checked_predicate(pred: Any) -> Any:
    """What ``cond_fn`` returned, if it is a one-element tensor or a Python number."""
    if isinstance(pred, Tensor):
        if pred.numel() == 1:
            return pred
        problem, remedy = "the condition is not a single value", "reduce it with .any() or .all(), or vmap the loop"
    else:
        pred = as_number(pred)
        if isinstance(pred, PYTHON_NUMBERS):
            return pred
        problem, remedy = "the condition is neither a number nor a tensor", None
    expected, got = "a bool or a tensor of one element", kind_of(pred)
    text = message("while_loop", problem, parameter="cond_fn", expected=expected, got=got, remedy=remedy)
    raise ArgumentTypeError(text)


def _captured(
    functions: Sequence[Callable[..., Any]],
    operands: tuple[Any],
    caller: Caller,
    max_steps: int | None,
    checkpoints: int | None,
) -> Any:
    """The loop as one node; a bound on the steps is a counter in its carry."""
    from . import while_loop_op
    from .eager import while_static
    from .forwarding import while_loop_forward

    (cond_fn, body_fn), (init,) = functions, operands
    if max_steps is not None:
        start, next_carry = torch.zeros((), dtype=torch.int64), carry_check(caller, init)
        bounded = (
            lambda state: _and_then(state[0] < max_steps, cond_fn(state[1])),
            lambda state: (state[0] + 1, next_carry(body_fn(state[1]))),
        )
        _, value = _captured(bounded, ((start, init),), caller, None, checkpoints)
        return value
    leaves, carry = OutputSpec.flatten(init)
    constants: list[Any] = []

    def run_cond(*flat: Tensor) -> list[Tensor]:
        pred = _checked_predicate(cond_fn(carry.unflatten(flat)))
        known = _torch.known_number(pred) if isinstance(pred, Tensor) else None
        pred = pred if known is None else known
        if not isinstance(pred, Tensor):
            constants.append(bool(pred))
            return [torch.full((), bool(pred))]
        pred = pred.reshape(())
        return [pred if pred.dtype == torch.bool else pred != 0]

    def run_body(*flat: Tensor) -> list[Tensor]:
        out, returned = OutputSpec.flatten(pytree.map(number_as_tensor, body_fn(carry.unflatten(flat))))
        check_carry(caller, carry, returned)
        return out

    cond = speculate_subgraph(run_cond, carry.metas, operation=caller.operation, parameter="cond_fn")
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
    body = speculate_subgraph(run_body, carry.metas, operation=caller.operation, parameter=caller.parameter)
    (cond_graph, body_graph), lifted = merge_lifted([cond, body], len(leaves))
    static = while_static(cond_graph, body_graph, len(leaves), checkpoints=checkpoints)
    static, flat, restore = forward_call(while_loop_forward, static, [*leaves, *lifted])
    return carry.unflatten(restore(while_loop_op(static, *flat)))


def _and_then(bound: Tensor, pred: Any) -> Any:
    pred = _checked_predicate(pred)
    if not isinstance(pred, Tensor):
        return bound if pred else False
    return bound & (pred.reshape(()) != 0)
