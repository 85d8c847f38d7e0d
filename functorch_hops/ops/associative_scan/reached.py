"""What reaches which outputs of an associative_scan: all of them, since elements combine with one another."""

from __future__ import annotations

from ...capture.subgraph import Mask, StaticParameters

__all__ = ["associative_scan_reached"]


def associative_scan_reached(static: StaticParameters, sources: Mask, by: str) -> Mask:
    is_random = by == "lane" and static.random
    return (is_random or any(sources),) * static["n_outputs"]
