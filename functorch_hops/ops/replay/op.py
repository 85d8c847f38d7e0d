"""``replay``: a graph that draws random numbers, as a function of the generator's state."""

from __future__ import annotations

from dataclasses import dataclass

from ...hop.operator import Hop
from ...ir.subgraph import Params, Subgraph

__all__ = ["ReplayParams", "replay_op"]


@dataclass(frozen=True, eq=False)
class ReplayParams(Params):
    """Operands: the state of the generator, and those of the body. Outputs: the state after it, and those of the body.

    The generator itself is as before: called again, the body draws what it drew.
    """

    body: Subgraph

    @property
    def n_outputs(self) -> int:
        return 1 + len(self.body.outputs)

    @property
    def random(self) -> bool:
        return False


replay_op = Hop("replay", ReplayParams)
