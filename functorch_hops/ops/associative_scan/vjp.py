"""vjp of associative_scan: a scan backwards over the prefixes and the elements.

NOTE [Prefixes one after the other] The prefixes of an associative function are those of the loop ``p_t = f(p_{t-1},
e_t)``, from ``p_0 = e_0`` on, in whatever order they were computed. So their derivative is that of the loop: with
cotangents ``y_t`` of the prefixes,

    q_t = y_t + (d f / d left)(p_t, e_{t+1})^T q_{t+1},  bar e_t = (d f / d right)(p_{t-1}, e_t)^T q_t,  bar e_0 = q_0

and the constants of ``f`` sum up what the steps give them. A step reads the prefix before it, saved by the forward
call, and its element; the rest of ``f`` it computes again. That takes one step per element, where the derivative of the
tree of O(log n) operators is a tree that is several times larger. The loop is what a CPU runs best: one kernel, which
reads its operands once. It is no choice where each step costs a launch (other devices), or where it rounds too often
(half precision): there the tree is differentiated, or what takes its place: NOTE [Prefixes in blocks].

Both are derivatives of the same function as long as ``f`` is associative around its arguments. If it is so on a part of
them only (symmetric matrices, a weight that is 1), they agree along that part; across it, the loop's derivative is that
of the documented loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...derive.partition import partition
from ...derive.rewrite import rewritten
from ...derive.saving import Value
from ...errors import CaptureError, message
from ...ir.dependence import needed_inputs
from ...ir.meta import Mask, is_differentiable
from ..loops.backward import BackwardPlan, run_backward
from ..loops.carry import carry_fixpoint
from ..scan.op import Operands
from .blocks import blocked_prefixes, goes_by_blocks
from .eager import associative_scan_impl
from .op import AssociativeScanParams
from .sequential import sequential_prefixes

__all__ = ["associative_scan_vjp_backward", "associative_scan_vjp_forward"]


def associative_scan_vjp_forward(params: AssociativeScanParams, active: Mask) -> AssociativeScanParams:
    if params.draws:
        problem = "a function that draws random numbers is not associative, and its prefixes have no gradient"
        raise CaptureError(message("associative_scan", problem, parameter="fn", remedy=_DRAW_BEFORE))
    return replace(params, copies=params.copies + 1) if _is_loop(params) else params


_DRAW_BEFORE = "draw them before, for all elements, and pass them as a leaf of elems"


def associative_scan_vjp_backward(
    params: AssociativeScanParams,
    active: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    k = params.n_leaves
    cts = [_total(cotangents[i::k]) for i in range(k)]
    if not _is_loop(params):
        by_blocks = goes_by_blocks(params, operands[0].shape[0])
        return _of(blocked_prefixes if by_blocks else associative_scan_impl, params, active, operands, cts)
    if type(operands[0].shape[0]) is not int:
        # The loop above is one step shorter than the length, and who compiles it would ask whether that is one.
        return _of(sequential_prefixes, params, active, operands, cts)
    return _of_loop(params, active, operands, residuals, cts)


def _total(cotangents: Sequence[Tensor | None]) -> Tensor | None:
    given = [ct for ct in cotangents if ct is not None]
    return sum(given[1:], start=given[0]) if given else None


def _is_loop(params: AssociativeScanParams) -> bool:
    return not params.is_half and all(meta.device.type == "cpu" for meta in params.body.outputs)


def _of_loop(
    params: AssociativeScanParams,
    active: Mask,
    operands: Sequence[Tensor],
    prefixes: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    k = params.n_leaves
    elems, consts = operands[:k], operands[k:]
    length = elems[0].shape[0]
    if length < 2:
        return [*(ct if a else None for ct, a in zip(cotangents, active)), *[None] * len(consts)]
    cotangents = [ct if is_differentiable(p.dtype) else None for ct, p in zip(cotangents, prefixes)]
    given = tuple(ct is not None for ct in cotangents)
    plan = params.derive(("plan", active, given), lambda: _plan(params, active, given))
    rows = Operands(length - 1, [p[0] for p in prefixes], [e[1:] for e in elems], consts)
    before = [p[:-1] for p, is_read in zip(prefixes, plan.part.kept) if is_read]
    zeros = [torch.zeros_like(p[0]) for p, a in zip(prefixes, plan.active) if a]
    later = [ct[1:] for ct in cotangents if ct is not None]
    _, *grads = run_backward(plan, False, rows, before, [*zeros, *later], valid=None)
    firsts = [_total([x, None if ct is None else ct[0]]) for x, ct in zip(grads[:k], cotangents)]
    return [*map(_joined, firsts, grads[k : 2 * k]), *grads[2 * k :]]


def _joined(first: Tensor | None, rest: Tensor | None) -> Tensor | None:
    if rest is None:
        return None
    return torch.cat(((rest.new_zeros(rest.shape[1:]) if first is None else first).unsqueeze(0), rest))


def _plan(params: AssociativeScanParams, active: Mask, given: Mask) -> BackwardPlan:
    """The step of the loop and its partition, which saves nothing but what comes in. ``given``: the prefixes that have
    cotangents; the others get some on the way if one of these is computed from them.
    """
    body, k = params.body, params.n_leaves
    outputs = [i for i, is_given in enumerate(given) if is_given]
    differentiable = tuple(is_differentiable(meta.dtype) for meta in body.outputs)
    carry = carry_fixpoint(given, lambda mask: [n and d for n, d in zip(needed_inputs(body, mask)[:k], differentiable)])

    def step(*args: Tensor) -> list[Tensor]:
        outs = body(*args)
        return [*outs, *(outs[i] for i in outputs)]

    doubled = body.derive(("prefix and row", given), lambda: rewritten(step, body.inputs, "grad"))
    reads, marks = (*carry, *active), (*carry, *(True,) * len(outputs))
    part = partition(doubled, reads, marks, policy=_saves_nothing)
    return BackwardPlan(doubled, k, k, reads, marks, part)


def _saves_nothing(value: Value) -> bool:
    return False


def _of(
    prefixes: Callable[[AssociativeScanParams, Sequence[Tensor]], Sequence[Tensor]],
    params: AssociativeScanParams,
    active: Mask,
    operands: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    """The derivative of what computes the prefixes, which runs again; memory O(inputs)."""
    differentiable = [i for i, e in enumerate(operands[: params.n_leaves]) if is_differentiable(e.dtype)]

    def run(*xs: Tensor) -> tuple[Tensor, ...]:
        fresh = iter(xs)
        outs = prefixes(params, [next(fresh) if a else x for x, a in zip(operands, active)])
        return tuple(outs[i] for i in differentiable)

    outs, pull = torch.func.vjp(run, *(x for x, a in zip(operands, active) if a))  # type: ignore[misc]
    given = (cotangents[i] for i in differentiable)
    grads = iter(pull(tuple(torch.zeros_like(o) if ct is None else ct for o, ct in zip(outs, given))))
    return [next(grads) if a else None for a in active]
