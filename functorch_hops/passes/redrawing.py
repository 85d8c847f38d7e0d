"""Loops of unknown length that draw random numbers, so that they may run again: see what the rule ``redraw`` makes."""

from __future__ import annotations

from ..ir.build import copy_of, replace_call
from ..ir.origin import made_for
from ..ir.subgraph import Params, Subgraph, params_of
from .cleaning import clean

__all__ = ["not_redrawn", "redrawing_loops"]


def not_redrawn(params: Params) -> None:
    """The redraw rule of an operator whose random numbers can be kept."""


def redrawing_loops(body: Subgraph) -> Subgraph:
    """The graph with its loops redrawn; not those in bodies, which keep what they draw by themselves."""
    return body.derive("redrawing loops", lambda: _redrawing_loops(body))


def _redrawing_loops(body: Subgraph) -> Subgraph:
    module = copy_of(body)
    for node in [n for n in module.graph.nodes if params_of(n, module) is not None]:
        params = params_of(node, module)
        assert params is not None
        with made_for(params.origin):
            replacement: Subgraph | None = node.target.rules.redraw(params)
        if replacement is not None:
            replace_call(node, replacement, module)
    clean(module)
    return Subgraph.intern(module, body.inputs, body.outputs)
