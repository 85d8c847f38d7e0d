"""The call of a closed, compiled graph: what ``jit`` puts in the place of the user's function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from ...hop.autograd import is_augmented
from ...hop.operator import Hop
from ...ir.meta import Mask
from ...ir.origin import made_for
from ...ir.subgraph import Params, Subgraph, params_of
from ...lowering.backends import Backend
from ...lowering.loops.forms import Refused, While
from ...passes.effects import may_run_again

__all__ = [
    "ClosedCallParams",
    "DeferredCallParams",
    "TapedCallParams",
    "closed_call_op",
    "deferred",
    "deferred_call_op",
    "gradients_returned",
    "taped_call_op",
]


@dataclass(frozen=True, eq=False)
class ClosedCallParams(Params):
    """The graph, and the backend that compiles it. Operands and outputs: those of the body. ``differentiated``: by
    which operands the body differentiates, or is part of a derivative; empty where that is not known, or a derivative
    of it is expected.
    """

    body: Subgraph
    backend: Backend
    differentiated: Mask = ()

    @classmethod
    def of(cls, body: Subgraph, backend: Backend, differentiated: Mask = ()) -> ClosedCallParams:
        """The parameters for this graph and backend, one object for all calls."""
        key = ("closed call", backend, differentiated)
        return body.derive(key, lambda: ClosedCallParams(body, backend, differentiated))

    @property
    def n_outputs(self) -> int:
        return len(self.body.outputs)

    def steady(self, operands: Sequence[Any]) -> Sequence[Any]:
        return operands

    @property
    def public_name(self) -> str:
        return "jit" if self.origin is None else self.origin.function

    def recorded(self, active: Mask) -> ClosedCallParams:
        saving = self.saving()
        is_late = self.is_differentiated_again(active) and not is_augmented(saving, active)
        return deferred(self) if is_late else saving

    def is_differentiated_again(self, active: Mask) -> bool:
        """Whether it is as in NOTE [Gradients of gradients are late], for these operands with gradients."""
        return any(d and a for d, a in zip(self.differentiated, active)) and self.may_be_deferred

    @property
    def may_be_deferred(self) -> bool:
        """Whether what is asked for later can be computed then."""
        return self.body.shape_env is None and may_run_again(self.body)

    def saving(self) -> ClosedCallParams:
        """The call as plain autograd remembers it where a backward pass is to be expected."""
        return self.derive("saving", lambda: _saving(self))


class TapedCallParams(ClosedCallParams):
    """The call as plain autograd remembers it: see NOTE [Tapes as residuals]."""


class DeferredCallParams(ClosedCallParams):
    """The call as plain autograd remembers it: see NOTE [Gradients of gradients are late]."""

    def recorded(self, active: Mask) -> ClosedCallParams:
        return self.call().recorded(active)

    def transformed(self, active: Mask) -> ClosedCallParams:
        call = self.call()
        return call if is_augmented(call, active) else self

    def call(self) -> ClosedCallParams:
        """What it stands for."""
        return ClosedCallParams.of(self.body, self.backend, self.differentiated)


def gradients_returned(body: Subgraph, differentiated: Mask) -> Mask:
    """By which operands a function of the user's differentiates, if it returns as much as the gradients are."""
    by = (meta for meta, d in zip(body.inputs, differentiated) if d)
    is_less = sum(meta.nbytes for meta in body.outputs) < sum(meta.nbytes for meta in by)
    return () if is_less else differentiated


def deferred(params: ClosedCallParams) -> DeferredCallParams:
    return params.derive("deferred", lambda: _deferred(params))


def _deferred(params: ClosedCallParams) -> DeferredCallParams:
    with made_for(params.origin):
        return DeferredCallParams(params.body, params.backend, params.differentiated)


def _saving(params: ClosedCallParams) -> ClosedCallParams:
    module = params.body.module
    may_tape = params.backend.name == "inductor" and any(_is_while(node, module) for node in module.graph.nodes)
    with made_for(params.origin):
        return TapedCallParams(params.body, params.backend, params.differentiated) if may_tape else params


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
deferred_call_op: Hop[ClosedCallParams] = Hop("deferred_call", DeferredCallParams)
taped_call_op: Hop[ClosedCallParams] = Hop("taped_call", TapedCallParams)
