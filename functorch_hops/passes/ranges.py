"""Ranges of a profile (``torch.profiler.record_function``) in graphs.

They are operators like any other, and happen where the operators of a graph are called one by one. A compiler merges
what is inside of a range with what is around it, and a program that is exported has no profile: there they go.
"""

from __future__ import annotations

import torch

from ..ir.build import add_params, copy_of
from ..ir.subgraph import Subgraph, params_of

__all__ = ["without_ranges"]

_OPERATORS = (
    torch.ops.profiler._record_function_exit._RecordFunction,
    torch.ops.profiler._record_function_enter_new.default,
)


def without_ranges(body: Subgraph) -> Subgraph:
    """The graph without ranges, those of its bodies included."""
    return body.derive("without ranges", lambda: _without_ranges(body)) if _has_ranges(body) else body


def _has_ranges(body: Subgraph) -> bool:
    nodes = body.module.graph.nodes
    calls = [params for node in nodes if (params := params_of(node, body.module)) is not None]
    return any(node.target in _OPERATORS for node in nodes) or any(
        _has_ranges(b) for call in calls for b in call.bodies
    )


def _without_ranges(body: Subgraph) -> Subgraph:
    module = copy_of(body)
    for node in reversed(module.graph.nodes):
        params = params_of(node, module)
        if node.target in _OPERATORS:
            module.graph.erase_node(node)
        elif params is not None and any(map(_has_ranges, params.bodies)):
            with module.graph.inserting_before(node):
                node.args = (add_params(module, module.graph, params.with_bodies(without_ranges)), *node.args[1:])
    return Subgraph.intern(module, body.inputs, body.outputs)
