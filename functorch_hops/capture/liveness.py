"""What a body's outputs need of its inputs, and the body without the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from .builder import Builder
from .subgraph import Mask, StaticParameters, Subgraph, is_random_node

__all__ = ["Pruned", "needed_inputs", "restricted"]


@dataclass(frozen=True)
class Pruned:
    """Smaller parameters of an operator, and which operands and outputs are left."""

    static: StaticParameters
    operands: Mask
    outputs: Mask


def needed_inputs(body: Subgraph, outputs: Sequence[bool]) -> Mask:
    """Which inputs the marked outputs (and the random numbers that are drawn) depend on."""
    key = ("needed inputs", tuple(outputs))
    return body.derive(key, lambda: _needed_inputs(body, outputs))


def _random_nodes(body: Subgraph) -> list[fx.Node]:
    return [n for n in body.module.graph.nodes if is_random_node(n, body.module)]


def _needed_inputs(body: Subgraph, outputs: Sequence[bool]) -> Mask:
    needed: set[fx.Node] = set()
    todo = [*(n for n, o in zip(body.output_nodes(), outputs) if o), *_random_nodes(body)]
    while todo:
        node = todo.pop()
        if node not in needed:
            needed.add(node)
            todo.extend(node.all_input_nodes)
    return tuple(n in needed for n in body.input_nodes())


def restricted(body: Subgraph, inputs: Mask, outputs: Mask) -> Subgraph:
    """The body with the marked inputs and outputs only; the marked outputs must not depend on other inputs."""
    if all(inputs) and all(outputs):
        return body
    return body.derive(("restricted", inputs, outputs), lambda: _restricted(body, inputs, outputs))


def _restricted(body: Subgraph, inputs: Mask, outputs: Mask) -> Subgraph:
    builder = Builder(body.module)
    for node, meta, kept in zip(body.input_nodes(), body.inputs, inputs):
        if kept:
            builder.placeholder(node, meta)
    return builder.finish([n for n, k in zip(body.output_nodes(), outputs) if k], also=_random_nodes(body))
