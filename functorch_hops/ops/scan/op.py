"""``scan``: one operator for every loop whose trip count is known when it starts (``fori_loop`` and ``map`` included).

Static parameters: the body ``(carry..., x..., consts...) -> (carry..., y...)``, ``n_carry``, ``n_xs``, ``reverse``.
Operands: the length, the initial carry, the xs with time at dimension 0, and the constants. Outputs: the final carry,
the stacked ys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ...hop.operator import Hop
from ...ir.subgraph import StaticParameters, Subgraph

__all__ = ["Operands", "scan_op", "scan_static", "split_operands"]

scan_op = Hop("scan")


class Operands(NamedTuple):
    length: Any
    init: Sequence[Any]
    xs: Sequence[Any]
    consts: Sequence[Any]


def scan_static(body: Subgraph, n_carry: int, n_xs: int, reverse: bool) -> StaticParameters:
    return StaticParameters("scan", [body], n_carry=n_carry, n_xs=n_xs, reverse=reverse, n_outputs=len(body.outputs))


def split_operands(static: StaticParameters, operands: Sequence[Any]) -> Operands:
    """Operands (or a mask of them) by their part."""
    n, m = static["n_carry"], static["n_xs"]
    length, *rest = operands
    return Operands(length, rest[:n], rest[n : n + m], rest[n + m :])
