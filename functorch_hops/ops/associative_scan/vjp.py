"""vjp of associative_scan: the derivative of its O(log n) operators, recomputed from the operands; memory O(inputs)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...capture.subgraph import Mask, StaticParameters, is_differentiable
from .eager import associative_scan_run

__all__ = ["associative_scan_augment", "associative_scan_pullback"]


def associative_scan_augment(static: StaticParameters, active: Mask) -> StaticParameters:
    return static


def associative_scan_pullback(
    static: StaticParameters,
    active: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    marked = [i for i, e in enumerate(operands[: static["n_leaves"]]) if is_differentiable(e.dtype)]

    def run(*moving: Tensor) -> tuple[Tensor, ...]:
        fresh = iter(moving)
        outs = associative_scan_run(static, [next(fresh) if a else x for x, a in zip(operands, active)])
        return tuple(outs[i] for i in marked)

    outs, pull = torch.func.vjp(run, *(x for x, a in zip(operands, active) if a))  # type: ignore[misc]
    given = (cotangents[i] for i in marked)
    grads = iter(pull(tuple(torch.zeros_like(o) if ct is None else ct for o, ct in zip(outs, given))))
    return [next(grads) if a else None for a in active]
