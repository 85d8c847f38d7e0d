"""vjp of scan: a forward scan that stacks residuals, and a scan backwards in time.

With ``c', y = f(c, x, w)`` and cotangents bar, each step backwards computes ``(bar c, bar x, bar w) = f*(bar c', bar
y)``: ``bar c`` is the carry, ``bar x`` is stacked, ``bar w`` is summed in the carry. What f* reads of the step is a
residual (stacked by the forward scan), x itself (scanned again) or w (a constant again, never stacked); see NOTE
[Partition].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...capture.derive import rewritten
from ...capture.partition import Partition, partition
from ...capture.subgraph import Mask, StaticParameters, Subgraph, TensorMeta, is_differentiable
from .carry import carry_fixpoint
from .eager import Operands, scan_static, split_operands

__all__ = [
    "BackwardPlan",
    "cotangent_or_zeros",
    "run_backward",
    "scan_augment",
    "scan_pullback",
    "with_kept_carry",
]


@dataclass(frozen=True)
class BackwardPlan:
    """How the step of a loop is differentiated: which inputs are active, which outputs have cotangents, its
    partition.
    """

    body: Subgraph
    n_carry: int
    n_xs: int
    active: Mask
    cotangents: Mask
    part: Partition

    @classmethod
    def make(cls, body: Subgraph, n_carry: int, n_xs: int, active: Mask) -> BackwardPlan:
        """``active``: of the loop's operands; a carry that becomes active on the way is active."""
        fixed = active[n_carry:]
        carry = carry_fixpoint(active[:n_carry], lambda c: body.reached((*c, *fixed), by="gradient")[:n_carry])
        carry = tuple(a and is_differentiable(m.dtype) for a, m in zip(carry, body.inputs))
        reached = body.reached((*carry, *fixed), by="gradient")
        places = range(len(body.inputs))
        carried = tuple(i < n_carry for i in places)
        free = tuple(i >= n_carry + n_xs for i in places)
        cotangents = (*carry, *reached[n_carry:])
        part = partition(body, (*carry, *fixed), cotangents, free=free, carried=carried)
        return cls(body, n_carry, n_xs, (*carry, *fixed), cotangents, part)


def _plan(static: StaticParameters, active: Mask) -> BackwardPlan:
    (body,) = static.bodies
    return BackwardPlan.make(body, static["n_carry"], static["n_xs"], active[1:])


def scan_augment(static: StaticParameters, active: Mask) -> StaticParameters:
    part = _plan(static, active).part
    kept_carry = [i for i in range(static["n_carry"]) if part.kept[i] and i not in part.returned]
    forward = with_kept_carry(part.forward, kept_carry)
    return scan_static(forward, static["n_carry"], static["n_xs"], static["reverse"])


def with_kept_carry(forward: Subgraph, kept: list[int]) -> Subgraph:
    """The forward graph, which also emits the carries that backward reads, as they were when the step began."""
    if not kept:
        return forward

    def run(*args: Tensor) -> list[Tensor]:
        return [*forward(*args), *(args[i] for i in kept)]

    return forward.derive(("kept carry", tuple(kept)), lambda: rewritten(run, forward.inputs, "grad"))


