"""What reaches which outputs of an associative_scan: elements combine with one another, any number of times."""

from __future__ import annotations

from ...capture.subgraph import Mask, StaticParameters
from ..scan.carry import carry_fixpoint

__all__ = ["associative_scan_reached"]


def associative_scan_reached(static: StaticParameters, sources: Mask, by: str) -> Mask:
    """Derivatives reach the leaves that the operator computes from active ones; a batch is one of all leaves."""
    (body,) = static.bodies
    k = static["n_leaves"]
    if by in ("value", "lane"):
        return (any(sources) or (by == "lane" and static.random),) * k
    return carry_fixpoint(sources[:k], lambda leaves: body.reached((*leaves, *leaves, *sources[k:]), by=by))
