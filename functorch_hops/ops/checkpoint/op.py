"""``checkpoint``: a call whose residuals are recomputed in reverse mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from ...derive.saving import Policy
from ...hop.operator import Hop
from ...ir.meta import Mask
from ...ir.subgraph import Params, Subgraph

__all__ = ["CheckpointParams", "checkpoint_op"]


@dataclass(frozen=True, eq=False)
class CheckpointParams(Params):
    """``policy``: what is saved. ``after_cotangents``: the operands for which the others must wait, see NOTE
    [Recomputation stays late]; the empty mask marks none.

    Operands and outputs: those of the body.
    """

    body: Subgraph
    policy: Policy
    after_cotangents: Mask = ()

    @property
    def n_outputs(self) -> int:
        return len(self.body.outputs)

    def steady(self, operands: Sequence[Any]) -> Sequence[Any]:
        return operands

    def in_parts(self, change: Callable[[Subgraph], Subgraph], is_complex: Mask) -> Self:
        after = tuple(a for a, twice in zip(self.after_cotangents, is_complex) for _ in range(1 + twice))
        return replace(self.with_bodies(change), after_cotangents=after)


checkpoint_op = Hop("checkpoint", CheckpointParams)
