"""The call of a closed, compiled graph: what ``jit`` puts in the place of the user's function."""

from __future__ import annotations

from dataclasses import dataclass

from ...hop.operator import Hop
from ...ir.subgraph import Params, Subgraph
from ...lowering.backends import Backend

__all__ = ["ClosedCallParams", "closed_call_op"]


@dataclass(frozen=True, eq=False)
class ClosedCallParams(Params):
    """The graph, and the backend that compiles it. Operands and outputs: those of the body."""

    body: Subgraph
    backend: Backend

    @classmethod
    def of(cls, body: Subgraph, backend: Backend) -> ClosedCallParams:
        """The parameters for this graph and backend, one object for all calls."""
        return body.derive(("closed call", backend), lambda: cls(body, backend))

    @property
    def n_outputs(self) -> int:
        return len(self.body.outputs)


closed_call_op = Hop("closed_call", ClosedCallParams)
