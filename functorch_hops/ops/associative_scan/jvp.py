"""jvp of associative_scan: through its operators, at the level that asks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...capture.subgraph import StaticParameters
from .eager import associative_scan_run
from .reached import associative_scan_reached

__all__ = ["associative_scan_jvp"]


def associative_scan_jvp(
    static: StaticParameters, primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    active = [i for i, t in enumerate(tangents) if t is not None]
    reached = associative_scan_reached(static, tuple(t is not None for t in tangents), "tangent")
    if not any(reached):
        return associative_scan_run(static, primals), [None] * len(reached)

    def run(*moving: Tensor) -> tuple[Tensor, ...]:
        operands = list(primals)
        for i, x in zip(active, moving):
            operands[i] = x
        return tuple(associative_scan_run(static, operands))

    given = tuple(t for t in tangents if t is not None)
    outs, tangents_out = torch.func.jvp(run, tuple(primals[i] for i in active), given)  # type: ignore[misc]
    return outs, [t if r else None for t, r in zip(tangents_out, reached)]
