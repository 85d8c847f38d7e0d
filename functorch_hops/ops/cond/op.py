"""``cond`` and ``switch``: one operator that runs one of several branches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from ...hop.operator import Hop
from ...ir.meta import Mask
from ...ir.subgraph import Params, Subgraph

__all__ = ["CondParams", "cond_op"]


@dataclass(frozen=True, eq=False)
class CondParams(Params):
    """The branches, all of one signature.

    Operands: the selector - a 0-d bool (False is branch 0) or a 0-d int64 in range - then those of the branches.
    Outputs: those of the branch that is selected.
    """

    branches: tuple[Subgraph, ...]

    is_native = True

    @property
    def n_outputs(self) -> int:
        return len(self.branches[0].outputs)

    def steady(self, operands: Sequence[Any]) -> Sequence[Any]:
        return operands[1:]

    def in_parts(self, change: Callable[[Subgraph], Subgraph], is_complex: Mask) -> Self:
        return self.with_bodies(change)


cond_op = Hop("cond", CondParams, body_names=("branch {}",))
