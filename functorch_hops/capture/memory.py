"""Which values of a graph share memory."""

from __future__ import annotations

import operator

import torch
from torch import fx

from .._torch import OpOverload
from .subgraph import untracked

__all__ = ["is_copy", "is_view", "is_view_operator", "keep_apart", "memory_of", "origin_of"]


def is_view(node: fx.Node) -> bool:
    """Whether the result, or one of them, may share memory with the first operand."""
    target = node.target
    if target in (torch.ops.aten.reshape.default, torch.ops.aten.detach.default, untracked) or _is_name(node):
        return True
    return is_view_operator(target)


def is_view_operator(target: object) -> bool:
    """Whether it is an operator of torch whose results share memory with an operand, and writes nothing."""
    if not isinstance(target, OpOverload) or target._schema.is_mutable:
        return False
    return any(returned.alias_info is not None for returned in target._schema.returns)


def _is_name(node: fx.Node) -> bool:
    """Whether it is ``checkpoint_name``: an operator, whose first argument are its static parameters."""
    return getattr(node.target, "label", None) == "checkpoint_name"


def memory_of(node: fx.Node) -> fx.Node:
    """The node that made the memory of a value."""
    while True:
        source = node.args[_is_name(node)] if node.args else None
        if not isinstance(source, fx.Node) or not (is_view(node) or _is_element_of_view(node, source)):
            return node
        node = source


def _is_element_of_view(node: fx.Node, source: fx.Node) -> bool:
    return node.target is operator.getitem and is_view(source)


def is_copy(node: fx.Node) -> bool:
    return node.target is torch.ops.aten.clone.default and not node.kwargs


def origin_of(node: fx.Node) -> fx.Node:
    """The value without the copies of it."""
    while is_copy(node):
        node = node.args[0]  # type: ignore[assignment]
    return node


def keep_apart(output: fx.Node) -> None:
    """Copy the outputs that share memory with an input or another output (NOTE [Subgraph invariants]), no others."""
    taken = {node for node in output.graph.nodes if node.op == "placeholder"}
    results: list[fx.Node] = []
    for node in output.args[0]:  # type: ignore[union-attr]
        assert isinstance(node, fx.Node)
        value = origin_of(node)
        memory = memory_of(value)
        if memory not in taken:
            node = value
        elif node is value or node in results:
            node = _copied(value, output)
        taken.add(memory)
        results.append(node)
    output.args = (tuple(results),)


def _copied(value: fx.Node, before: fx.Node) -> fx.Node:
    graph = before.graph
    with graph.inserting_before(before):
        copy = graph.create_node("call_function", torch.ops.aten.clone.default, (value,), name="clone")
    copy.meta["val"] = value.meta["val"]
    return copy
