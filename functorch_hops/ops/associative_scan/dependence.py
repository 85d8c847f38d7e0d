"""Which outputs of an associative_scan depend on which operands: elements combine with one another many times over."""

from __future__ import annotations

from ...ir.dependence import Through, dependent_outputs
from ...ir.meta import Mask
from ..loops.carry import carry_fixpoint
from .op import AssociativeScanParams

__all__ = ["associative_scan_dependent_outputs"]


def associative_scan_dependent_outputs(
    params: AssociativeScanParams, sources: Mask, through: Through, trips: int | None = None
) -> Mask:
    """Derivatives reach the leaves that the operator computes from active ones; a batch is one of all leaves."""
    body = params.body
    k = params.n_leaves
    if through.is_of_values:
        return (any(sources) or (through is Through.LANE and params.draws),) * params.n_outputs
    reached = carry_fixpoint(
        sources[:k], lambda leaves: dependent_outputs(body, (*leaves, *leaves, *sources[k:]), through)
    )
    return reached * params.copies