def scan_pullback(
    static: StaticParameters,
    active: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    plan = _plan(static, active)
    parts = split_operands(static, operands)
    full = [
        cotangent_or_zeros(ct, meta, parts.length if i >= plan.n_carry else None)
        for i, (ct, meta, c) in enumerate(zip(cotangents, plan.body.outputs, plan.cotangents))
        if c
    ]
    k = sum(plan.cotangents[: plan.n_carry])
    stacks = _with_carries_before(plan, static["reverse"], parts.init, residuals)
    return run_backward(plan, static["reverse"], parts, stacks, full[:k], full[k:], valid=None)


def _with_carries_before(
    plan: BackwardPlan, reverse: bool, init: Sequence[Tensor], residuals: Sequence[Tensor]
) -> list[Tensor]:
    """The residuals and the carries before each step. Where the carry after each step is a residual, that is it."""
    part = plan.part
    stacks, kept = list(residuals[: len(part.residuals)]), iter(residuals[len(part.residuals) :])
    for i in range(plan.n_carry):
        if part.kept[i] and i in part.returned:
            after, first = stacks[part.returned.index(i)], init[i].unsqueeze(0)
            stacks.append(torch.cat((after, first))[1:] if reverse else torch.cat((first, after))[:-1])
        elif part.kept[i]:
            stacks.append(next(kept))
    return stacks


def run_backward(
    plan: BackwardPlan,
    reverse: bool,
    parts: Operands,
    residuals: Sequence[Tensor],
    ct_carry: Sequence[Tensor],
    ct_ys: Sequence[Tensor],
    valid: Tensor | None,
) -> Sequence[Tensor | None]:
    """The scan backwards in time. ``valid`` marks the steps that happened (all of them where it is None)."""
    from . import scan_op

    n, m = plan.n_carry, plan.n_xs
    ct_consts = [torch.zeros_like(c) for c, a in zip(parts.consts, plan.active[n + m :]) if a]
    kept_xs = [x for x, k in zip(parts.xs, plan.part.kept[n : n + m]) if k]
    kept_consts = [c for c, k in zip(parts.consts, plan.part.kept[n + m :]) if k]
    body = backward_step(plan, None if valid is None else TensorMeta(tuple(valid.shape[1:]), valid.dtype, valid.device))
    xs = [*([] if valid is None else [valid]), *residuals, *kept_xs, *ct_ys]
    n_carry = len(ct_carry) + len(ct_consts)
    outs = scan_op(
        scan_static(body, n_carry, len(xs), not reverse),
        parts.length,
        *ct_carry,
        *ct_consts,
        *xs,
        *kept_consts,
    )
    by_kind = iter(outs[: len(ct_carry)]), iter(outs[n_carry:]), iter(outs[len(ct_carry) : n_carry])
    grads = [next(by_kind[0 if i < n else 1 if i < n + m else 2]) if a else None for i, a in enumerate(plan.active)]
    return [None, *grads]


def backward_step(plan: BackwardPlan, valid: TensorMeta | None) -> Subgraph:
    """``(ct carry, sums; [valid], residuals, kept x, ct y; kept consts) -> (ct carry, sums; ct x)``."""
    n, m, part, body = plan.n_carry, plan.n_xs, plan.part, plan.body
    carry_metas = [meta for meta, a in zip(body.inputs[:n], plan.active) if a]
    const_metas = [meta for meta, a in zip(body.inputs[n + m :], plan.active[n + m :]) if a]
    kept_carry = [meta for meta, k in zip(body.inputs[:n], part.kept) if k]
    kept_xs = [meta for meta, k in zip(body.inputs[n : n + m], part.kept[n : n + m]) if k]
    kept_consts = [meta for meta, k in zip(body.inputs[n + m :], part.kept[n + m :]) if k]
    y_metas = [meta for meta, c in zip(body.outputs[n:], plan.cotangents[n:]) if c]
    groups = [carry_metas, const_metas, part.residuals, kept_carry, kept_xs, y_metas, kept_consts]
    n_ct, n_x = len(carry_metas), sum(plan.active[n : n + m])

    def run(*args: Tensor) -> list[Tensor]:
        values, pieces = list(args), []
        for group in groups:
            pieces.append(values[: len(group)])
            values = values[len(group) :]
        ct_carry, sums, residuals, carry, xs, ct_ys, consts = pieces
        grads = list(part.backward(*residuals, *carry, *xs, *consts, *ct_carry, *ct_ys))
        new_carry, ct_x, ct_w = grads[:n_ct], grads[n_ct : n_ct + n_x], grads[n_ct + n_x :]
        return [*new_carry, *(s + g for s, g in zip(sums, ct_w)), *ct_x]

    inputs = [meta for group in groups for meta in group]
    key = ("backward step", plan.n_carry, plan.n_xs, plan.active, plan.cotangents)
    step = part.backward.derive(key, lambda: rewritten(run, inputs, "grad"))
    return step if valid is None else _if_it_happened(step, n_ct + len(const_metas), valid)


def _if_it_happened(step: Subgraph, n_carry: int, valid: TensorMeta) -> Subgraph:
    """``(carry; valid, the step's other operands)``: a step that did not happen for this lane hands the carry on.

    A cond, because such a lane has the rows of another one (NOTE [Stacks of lanes]) and constants of its own, which may
    not go together: under vmap the cond gives it the constants of a lane that took the step.
    """
    from ..cond import cond_op
    from ..cond.eager import cond_static

    def skip(*args: Tensor) -> list[Tensor]:
        return [*args[:n_carry], *(meta.zeros() for meta in step.outputs[n_carry:])]

    def run(*args: Tensor) -> Sequence[Tensor]:
        branches = cond_static([rewritten(skip, step.inputs, "grad"), step])
        return cond_op(branches, args[n_carry], *args[:n_carry], *args[n_carry + 1 :])

    inputs = [*step.inputs[:n_carry], valid, *step.inputs[n_carry:]]
    return step.derive(("if it happened", n_carry, valid), lambda: rewritten(run, inputs, "grad"))


def cotangent_or_zeros(ct: Tensor | None, meta: TensorMeta, length: int | None) -> Tensor:
    if ct is not None:
        return ct
    shape = meta.shape if length is None else (length, *meta.shape)
    return torch.zeros(shape, dtype=meta.dtype, device=meta.device)
