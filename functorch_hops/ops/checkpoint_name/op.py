"""``checkpoint_name``: a value under a name, for policies.

An operator of its own, because vmap, jvp and grad rewrite graphs: whatever they make of the value has the name too. It
computes nothing, and is gone in the graphs that compilers see.

Static parameters: ``name``. Operand and output: one tensor.
"""

from __future__ import annotations

from ...hop.operator import Hop
from ...ir.subgraph import StaticParameters

__all__ = ["checkpoint_name_op", "checkpoint_name_static"]

checkpoint_name_op = Hop("checkpoint_name", names_operand=True)


def checkpoint_name_static(name: str) -> StaticParameters:
    return StaticParameters("checkpoint_name", [], name=name, n_outputs=1)
