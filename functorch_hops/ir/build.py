"""Graphs assembled from nodes of other graphs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from .._torch import new_graph_module
from .meta import TensorMeta
from .subgraph import Params, Subgraph

__all__ = [
    "Builder",
    "add_params",
    "copy_graph",
    "copy_nodes",
    "copy_of",
    "merge_lifted",
    "replace_call",
    "with_inputs",
]


class Builder:
    """A graph made of nodes of another one, in their order (random operators draw in it)."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.graph = fx.Graph()
        self.new: dict[fx.Node, fx.Node] = {}
        self.inputs: list[TensorMeta] = []

    def placeholder(self, old: fx.Node | None, meta: TensorMeta) -> None:
        """The next input: the value of ``old`` in the other graph, or one that nothing reads."""
        new = self.graph.placeholder(f"arg{len(self.inputs)}")
        if old is not None:
            new.meta = dict(old.meta)
            self.new[old] = new
        self.inputs.append(meta)

    def stop_gradient(self, old: fx.Node) -> None:
        """Let no derivative look behind the value of this node."""
        self.new[old] = self.graph.call_function(torch.ops.aten.detach.default, (self.new[old],))
        self.new[old].meta["val"] = old.meta["val"]

    def finish(self, outputs: Sequence[fx.Node], also: Sequence[fx.Node] = ()) -> fx.GraphModule:
        """The graph that returns the values of these nodes. Nodes in ``also`` are kept without being outputs."""
        self._copy_ancestors([*outputs, *also])
        self.graph.output(tuple(self.new[node] for node in outputs))
        return new_graph_module(self.module, self.graph)

    def _copy_ancestors(self, roots: list[fx.Node]) -> None:
        needed: set[fx.Node] = set()
        while roots:
            node = roots.pop()
            if node not in needed and node not in self.new:
                needed.add(node)
                roots.extend(node.all_input_nodes)
        for node in self.module.graph.nodes:
            if node in needed:
                self.new[node] = self.graph.node_copy(node, self.new.__getitem__)


def copy_graph(body: Subgraph, new: dict[fx.Node, fx.Node] | None = None) -> fx.Graph:
    """The graph of a body once more; ``new`` is filled with its nodes."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(body.module.graph, {} if new is None else new))
    return graph


def copy_of(body: Subgraph) -> fx.GraphModule:
    """The graph of a body, to be changed."""
    return new_graph_module(body.module, copy_graph(body))


def add_params(module: torch.nn.Module, graph: fx.Graph, params: Params) -> fx.Node:
    """A ``get_attr`` node for parameters, at the place where the graph inserts nodes now."""
    names = (f"{params.operator.label}_{i}" for i in itertools.count())
    name = next(name for name in names if not hasattr(module, name))
    setattr(module, name, params)
    return graph.create_node("get_attr", name)


def copy_nodes(body: Subgraph, inputs: Sequence[fx.Node], module: torch.nn.Module, graph: fx.Graph) -> list[fx.Node]:
    """Insert the nodes of a body into a graph, these nodes in the place of its inputs; returns those of its outputs."""
    placeholders = iter(inputs)
    new: dict[fx.Node, fx.Node] = {}
    for node in body.module.graph.nodes:
        if node.op == "placeholder":
            new[node] = next(placeholders)
        elif node.op == "get_attr":
            new[node] = add_params(module, graph, getattr(body.module, str(node.target)))
        elif node.op != "output":
            new[node] = graph.node_copy(node, new.__getitem__)
    return [new[node] for node in body.output_nodes()]


def replace_call(node: fx.Node, body: Subgraph, module: torch.nn.Module) -> None:
    """Put a graph over the tensors of an operator's call in the place of that call."""
    graph = node.graph
    with graph.inserting_before(node):
        outputs = copy_nodes(body, [a for a in node.args[1:] if isinstance(a, fx.Node)], module, graph)
    for user in list(node.users):
        user.replace_all_uses_with(outputs[int(user.args[1])])  # type: ignore[arg-type]
        graph.erase_node(user)
    graph.erase_node(node)


def with_inputs(body: Subgraph, places: Sequence[int], inputs: Sequence[TensorMeta]) -> Subgraph:
    """The same graph over other inputs, of which its own j-th is the one at ``places[j]``; it ignores the rest."""
    if list(places) == list(range(len(inputs))):
        return body
    graph = fx.Graph()
    placeholders = [graph.placeholder(f"arg{i}") for i in range(len(inputs))]
    new: dict[fx.Node, fx.Node] = {}
    for node, place in zip(body.input_nodes(), places, strict=True):
        placeholders[place].meta = dict(node.meta)
        new[node] = placeholders[place]
    outputs = graph.graph_copy(body.module.graph, new)
    graph.output(outputs)
    return Subgraph.intern(new_graph_module(body.module, graph), inputs, body.outputs)


def merge_lifted(
    captured: Sequence[tuple[Subgraph, list[Tensor]]], n_inputs: int
) -> tuple[list[Subgraph], list[Tensor]]:
    """Give captured bodies, which agree in their first ``n_inputs`` inputs, the same lifted inputs in the same
    order.
    """
    places: dict[int, int] = {}
    union: list[Tensor] = []
    for _, lifted in captured:
        for t in lifted:
            if id(t) not in places:
                places[id(t)] = len(union)
                union.append(t)
    metas: list[TensorMeta] = [None] * len(union)  # type: ignore[list-item]
    for body, lifted in captured:
        for t, meta in zip(lifted, body.inputs[n_inputs:]):
            metas[places[id(t)]] = meta
    own = range(n_inputs)
    bodies = [
        with_inputs(body, [*own, *(n_inputs + places[id(t)] for t in lifted)], [*body.inputs[:n_inputs], *metas])
        for body, lifted in captured
    ]
    return bodies, union
