"""jvp of scan: a scan over (primal, tangent) pairs; a carry that gets a tangent on the way has one from the start."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...ir.dependence import Through
from ..loops.pairs import pair_carry
from .dependence import scan_dependent_outputs
from .op import ScanParams, scan_op, split_operands

__all__ = ["scan_jvp"]


def scan_jvp(
    params: ScanParams, primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    body = params.body
    n, m = params.n_carry, params.n_xs
    length, init, xs, consts = split_operands(params, primals)
    _, init_t, xs_t, consts_t = split_operands(params, tangents)
    fixed = tuple(t is not None for t in (*xs_t, *consts_t))
    carry_active = scan_dependent_outputs(params, tuple(t is not None for t in tangents), Through.TANGENT)[:n]
    pair_body, reached = pair_carry(body, n, m, (*carry_active, *fixed))
    k = sum(carry_active)
    init_t = [torch.zeros_like(c) if t is None else t for c, t, a in zip(init, init_t, carry_active) if a]
    xs_t, consts_t = [t for t in xs_t if t is not None], [t for t in consts_t if t is not None]
    outs = scan_op(
        ScanParams(pair_body, n + k, m + len(xs_t), params.reverse),
        length,
        *init,
        *init_t,
        *xs,
        *xs_t,
        *consts,
        *consts_t,
    )
    n_ys = len(body.outputs) - n
    ys = outs[n + k : n + k + n_ys]
    found = iter((*outs[n : n + k], *outs[n + k + n_ys :]))
    return [*outs[:n], *ys], [next(found) if r else None for r in reached]
