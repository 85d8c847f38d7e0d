"""``checkpoint_name``: a value under a name, for policies.

An operator of its own, because vmap, jvp and grad rewrite graphs: whatever they make of the value has the name too. It
computes nothing, and is gone in the graphs that compilers see.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...hop.operator import Hop
from ...ir.subgraph import Params

__all__ = ["CheckpointNameParams", "checkpoint_name_op"]


@dataclass(frozen=True, eq=False)
class CheckpointNameParams(Params):
    """Operand and output: one tensor."""

    name: str

    @property
    def n_outputs(self) -> int:
        return 1

    @property
    def operand_name(self) -> str:
        return self.name


checkpoint_name_op = Hop("checkpoint_name", CheckpointNameParams, names_operand=True)
