"""How the steps of a loop are pulled back: a scan backwards in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...derive.partition import Partition, partition
from ...derive.rewrite import rewritten
from ...ir.dependence import Through, dependent_outputs
from ...ir.meta import Mask, TensorMeta, is_differentiable
from ...ir.subgraph import Subgraph
from ..cond.op import CondParams, cond_op
from ..scan.op import Operands, ScanParams, scan_op
from .carry import carry_fixpoint

__all__ = ["BackwardPlan", "backward_step", "run_backward", "with_kept_carry"]


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
    def make(cls, body: Subgraph, n_carry: int, n_xs: int, active: Mask, *, shifts: bool = False) -> BackwardPlan:
        """``active``: of the loop's operands; a carry that becomes active on the way is active. ``shifts``: the carries
        before each step are read from a stack of those after it, see ``partition``.
        """
        fixed = active[n_carry:]
        carry = carry_fixpoint(
            active[:n_carry], lambda c: dependent_outputs(body, (*c, *fixed), Through.GRADIENT)[:n_carry]
        )
        carry = tuple(a and is_differentiable(m.dtype) for a, m in zip(carry, body.inputs))
        reached = dependent_outputs(body, (*carry, *fixed), Through.GRADIENT)
        places = range(len(body.inputs))
        carried = tuple(i < n_carry for i in places)
        free = tuple(i >= n_carry + n_xs for i in places)
        cotangents = (*carry, *reached[n_carry:])
        part = partition(body, (*carry, *fixed), cotangents, free=free, carried=carried, shifts=shifts)
        return cls(body, n_carry, n_xs, (*carry, *fixed), cotangents, part)


def with_kept_carry(forward: Subgraph, kept: list[int]) -> Subgraph:
    """The forward graph, which also emits the carries that backward reads, as they were when the step began."""
    if not kept:
        return forward

    def run(*args: Tensor) -> list[Tensor]:
        return [*forward(*args), *(args[i] for i in kept)]

    return forward.derive(("kept carry", tuple(kept)), lambda: rewritten(run, forward.inputs, "grad"))


def run_backward(
    plan: BackwardPlan,
    reverse: bool,
    parts: Operands,
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
    valid: Tensor | None,
) -> Sequence[Tensor | None]:
    """The scan backwards in time. ``cotangents``: of the last carry and of stacks, as far as the body's outputs have
    some. ``valid`` marks the steps that happened (all of them where it is None).
    """
    n, m, k = plan.n_carry, plan.n_xs, sum(plan.cotangents[: plan.n_carry])
    metas = [
        meta if i < n else meta.with_leading(parts.length)
        for i, (meta, c) in enumerate(zip(plan.body.outputs, plan.cotangents))
        if c
    ]
    full = [meta.or_zeros(ct) for meta, ct in zip(metas, cotangents, strict=True)]
    ct_carry, ct_ys, absent = full[:k], full[k:], tuple(ct is None for ct in cotangents[k:])
    ct_consts = [torch.zeros_like(c) for c, a in zip(parts.consts, plan.active[n + m :]) if a]
    kept_xs = [x for x, k in zip(parts.xs, plan.part.kept[n : n + m]) if k]
    kept_consts = [c for c, k in zip(parts.consts, plan.part.kept[n + m :]) if k]
    flag = None if valid is None else TensorMeta(tuple(valid.shape[1:]), valid.dtype, valid.device)
    body = backward_step(plan, flag, absent)
    xs = [*([] if valid is None else [valid]), *residuals, *kept_xs, *ct_ys]
    n_carry = len(ct_carry) + len(ct_consts)
    outs = scan_op(
        ScanParams(body, n_carry, len(xs), not reverse),
        parts.length,
        *ct_carry,
        *ct_consts,
        *xs,
        *kept_consts,
    )
    by_kind = iter(outs[: len(ct_carry)]), iter(outs[n_carry:]), iter(outs[len(ct_carry) : n_carry])
    grads = [next(by_kind[0 if i < n else 1 if i < n + m else 2]) if a else None for i, a in enumerate(plan.active)]
    return [None, *grads]


def backward_step(plan: BackwardPlan, valid: TensorMeta | None, absent: Mask = ()) -> Subgraph:
    """``(ct carry, sums; [valid], residuals, kept x, ct y; kept consts) -> (ct carry, sums; ct x)``. ``absent``: which
    ct y are, in all steps.
    """
    n, m, part, body = plan.n_carry, plan.n_xs, plan.part, plan.body
    carry_metas = [meta for meta, a in zip(body.inputs[:n], plan.active) if a]
    const_metas = [meta for meta, a in zip(body.inputs[n + m :], plan.active[n + m :]) if a]
    kept_carry = [meta for meta, k in zip(body.inputs[:n], part.kept) if k]
    kept_xs = [meta for meta, k in zip(body.inputs[n : n + m], part.kept[n : n + m]) if k]
    kept_consts = [meta for meta, k in zip(body.inputs[n + m :], part.kept[n + m :]) if k]
    y_metas = [meta for meta, c in zip(body.outputs[n:], plan.cotangents[n:]) if c]
    groups = [carry_metas, const_metas, part.residuals, kept_carry, kept_xs, y_metas, kept_consts]
    n_ct, n_x = len(carry_metas), sum(plan.active[n : n + m])
    backward = part.backward_without((*[False] * n_ct, *absent))

    def run(*args: Tensor) -> list[Tensor]:
        values, pieces = list(args), []
        for group in groups:
            pieces.append(values[: len(group)])
            values = values[len(group) :]
        ct_carry, sums, residuals, carry, xs, ct_ys, consts = pieces
        grads = list(backward(*residuals, *carry, *xs, *consts, *ct_carry, *ct_ys))
        new_carry, ct_x, ct_w = grads[:n_ct], grads[n_ct : n_ct + n_x], grads[n_ct + n_x :]
        return [*new_carry, *(s + g for s, g in zip(sums, ct_w)), *ct_x]

    inputs = [meta for group in groups for meta in group]
    key = ("backward step", tuple(map(tuple, groups)), n_x)
    step = backward.derive(key, lambda: rewritten(run, inputs, "grad"))
    return step if valid is None else _if_it_happened(step, n_ct + len(const_metas), valid)


def _if_it_happened(step: Subgraph, n_carry: int, valid: TensorMeta) -> Subgraph:
    """``(carry; valid, the step's other operands)``: steps that this lane did not take leave the carry unchanged.

    It must be a cond and not a select: the stacked residuals at such steps belong to another lane (NOTE [Stacks of
    lanes]), and combining them with this lane's constants could give NaN; under vmap the cond substitutes the constants
    of a lane that took the step.
    """

    def skip(*args: Tensor) -> list[Tensor]:
        return [*args[:n_carry], *(meta.zeros() for meta in step.outputs[n_carry:])]

    def run(*args: Tensor) -> Sequence[Tensor]:
        branches = CondParams((rewritten(skip, step.inputs, "grad"), step))
        return cond_op(branches, args[n_carry], *args[:n_carry], *args[n_carry + 1 :])

    inputs = [*step.inputs[:n_carry], valid, *step.inputs[n_carry:]]
    return step.derive(("if it happened", n_carry, valid), lambda: rewritten(run, inputs, "grad"))
