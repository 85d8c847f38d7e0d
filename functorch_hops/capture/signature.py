"""Bodies of one operator share one signature: their own inputs, then the union of what they lifted."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, fx

from .._torch import new_graph_module
from .subgraph import Subgraph, TensorMeta

__all__ = ["merge_lifted"]


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
