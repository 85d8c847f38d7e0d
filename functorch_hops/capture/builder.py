"""Graphs assembled from nodes of other graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import fx

from .._torch import new_graph_module
from .memory import keep_apart
from .passes import clean
from .subgraph import StaticParameters, Subgraph, TensorMeta

__all__ = ["Builder", "copy_nodes", "meta_of"]


class Builder:
    """A graph made of nodes of another one, in their order (random operators draw in it)."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.graph = fx.Graph()
        self.new: dict[fx.Node, fx.Node] = {}
        self.inputs: list[TensorMeta] = []

    def placeholder(self, old: fx.Node, meta: TensorMeta) -> None:
        new = self.graph.placeholder(f"arg{len(self.inputs)}")
        new.meta = dict(old.meta)
        self.new[old] = new
        self.inputs.append(meta)

    def finish(self, outputs: Sequence[fx.Node], also: Sequence[fx.Node] = ()) -> Subgraph:
        """Close the graph over the values of these nodes, those copied that share memory with an input or another.

        Nodes in ``also`` are kept without being outputs.
        """
        self._copy_ancestors([*outputs, *also])
        output = self.graph.output(tuple(self.new[node] for node in outputs))
        keep_apart(output)
        module = new_graph_module(self.module, self.graph)
        clean(module)
        return Subgraph.intern(module, self.inputs, [meta_of(n) for n in outputs])

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


def copy_nodes(
    body: Subgraph, inputs: Sequence[fx.Node], graph: fx.Graph, add_static: Callable[[StaticParameters], fx.Node]
) -> list[fx.Node]:
    """Append the nodes of a body to a graph, these nodes in the place of its inputs; returns those of its outputs."""
    placeholders = iter(inputs)
    new: dict[fx.Node, fx.Node] = {}
    for node in body.module.graph.nodes:
        if node.op == "placeholder":
            new[node] = next(placeholders)
        elif node.op == "get_attr":
            new[node] = add_static(getattr(body.module, str(node.target)))
        elif node.op != "output":
            new[node] = graph.node_copy(node, new.__getitem__)
    return [new[node] for node in body.output_nodes()]


def meta_of(node: fx.Node) -> TensorMeta:
    return TensorMeta.of(node.meta["val"])
