"""``fori_loop``: a scan where its bounds are Python ints, else a while loop.

NOTE [An open count is a condition] A scan is traced for two or more steps, since torch lays out no tensor, such as
that of the indices, without asking whether a size of it is 0 or 1. Bounds like ``x.shape[0] - 5`` leave that to the
run: as a scan, a trace would assume the answer, and an exported program would refuse other sizes. So there the bounds
are tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import _torch, pytree
from ...calls.leaf import one_node
from ...calls.notes import note_body
from ...calls.spelling import spelled
from ...calls.validate import as_int, check_callable, kind_of
from ...errors import ArgumentTypeError, ArgumentValueError, ErrorContext, message
from ..loops.steps import PlainCarry
from ..loops.weak_carry import InitialCarry, followed
from ..mode import is_capturing
from ..scan.api import run_scan
from ..while_loop.api import run_while

__all__ = ["fori_loop"]


@one_node
@spelled(
    body_fun="pass it by position: fh.fori_loop(lower, upper, body_fn, init_val)",
    init_val="pass it by position: fh.fori_loop(lower, upper, body_fn, init_val)",
)
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
        init_val: the initial carry, any tree of tensors and Python numbers, which take dtypes as in :func:`scan`.
        unroll: how many steps a captured loop takes per iteration; more than 1 needs Python bounds. Of bounds that
            are open sizes, a trace then assumes that there are two steps or more, one, or none.

    Returns:
        The carry after the last step, a tree like ``init_val``.

    Raises:
        ArgumentTypeError: a bound is no integer, ``body_fn`` is not callable.
        ArgumentValueError: ``unroll < 1``, or ``unroll > 1`` with tensor bounds.
        TreeMismatchError, MetadataMismatchError: the carry changes.

    Cost: as :func:`scan` with Python bounds, as :func:`while_loop` with tensor bounds, and with open sizes of which
    a trace does not know whether they make two steps or more.

    Source: ``jax.lax.fori_loop``; asked for in pytorch/pytorch 166516.

    >>> import torch, functorch_hops as fh
    >>> fh.fori_loop(0, 5, lambda i, total: total + i, torch.tensor(0))
    tensor(10)
    """
    check_callable("fori_loop", "body_fn", body_fn)
    unroll = as_int("fori_loop", "unroll", unroll, at_least=1, is_option=True)
    bounds = [_bound("lower", lower), _bound("upper", upper)]
    init = InitialCarry.of("fori_loop", "init_val", init_val)
    if unroll > 1 and any(isinstance(b, Tensor) for b in bounds):
        text = message(
            "fori_loop",
            "a loop whose bounds are tensors can't be unrolled",
            parameter="unroll",
            expected="1, or Python ints as bounds",
            got=unroll,
            remedy="leave unroll out, or convert the bounds with int() where they have values",
        )
        raise ArgumentValueError(text)
    value = _run(ErrorContext("fori_loop", "body_fn"), bounds[0], bounds[1], body_fn, init, unroll)
    return init.check_range("fori_loop", "init_val", value)


def _run(
    context: ErrorContext, lower: Any, upper: Any, body_fn: Callable[[Any, Any], Any], init: InitialCarry, unroll: int
) -> Any:
    if isinstance(lower, Tensor) or isinstance(upper, Tensor) or (unroll == 1 and _is_open(upper - lower)):
        return _tensor_bounds(context, lower, upper, body_fn, init)
    step = lambda value, i: (body_fn(i, value), None)
    if is_capturing() and lower < upper:
        indices = torch.arange(lower, upper)
        leaves, spec = pytree.flatten(indices)
        return run_scan(context, step, init, leaves, spec, indices.shape[0], unroll=unroll)[0]
    carries, value = PlainCarry(context, init, length=max(upper - lower, 0)), init.tree
    try:
        for i in range(lower, upper) if lower < upper else ():  # a range would ask for the value of an open size
            value = carries.follow(body_fn(torch.tensor(i), value))
    except Exception as error:
        note_body(error, context.operation, body_fn, (), step=carries.steps)
        raise
    made = [value]
    del value
    return carries.final(made, step, [torch.tensor(0)])


def _is_open(count: Any) -> bool:
    """See NOTE [An open count is a condition]."""
    return isinstance(count, torch.SymInt) and not (_torch.is_known(count >= 2) or _torch.is_known(count <= 0))


_BOUND = "an int or a one-element integer tensor"


def _bound(parameter: str, bound: Any) -> Any:
    if not isinstance(bound, Tensor):
        return as_int("fori_loop", parameter, bound, expected=_BOUND)
    is_integer = not (bound.dtype.is_floating_point or bound.dtype.is_complex or bound.dtype == torch.bool)
    if bound.numel() == 1 and is_integer:
        return bound.reshape(()).to(torch.int64)
    remedy = "convert it with .long()" if bound.numel() == 1 else "vmap the loop over it"
    text = message("fori_loop", "not an int", parameter=parameter, expected=_BOUND, got=kind_of(bound), remedy=remedy)
    raise ArgumentTypeError(text)


def _tensor_bounds(
    context: ErrorContext, lower: Any, upper: Any, body_fn: Callable[[Any, Any], Any], init: InitialCarry
) -> Any:
    device = next((b.device for b in (lower, upper) if isinstance(b, Tensor)), None)
    as_tensor = lambda b: b if isinstance(b, Tensor) else torch.full((), b, dtype=torch.int64, device=device)
    first, last = as_tensor(lower), as_tensor(upper)
    first = first + torch.zeros_like(last)  # batched if either bound is
    counting = _Counting(body_fn, followed(context, init))
    _, value = run_while(context, lambda state: state[0] < last, counting, init.after(first))
    return value


class _Counting:
    """A step of ``fori_loop`` as one of ``while_loop``, whose carry is the index and the user's carry."""

    __environment__ = ("_body_fn",)  # the check follows from the carry

    def __init__(self, body_fn: Callable[[Any, Any], Any], follow: Callable[[Any, Any], Any]) -> None:
        self._body_fn, self._follow = body_fn, follow

    def __call__(self, state: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        i, value = state
        return i + 1, self._follow(value, self._body_fn(i, value))
