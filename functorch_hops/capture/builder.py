"""Graphs assembled from nodes of other graphs."""

from __future__ import annotations

import torch
from torch import fx

from .subgraph import Subgraph, TensorMeta

__all__ = ["Builder", "meta_of"]


class Builder:
    """A graph assembled from nodes of another one."""

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

    def value(self, old: fx.Node) -> fx.Node:
        todo = [old]
        while todo:
            node = todo[-1]
            missing = [n for n in node.all_input_nodes if n not in self.new] if node not in self.new else []
            todo.extend(missing)
            if not missing:
                todo.pop()
                if node not in self.new:
                    self.new[node] = self.graph.node_copy(node, self.new.__getitem__)
        return self.new[old]

    def clone(self, node: fx.Node) -> fx.Node:
        new = self.graph.call_function(torch.ops.aten.clone.default, (node,))
        new.meta["val"] = node.meta["val"]
        return new

    def finish(self, results: list[fx.Node]) -> Subgraph:
        self.graph.output(tuple(results))
        module = fx.GraphModule(self.module, self.graph)
        return Subgraph.intern(module, self.inputs, [meta_of(n) for n in results])


def meta_of(node: fx.Node) -> TensorMeta:
    return TensorMeta.of(node.meta["val"])
