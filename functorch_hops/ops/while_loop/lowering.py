"""while_loop as torch's own ``while_loop``, or ``while_loop_stack_output`` where the loop stacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import _torch
from ...errors import CaptureError, message
from ...ir.meta import is_differentiable
from ...lowering.exported import as_declared, as_floats, is_training, native_cond, tied, with_dense_gradients
from ...lowering.loops.forms import NativeLoop, While
from .op import WhileLoopParams, merge_flags

__all__ = ["while_loop_form", "while_loop_lower", "while_loop_native_loop"]


def while_loop_lower(params: WhileLoopParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    """torch's loop that stacks does so for every carry, and returns the stacks only; its row t is the carry after step
    t.
    """
    n, flags = params.n_carry, params.flags
    consts = tuple(operands[n:])
    init = _torch.unshared([_torch.dense(c) for c in operands[:n]], consts)
    if flags:
        return _stacking(params, init, consts)
    if is_training() and any(is_differentiable(meta.dtype) for meta in params.body.inputs):
        return _trained(params, init, consts)
    return _native(params, init, consts)


def _native(params: WhileLoopParams, init: Sequence[Tensor], consts: tuple[Tensor, ...]) -> Sequence[Tensor]:
    cond, body = params.cond, params.body
    step = lambda *args: tuple(_torch.dense(o) for o in body(*args))
    if is_training():
        step = with_dense_gradients(step)
    return _torch.native_while_loop(lambda *args: cond(*args)[0], step, tuple(init), consts)


def _trained(params: WhileLoopParams, init: list[Tensor], consts: tuple[Tensor, ...]) -> Sequence[Tensor]:
    """The loop as torch differentiates it: see NOTE [Training of exported programs]."""
    n = params.n_carry

    def loop(*args: Tensor) -> tuple[Tensor, ...]:
        start = [_torch.dense(c) for c in tied(args[:n], args)]
        return tuple(as_floats(_native(params, start, args[n:])))

    def no_loop(*args: Tensor) -> tuple[Tensor, ...]:
        return tuple(as_floats([x.clone() for x in args[:n]]))

    operands = (*init, *consts)
    return as_declared(native_cond(params.cond(*operands)[0], loop, no_loop, operands), params.body.outputs)


def _unknown_to_onnx(params: WhileLoopParams) -> CaptureError:
    origin = params.origin
    text = message(
        params.public_name,
        "torch.onnx has no program for the gradient of a while loop, which keeps what each step computed",
        remedy="differentiate a fh.scan, or a fh.fori_loop, whose number of steps is known before it runs",
        at=None if origin is None else (origin.file, origin.line),
    )
    return CaptureError(text)


def while_loop_native_loop(params: WhileLoopParams) -> NativeLoop:
    return NativeLoop.STACKED_CARRIES if params.flags else NativeLoop.PLAIN


def while_loop_form(params: WhileLoopParams, operands: Sequence[Any]) -> While:
    return While(params.cond, params.body, params.n_carry, params.flags)


def _stacking(params: WhileLoopParams, init: list[Tensor], consts: tuple[Tensor, ...]) -> list[Tensor]:
    """Each stacked value travels as a carry that the body ignores, next to a count of the steps; empty ones need not.

    torch's operator gives one row, the initial carry, when the loop does not run. Its count is 0, hence ``valid`` is
    False there, and the loop backwards skips it.
    """
    if _torch.is_exporting_to_onnx():
        raise _unknown_to_onnx(params)
    cond, body, n, flags = params.cond, params.body, params.n_carry, params.flags
    stacked = [0 not in meta.shape for meta in body.outputs[n:]]
    dummies = [meta.zeros() for meta, s in zip(body.outputs[n:], stacked) if s]
    total = n + 1 + len(dummies)

    def native_cond(*args: Tensor) -> Tensor:
        return cond(*args[:n], *args[total:])[0]

    def native_body(*args: Tensor) -> tuple[Tensor, ...]:
        outs = body(*args[:n], *args[total:])
        ys = [y for y, s in zip(outs[n:], stacked) if s]
        return tuple(_torch.dense(o) for o in (*outs[:n], args[n] + 1, *ys))

    trips = torch.zeros((), dtype=torch.int64)
    rows = _torch.native_while_loop_stacked(native_cond, native_body, (*init, trips, *dummies), consts)
    torch._check(rows[n].shape[0] >= 1)
    valid = rows[n] > 0
    ys = iter(rows[n + 1 :])
    given = [next(ys) if s else meta.with_leading(valid.shape[0]).zeros() for meta, s in zip(body.outputs[n:], stacked)]
    return [*(r[-1] for r in rows[:n]), *(valid.clone() if y is None else y for y in merge_flags(flags, None, given))]
