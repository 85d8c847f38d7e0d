"""vmap of associative_scan: batch the combining function."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...derive.batch import batched
from ...ir.meta import Mask
from ...ir.subgraph import StaticParameters
from ..lanes import expand_lanes
from .op import associative_scan_op, associative_static

__all__ = ["associative_scan_batch"]


def associative_scan_batch(
    static: StaticParameters, operands: Sequence[Tensor], mapped: Mask, size: int, randomness: str
) -> tuple[Sequence[Tensor], Mask]:
    (body,) = static.bodies
    k = static["n_leaves"]
    everywhere = (True,) * k
    body, _ = batched(body, (*everywhere, *everywhere, *mapped[k:]), size, randomness, everywhere)
    elems = [x if m else expand_lanes(x, size) for x, m in zip(operands[:k], mapped)]
    outs = associative_scan_op(associative_static(body, k), *(e.movedim(0, 1) for e in elems), *operands[k:])
    return [o.movedim(1, 0) for o in outs], everywhere
