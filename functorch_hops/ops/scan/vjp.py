"""vjp of scan: a forward scan that stacks residuals, and a scan backwards in time.

With ``c', y = f(c, x, w)`` and cotangents bar, each step backwards computes ``(bar c, bar x, bar w) = f*(bar c', bar
y)``: ``bar c`` is the carry, ``bar x`` is stacked, ``bar w`` is summed in the carry. What f* reads of the step is a
residual (stacked by the forward scan), x itself (scanned again) or w (a constant again, never stacked); see NOTE
[Partition].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...ir.meta import Mask
from ..loops.backward import BackwardPlan, run_backward, with_kept_carry
from .op import ScanParams, split_operands

__all__ = ["scan_vjp_backward", "scan_vjp_forward"]


def _plan(params: ScanParams, active: Mask) -> BackwardPlan:
    body = params.body
    return BackwardPlan.make(body, params.n_carry, params.n_xs, active[1:], shifts=True)


def scan_vjp_forward(params: ScanParams, active: Mask) -> ScanParams:
    part = _plan(params, active).part
    kept_carry = [i for i in range(params.n_carry) if part.kept[i] and i not in part.returned]
    forward = with_kept_carry(part.forward, kept_carry)
    return replace(params, body=forward)


def scan_vjp_backward(
    params: ScanParams,
    active: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    plan = _plan(params, active)
    parts = split_operands(params, operands)
    given = [ct for ct, c in zip(cotangents, plan.cotangents) if c]
    stacks = _with_carries_before(plan, params.reverse, parts.init, residuals)
    return run_backward(plan, params.reverse, parts, stacks, given, valid=None)


def _with_carries_before(
    plan: BackwardPlan, reverse: bool, init: Sequence[Tensor], residuals: Sequence[Tensor]
) -> list[Tensor]:
    """The residuals and the carries before each step. Where the carry after each step is a residual, that is it."""
    part = plan.part
    stacks, kept = list(residuals[: len(part.residuals)]), iter(residuals[len(part.residuals) :])
    for i in range(plan.n_carry):
        if part.kept[i] and i in part.returned:
            stacks.append(_moved_on(stacks[part.returned.index(i)], init[i], reverse))
        elif part.kept[i]:
            stacks.append(next(kept))
    return stacks


def _moved_on(after: Tensor, first: Tensor, reverse: bool) -> Tensor:
    """The carries before each step, of those after it."""
    first = first.unsqueeze(0)
    return torch.cat((after, first))[1:] if reverse else torch.cat((first, after))[:-1]
