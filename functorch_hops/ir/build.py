"""Graphs assembled from nodes of other graphs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from .._torch import new_graph_module
from .meta import TensorMeta
from .subgraph import StaticParameters, Subgraph

__all__ = ["Builder", "add_static", "copy_nodes", "copy_of", "merge_lifted", "with_inputs"]


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


def copy_of(body: Subgraph) -> fx.GraphModule:
    """The graph of a body, to be changed."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(body.module.graph, {}))
    return new_graph_module(body.module, graph)


def add_static(module: torch.nn.Module, graph: fx.Graph, static: StaticParameters) -> fx.Node:
    """A ``get_attr`` node for static parameters, at the place where the graph inserts nodes now."""
    names = (f"{static.hop}_{i}" for i in itertools.count())
    name = next(name for name in names if not hasattr(module, name))
    module.register_module(name, static)
    return graph.get_attr(name)


def copy_nodes(body: Subgraph, inputs: Sequence[fx.Node], module: torch.nn.Module, graph: fx.Graph) -> list[fx.Node]:
    """Insert the nodes of a body into a graph, these nodes in the place of its inputs; returns those of its outputs."""
    placeholders = iter(inputs)
    new: dict[fx.Node, fx.Node] = {}
    for node in body.module.graph.nodes:
        if node.op == "placeholder":
            new[node] = next(placeholders)
        elif node.op == "get_attr":
            new[node] = add_static(module, graph, getattr(body.module, str(node.target)))
        elif node.op != "output":
            new[node] = graph.node_copy(node, new.__getitem__)
    return [new[node] for node in body.output_nodes()]


def with_inputs(body: Subgraph, places: Sequence[int], inputs: Sequence[TensorMeta]) -> Subgraph:
    """The same graph over other inputs, of which its own j-th is the one at ``places[j]``; it ignores the rest."""
    if list(places) == list(range(len(inputs))):
        return body
    graph = fx.Graph()
    placeholders = [graph.placeholder(f"arg{i}") for i in range(len(inputs))]
    new: dict[fx.Node, fx.Node] = {}
    own = iter(places)
    for node in body.module.graph.nodes:
        if node.op == "placeholder":
            new[node] = placeholders[next(own)]
            new[node].meta = dict(node.meta)
        elif node.op == "output":
            graph.output(tuple(new[n] for n in body.output_nodes()))
        else:
            new[node] = graph.node_copy(node, new.__getitem__)
    return Subgraph.intern(fx.GraphModule(body.module, graph), inputs, body.outputs)


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
    bodies = [_with_inputs(body, n_inputs, [places[id(t)] for t in lifted], metas) for body, lifted in captured]
    return bodies, union


def _with_inputs(body: Subgraph, n_inputs: int, places: list[int], metas: list[TensorMeta]) -> Subgraph:
    if places == list(range(len(metas))):
        return body
    graph = fx.Graph()
    inputs = [*body.inputs[:n_inputs], *metas]
    new = [graph.placeholder(f"arg{i}") for i in range(len(inputs))]
    mapped: dict[fx.Node, fx.Node] = {}
    old_places = [*range(n_inputs), *(n_inputs + p for p in places)]
    for node in body.module.graph.nodes:
        if node.op == "placeholder":
            target = new[old_places[len(mapped)]]
            target.meta = dict(node.meta)
            mapped[node] = target
        elif node.op == "output":
            graph.output(tuple(mapped[n] for n in node.args[0]))
        else:
            mapped[node] = graph.node_copy(node, mapped.__getitem__)
    for placeholder, meta in zip(new, inputs):
        placeholder.meta.setdefault("val", meta)
    return Subgraph.intern(new_graph_module(body.module, graph), inputs, body.outputs)
