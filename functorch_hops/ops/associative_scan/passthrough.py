"""Each element of an associative_scan is combined with others: nothing only passes through."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ...ir.subgraph import StaticParameters

__all__ = ["associative_scan_passthrough"]


def associative_scan_passthrough(static: StaticParameters, operands: Sequence[Hashable]) -> None:
    """Leaves that are equal as operands need not be so as results."""
