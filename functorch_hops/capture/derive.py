"""Graphs that rules derive from a captured body: batched, with tangents, split into forward and backward.

Each is captured once from the body's graph and kept on it (:meth:`Subgraph.derive`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from .. import _torch
from .sizes import size_key
from .subgraph import Mask, Subgraph, TensorMeta

__all__ = ["batched", "joint", "rearranged", "rewritten", "with_tangents"]


def rewritten(function: Callable[..., Sequence[Tensor]], inputs: Sequence[TensorMeta], operation: str) -> Subgraph:
    """Capture a function over graphs: closed, free of autocast."""
    from .speculate import speculate_subgraph

    graph, lifted = speculate_subgraph(function, inputs, operation=operation, parameter="body", keep_autocast=False)
    assert not lifted, "a derived graph closes over nothing"
    return graph


def rearranged(body: Subgraph, places: Sequence[int], inputs: Sequence[TensorMeta]) -> Subgraph:
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


def batched(body: Subgraph, mapped: Mask, size: int, randomness: str, out: Mask | None = None) -> tuple[Subgraph, Mask]:
    """``body`` over a batch at dimension 0 of the ``mapped`` inputs, and which outputs have one.

    At least the outputs in ``out`` have it, expanded where the body does not map them.
    """
    by = "lane" if randomness == "different" else "value"
    reached = body.reached(mapped, by=by)
    outputs = tuple(a or b for a, b in zip(reached, out)) if out is not None else reached

    def run(*args: Tensor) -> list[Tensor]:
        in_dims = tuple(0 if m else None for m in mapped)
        results, dims = _torch.restore_vmap(body, in_dims, size, randomness)(*args)
        return [_at_front(r, d, size) if o else r for r, d, o in zip(results, dims, outputs)]

    def make() -> Subgraph:
        inputs = [meta.with_leading(size) if m else meta for meta, m in zip(body.inputs, mapped)]
        return rewritten(run, inputs, "vmap")

    return body.derive(("batched", mapped, size_key(size), randomness, outputs), make), outputs


def _at_front(x: Tensor, dim: int | None, size: int) -> Tensor:
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def with_tangents(body: Subgraph, active: Mask) -> tuple[Subgraph, Mask]:
    """``(inputs, tangents of the active ones) -> (outputs, tangents of the reached ones)``, and which are reached."""
    reached = body.reached(active, by="tangent")

    def run(*args: Tensor) -> list[Tensor]:
        primals, tangents = args[: len(active)], args[len(active) :]
        if not any(reached):
            return list(body(*primals))
        dual_inputs = tuple(p for p, a in zip(primals, active) if a)
        outs, out_tangents = torch.func.jvp(  # type: ignore[misc]
            lambda *xs: body(*_merged(primals, active, xs)), dual_inputs, tangents
        )
        return [*outs, *(t for t, r in zip(out_tangents, reached) if r)]

    def make() -> Subgraph:
        tangents = [meta for meta, a in zip(body.inputs, active) if a]
        return rewritten(run, [*body.inputs, *tangents], "jvp")

    if not any(active):
        return body, reached
    return body.derive(("tangents", active), make), reached


def joint(body: Subgraph, active: Mask, cotangents: Mask) -> Subgraph:
    """``(inputs, cotangents of the marked outputs) -> (outputs, gradients of the active inputs)``."""

    def run(*args: Tensor) -> list[Tensor]:
        primals, cts = args[: len(active)], args[len(active) :]

        def marked_and_others(*xs: Tensor) -> tuple[tuple[Tensor, ...], list[Tensor]]:
            outs = body(*_merged(primals, active, xs))
            marked = tuple(o for o, c in zip(outs, cotangents) if c)
            return marked, [o for o, c in zip(outs, cotangents) if not c]

        xs = tuple(p for p, a in zip(primals, active) if a)
        if not cts or not xs:
            return [*body(*primals), *map(torch.zeros_like, xs)]
        marked, pull, others = torch.func.vjp(marked_and_others, *xs, has_aux=True)  # type: ignore[misc]
        pieces = iter(marked), iter(others)
        outs = [next(pieces[0] if c else pieces[1]) for c in cotangents]
        return [*outs, *pull(tuple(cts))]

    cts = [meta for meta, c in zip(body.outputs, cotangents) if c]
    while True:
        try:
            return rewritten(run, [*body.inputs, *cts], "vjp")
        except RuntimeError as error:
            # From now on that is an error only where the derivative is computed, not where it is prepared.
            if not _torch.found_without_formula(error):
                raise


def _merged(values: Sequence[Any], replaced: Mask, new: Sequence[Any]) -> list[Any]:
    fresh = iter(new)
    return [next(fresh) if r else v for v, r in zip(values, replaced)]
