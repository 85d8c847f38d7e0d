"""The call of a closed, compiled graph: what ``jit`` puts in the place of the user's function."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from ...hop.operator import Hop
from ...ir.origin import made_for
from ...ir.subgraph import Params, Subgraph, params_of
from ...lowering.backends import Backend
from ...lowering.loops.forms import Refused, While

__all__ = ["ClosedCallParams", "TapedCallParams", "closed_call_op", "taped_call_op"]


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

    @property
    def public_name(self) -> str:
        return "jit" if self.origin is None else self.origin.function

    def recorded(self) -> ClosedCallParams:
        return self.derive("recorded", lambda: _recorded(self))


class TapedCallParams(ClosedCallParams):
    """The call as plain autograd remembers it: see NOTE [Tapes as residuals]."""

    def recorded(self) -> TapedCallParams:
        return self


def _recorded(params: ClosedCallParams) -> ClosedCallParams:
    module = params.body.module
    may_tape = params.backend.name == "inductor" and any(_is_while(node, module) for node in module.graph.nodes)
    with made_for(params.origin):
        return TapedCallParams(params.body, params.backend) if may_tape else params


def _is_while(node: fx.Node, module: fx.GraphModule) -> bool:
    params = params_of(node, module)
    if params is None:
        return False
    try:
        operands = [x.meta["val"] if isinstance(x, fx.Node) else x for x in node.args[1:]]
        return isinstance(params.operator.rules.form(params, operands), While)
    except Refused:
        return False


closed_call_op = Hop("closed_call", ClosedCallParams)
taped_call_op: Hop[ClosedCallParams] = Hop("taped_call", TapedCallParams)
