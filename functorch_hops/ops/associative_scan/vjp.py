"""vjp of associative_scan: the derivative of its O(log n) operators, recomputed from the operands; memory O(inputs)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...ir.meta import Mask, is_differentiable
from .eager import associative_scan_impl
from .op import AssociativeScanParams

__all__ = ["associative_scan_vjp_backward", "associative_scan_vjp_forward"]


def associative_scan_vjp_forward(params: AssociativeScanParams, active: Mask) -> AssociativeScanParams:
    return params


def associative_scan_vjp_backward(
    params: AssociativeScanParams,
    active: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    differentiable = [i for i, e in enumerate(operands[: params.n_leaves]) if is_differentiable(e.dtype)]

    def run(*xs: Tensor) -> tuple[Tensor, ...]:
        fresh = iter(xs)
        outs = associative_scan_impl(params, [next(fresh) if a else x for x, a in zip(operands, active)])
        return tuple(outs[i] for i in differentiable)

    outs, pull = torch.func.vjp(run, *(x for x, a in zip(operands, active) if a))  # type: ignore[misc]
    given = (cotangents[i] for i in differentiable)
    grads = iter(pull(tuple(torch.zeros_like(o) if ct is None else ct for o, ct in zip(outs, given))))
    return [next(grads) if a else None for a in active]
