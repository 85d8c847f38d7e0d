"""vmap of associative_scan: batch the combining function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ...derive.batch import batched
from ...ir.meta import Mask
from ..lanes import expand_lanes
from .op import AssociativeScanParams, associative_scan_op

__all__ = ["associative_scan_batch"]


def associative_scan_batch(
    params: AssociativeScanParams, operands: Sequence[Tensor], mapped: Mask, size: int, randomness: str
) -> tuple[Sequence[Tensor], Mask]:
    body = params.body
    k = params.n_leaves
    everywhere = (True,) * k
    body, _ = batched(body, (*everywhere, *everywhere, *mapped[k:]), size, randomness, everywhere)
    elems = [x if m else expand_lanes(x, size) for x, m in zip(operands[:k], mapped)]
    outs = associative_scan_op(replace(params, body=body), *(e.movedim(0, 1) for e in elems), *operands[k:])
    return [o.movedim(1, 0) for o in outs], everywhere * params.copies
