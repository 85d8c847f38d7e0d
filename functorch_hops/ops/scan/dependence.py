"""Which outputs of a scan depend on which operands: through the carry, over all steps."""

from __future__ import annotations

from ...ir.dependence import Through, dependent_outputs
from ...ir.meta import Mask
from ..loops.carry import carry_after, carry_fixpoint
from .op import ScanParams

__all__ = ["scan_dependent_outputs"]


def scan_dependent_outputs(params: ScanParams, sources: Mask, through: Through, trips: int | None = None) -> Mask:
    """The history of a loop of known length is that of its steps: a carry that they permute has that of one place."""
    body = params.body
    n = params.n_carry
    _, *rest = sources
    init, fixed = rest[:n], rest[n:]

    def step(carry: Mask) -> Mask:
        return dependent_outputs(body, (*carry, *fixed), through)

    if trips is None or not through.is_of_history:
        carry = carry_fixpoint(init, lambda c: step(c)[:n])
        return (*carry, *step(carry)[n:])
    carry, before = carry_after(init, lambda c: step(c)[:n], trips)
    return (*carry, *(step(before)[n:] if trips else [False] * (params.n_outputs - n)))
