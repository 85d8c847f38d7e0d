"""``associative_scan``: all prefix reductions with an associative function.

Static parameters: the body ``(a..., b..., consts...) -> c...`` on one element, ``n_leaves``. Operands: the elements at
dimension 0, the constants.
"""

from __future__ import annotations

from ...hop.operator import Hop
from ...ir.subgraph import StaticParameters, Subgraph

__all__ = ["associative_scan_op", "associative_static"]

associative_scan_op = Hop("associative_scan")


def associative_static(body: Subgraph, n_leaves: int) -> StaticParameters:
    return StaticParameters("associative_scan", [body], n_leaves=n_leaves, n_outputs=n_leaves)
