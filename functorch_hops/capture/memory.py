"""Which values of a graph share memory."""

from __future__ import annotations

import operator

import torch
from torch import fx

from .._torch import OpOverload
from .subgraph import untracked

__all__ = ["is_view", "keep_apart", "memory_of"]


def is_view(node: fx.Node) -> bool:
    """Whether the result may share memory with the first argument."""
    target = node.target
    if target in (torch.ops.aten.reshape.default, torch.ops.aten.detach.default, untracked):
        return True
    if not isinstance(target, OpOverload) or target._schema.is_mutable:
        return False
    return any(returned.alias_info is not None for returned in target._schema.returns)


def memory_of(node: fx.Node) -> fx.Node:
    """The node that made the memory of a value."""
    while True:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or not (is_view(node) or _is_element_of_view(node, source)):
            return node
        node = source


def _is_element_of_view(node: fx.Node, source: fx.Node) -> bool:
    return node.target is operator.getitem and is_view(source)


def keep_apart(output: fx.Node) -> None:
    """Copy the outputs that share memory with an input or another output (see NOTE [Subgraph invariants])."""
    graph = output.graph
    taken = {node for node in graph.nodes if node.op == "placeholder"}
    results = []
    for node in output.args[0]:  # type: ignore[union-attr]
        assert isinstance(node, fx.Node)
        memory = memory_of(node)
        if memory in taken:
            with graph.inserting_before(output):
                copy = graph.call_function(torch.ops.aten.clone.default, (node,))
            copy.meta["val"] = node.meta["val"]
            node = copy
        taken.add(memory)
        results.append(node)
    output.args = (tuple(results),)
