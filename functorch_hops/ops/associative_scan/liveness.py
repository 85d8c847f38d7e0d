"""Unused leaves of an associative_scan: they may feed the others, so all stay."""

from __future__ import annotations

from ...ir.dependence import Pruned
from ...ir.meta import Mask
from .op import AssociativeScanParams

__all__ = ["associative_scan_prune"]


def associative_scan_prune(params: AssociativeScanParams, used: Mask) -> Pruned[AssociativeScanParams] | None:
    return None
