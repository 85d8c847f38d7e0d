"""Which values of a graph share memory."""

from __future__ import annotations

import operator

import torch
from torch import fx

from .._torch import OpOverload
from .nodes import packed, untracked

__all__ = ["base_of", "dealias_outputs", "is_copy", "is_view", "is_view_operator", "without_copies"]


_VIEWS = (torch.ops.aten.reshape.default, torch.ops.aten.detach.default, packed, untracked)
"""What gives a view, or may give one, and does not say so."""


def is_view(node: fx.Node) -> bool:
    """Whether the result, or one of them, may share memory with the first operand."""
    target = node.target
    return target in _VIEWS or _is_name(node) or is_view_operator(target)


def is_view_operator(target: object) -> bool:
    """Whether it is an operator of torch whose results share memory with an operand, and writes nothing."""
    if not isinstance(target, OpOverload) or target._schema.is_mutable:
        return False
    return any(returned.alias_info is not None for returned in target._schema.returns)


def _is_name(node: fx.Node) -> bool:
    """Whether it names its operand (``checkpoint_name``), which then follows the operator's parameters."""
    return getattr(node.target, "names_operand", False)


def base_of(node: fx.Node) -> fx.Node:
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


def without_copies(node: fx.Node) -> fx.Node:
    """The value without the copies of it."""
    while is_copy(node):
        node = node.args[0]  # type: ignore[assignment]
    return node


def dealias_outputs(output: fx.Node) -> None:
    """Copy the outputs that share memory with an input or another output (NOTE [Subgraph invariants]), no others."""
    taken = {node for node in output.graph.nodes if node.op == "placeholder"}
    results: list[fx.Node] = []
    for node in output.args[0]:  # type: ignore[union-attr]
        assert isinstance(node, fx.Node)
        value = without_copies(node)
        memory = base_of(value)
        if memory not in taken:
            node = value
        elif node is value or node in results:
            node = _copy_before(value, output)
        taken.add(memory)
        results.append(node)
    output.args = (tuple(results),)


def _copy_before(value: fx.Node, before: fx.Node) -> fx.Node:
    graph = before.graph
    with graph.inserting_before(before):
        copy = graph.create_node("call_function", torch.ops.aten.clone.default, (value,), name="clone")
    copy.meta["val"] = value.meta["val"]
    return copy
