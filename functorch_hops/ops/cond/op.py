"""``cond`` and ``switch``: one operator that runs one of several branches.

Static parameters: ``bodies`` are the branches, all of one signature. Operands: the selector - a 0-d bool (False is
branch 0) or a 0-d int64 in range - then the branches' operands.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...hop.operator import Hop
from ...ir.subgraph import StaticParameters, Subgraph

__all__ = ["cond_op", "cond_static"]

cond_op = Hop("cond", body_names=("branch {}",))


def cond_static(branches: Sequence[Subgraph]) -> StaticParameters:
    return StaticParameters("cond", branches, n_outputs=len(branches[0].outputs))
