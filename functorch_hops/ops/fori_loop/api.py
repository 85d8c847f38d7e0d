"""``fori_loop``: a scan where its bounds are Python ints, else a while loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import pytree
from ...calls.output import numbers_as_tensors
from ...calls.validate import (
    as_int,
    check_callable,
    check_tensor_leaves,
    kind_of,
)
from ...errors import ArgumentTypeError, ArgumentValueError, ErrorContext, message
from ..loops.steps import carry_check
from ..mode import is_capturing
from ..scan.api import run_scan
from ..while_loop.api import run_while

__all__ = ["fori_loop"]


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

    Returns:
        The carry after the last step, a tree like ``init_val``.

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
    context = ErrorContext("fori_loop", "body_fn")
    if any(isinstance(b, Tensor) for b in bounds):
        return _tensor_bounds(context, bounds[0], bounds[1], body_fn, init)
    if not is_capturing():
        next_carry, value = carry_check(context, init), init
        for i in range(bounds[0], bounds[1]):
            value = next_carry(body_fn(torch.tensor(i), value))
        return value
    if bounds[1] <= bounds[0]:
        return init
    indices = torch.arange(bounds[0], bounds[1])
    leaves, spec = pytree.flatten(indices)
    step = lambda value, i: (body_fn(i, value), None)
    return run_scan(context, step, init, leaves, spec, indices.shape[0], unroll=unroll)[0]


_BOUND = "an int or a one-element integer tensor"


def _bound(parameter: str, bound: Any) -> Any:
    if not isinstance(bound, Tensor):
        return as_int("fori_loop", parameter, bound, expected=_BOUND)
    is_integer = not (bound.dtype.is_floating_point or bound.dtype.is_complex or bound.dtype == torch.bool)
    if bound.numel() == 1 and is_integer:
        return bound.reshape(()).to(torch.int64)
    text = message("fori_loop", "not an int", parameter=parameter, expected=_BOUND, got=kind_of(bound))
    raise ArgumentTypeError(text)


def _tensor_bounds(context: ErrorContext, lower: Any, upper: Any, body_fn: Callable[[Any, Any], Any], init: Any) -> Any:
    device = next(b.device for b in (lower, upper) if isinstance(b, Tensor))
    first, last = (b if isinstance(b, Tensor) else torch.full((), b, device=device) for b in (lower, upper))
    first = first + torch.zeros_like(last)  # batched if either bound is
    _, value = run_while(
        context, lambda state: state[0] < last, _Counting(body_fn, carry_check(context, init)), (first, init)
    )
    return value


class _Counting:
    """A step of ``fori_loop`` as one of ``while_loop``, whose carry is the index and the user's carry."""

    __environment__ = ("_body_fn",)  # the check follows from the carry

    def __init__(self, body_fn: Callable[[Any, Any], Any], next_carry: Callable[[Any], Any]) -> None:
        self._body_fn, self._next_carry = body_fn, next_carry

    def __call__(self, state: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        i, value = state
        return i + 1, self._next_carry(self._body_fn(i, value))
