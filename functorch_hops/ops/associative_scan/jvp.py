"""jvp of associative_scan: through its operators, at the level that asks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ... import _torch
from ...ir.dependence import Through
from .dependence import associative_scan_dependent_outputs
from .eager import associative_scan_impl
from .op import AssociativeScanParams

__all__ = ["associative_scan_jvp"]


def associative_scan_jvp(
    params: AssociativeScanParams, primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    active = [i for i, t in enumerate(tangents) if t is not None]
    reached = associative_scan_dependent_outputs(params, tuple(t is not None for t in tangents), Through.TANGENT)
    if not any(reached):
        return associative_scan_impl(params, primals), [None] * len(reached)

    def run(*xs: Tensor) -> tuple[Tensor, ...]:
        operands = list(primals)
        for i, x in zip(active, xs):
            operands[i] = x
        return tuple(associative_scan_impl(params, operands))

    given = tuple(t for t in tangents if t is not None)
    outs, tangents_out = _torch.jvp(run, tuple(primals[i] for i in active), given)
    return outs, [t if r else None for t, r in zip(tangents_out, reached)]
