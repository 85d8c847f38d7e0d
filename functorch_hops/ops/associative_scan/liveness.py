"""Unused leaves of an associative_scan: they may feed the others, so all stay."""

from __future__ import annotations

from ...capture.liveness import Pruned
from ...capture.subgraph import Mask, StaticParameters

__all__ = ["associative_scan_prune"]


def associative_scan_prune(static: StaticParameters, used: Mask) -> Pruned | None:
    return None
