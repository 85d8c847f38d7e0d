"""Which outputs of a scan depend on which operands: through the carry, over any number of steps."""

from __future__ import annotations

from ...ir.dependence import Through, dependent_outputs
from ...ir.meta import Mask
from ..loops.carry import carry_fixpoint
from .op import ScanParams

__all__ = ["scan_dependent_outputs"]


def scan_dependent_outputs(params: ScanParams, sources: Mask, through: Through) -> Mask:
    body = params.body
    n = params.n_carry
    _, *rest = sources
    init, fixed = rest[:n], rest[n:]
    carry = carry_fixpoint(init, lambda c: dependent_outputs(body, (*c, *fixed), through)[:n])
    return (*carry, *dependent_outputs(body, (*carry, *fixed), through)[n:])
