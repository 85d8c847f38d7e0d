"""vmap of scan: batch the body; a carry that the body turns into a batched one is batched from the start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ...derive.batch import batched
from ...ir.dependence import Through
from ...ir.meta import Mask
from ..lanes import expand_lanes
from .dependence import scan_dependent_outputs
from .op import ScanParams, scan_op, split_operands

__all__ = ["scan_batch"]


def scan_batch(
    params: ScanParams, operands: Sequence[Tensor], mapped: Mask, size: int, randomness: str
) -> tuple[Sequence[Tensor], Mask]:
    body = params.body
    n = params.n_carry
    length, init, xs, consts = split_operands(params, operands)
    _, init_mapped, xs_mapped, consts_mapped = split_operands(params, mapped)
    through = Through.of_vmap(randomness)
    carry_mapped = scan_dependent_outputs(params, mapped, through)[:n]
    at_carry = (*carry_mapped, *(False,) * (len(body.outputs) - n))
    new_body, out = batched(body, (*carry_mapped, *xs_mapped, *consts_mapped), size, randomness, at_carry)
    outs = scan_op(
        replace(params, body=new_body),
        length,
        *(expand_lanes(c, size) if m and not was else c for c, m, was in zip(init, carry_mapped, init_mapped)),
        *(x.movedim(0, 1) if m else x for x, m in zip(xs, xs_mapped)),
        *consts,
    )
    ys = (y.movedim(1, 0) if m else y for y, m in zip(outs[n:], out[n:]))
    return [*outs[:n], *ys], out
