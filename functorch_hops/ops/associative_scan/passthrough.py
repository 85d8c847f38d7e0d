"""Each element of an associative_scan is combined with others: nothing only passes through."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from .op import AssociativeScanParams

__all__ = ["associative_scan_passthrough"]


def associative_scan_passthrough(params: AssociativeScanParams, operands: Sequence[Hashable]) -> None:
    """Leaves that are equal as operands need not be so as results."""
