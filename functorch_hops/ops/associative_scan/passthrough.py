"""Each element of an associative_scan is combined with others: only the copies of the prefixes are there already."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

from ...passes.passthrough import SimplifiedCall, Source
from .op import AssociativeScanParams

__all__ = ["associative_scan_passthrough"]


def associative_scan_passthrough(
    params: AssociativeScanParams, operands: Sequence[Hashable]
) -> SimplifiedCall[AssociativeScanParams] | None:
    """Leaves that are equal as operands need not be so as results."""
    if params.copies == 1:
        return None
    outputs = tuple(Source("output", i) for i in range(params.n_leaves)) * params.copies
    return SimplifiedCall(replace(params, copies=1), tuple(range(len(operands))), outputs)
