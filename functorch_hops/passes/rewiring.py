"""A body with other inputs and outputs."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ..ir.build import Builder
from ..ir.meta import Mask, TensorMeta
from ..ir.subgraph import P, Subgraph
from .cleaning import close
from .passthrough import Renumbering, SimplifiedCall, Source, distinct, passthrough_inputs, values

__all__ = ["restricted", "rewired", "simplify_branches"]


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
    return close(builder, [n for n, k in zip(body.output_nodes(), outputs) if k], also=body.pinned_nodes())


def rewired(body: Subgraph, inputs: Sequence[int], outputs: Mask, more: Sequence[TensorMeta] = ()) -> Subgraph:
    """The body with the marked outputs, and with inputs that are numbered anew; those with equal numbers are one.

    ``inputs`` holds the new number of each old input; ``more`` are inputs that the body does not read.
    """

    def make() -> Subgraph:
        builder = Builder(body.module)
        nodes = body.input_nodes()
        for new in range(max(inputs, default=-1) + 1):
            olds = [i for i, place in enumerate(inputs) if place == new]
            first = next((i for i in olds if "val" in nodes[i].meta), olds[0])  # one that is read knows its value
            builder.placeholder(nodes[first], body.inputs[first])
            builder.new.update({nodes[i]: builder.new[nodes[first]] for i in olds})
        for meta in more:
            builder.placeholder(None, meta)
        kept = [n for n, o in zip(body.output_nodes(), outputs) if o]
        return close(builder, kept, also=body.pinned_nodes())

    return body.derive(("rewired", tuple(inputs), outputs, tuple(more)), make)


def simplify_branches(params: P, operands: Sequence[Hashable], n_own: int) -> SimplifiedCall[P] | None:
    """A call that runs one of its bodies once; ``n_own`` operands are not the bodies'."""
    bodies, inputs = params.bodies, operands[n_own:]
    new = Renumbering.make([range(len(inputs))], inputs)
    first = distinct(list(zip(*map(values, bodies), strict=True)))
    outputs: list[Source] = []
    kept: list[bool] = []
    for i, (j, column) in enumerate(zip(first, zip(*map(passthrough_inputs, bodies), strict=True))):
        passed = {None if source is None else inputs[source] for source in column}
        if None not in passed and len(passed) == 1:
            outputs.append(Source("operand", n_own + column[0]))
        else:
            outputs.append(Source("output", sum(kept)) if i == j else outputs[j])
        kept.append(outputs[-1].kind == "output" and i == j)
    if len(new.kept) == len(inputs) and all(kept):
        return None
    smaller = params.with_bodies(lambda body: rewired(body, new.numbers, tuple(kept)))
    return SimplifiedCall(smaller, (*range(n_own), *(n_own + i for i in new.kept)), tuple(outputs))
