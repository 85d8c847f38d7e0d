"""Which outputs of an associative_scan depend on which operands: all on each, since elements combine."""

from __future__ import annotations

from ...ir.dependence import Through
from ...ir.meta import Mask
from ...ir.subgraph import StaticParameters

__all__ = ["associative_scan_dependent_outputs"]


def associative_scan_dependent_outputs(static: StaticParameters, sources: Mask, through: Through) -> Mask:
    is_random = through is Through.LANE and static.random
    return (is_random or any(sources),) * static["n_outputs"]
