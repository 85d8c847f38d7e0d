"""Unused leaves of an associative_scan: they may feed the others, so all stay."""

from __future__ import annotations

from ...ir.dependence import Pruned
from ...ir.meta import Mask
from ...ir.subgraph import StaticParameters

__all__ = ["associative_scan_prune"]


def associative_scan_prune(static: StaticParameters, used: Mask) -> Pruned | None:
    return None
