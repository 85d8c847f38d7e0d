"""A graph and its tangents."""

from __future__ import annotations

from torch import Tensor

from .. import _torch
from ..ir.dependence import Through, dependent_outputs
from ..ir.meta import Mask
from ..ir.subgraph import Subgraph
from .rewrite import merged, rewritten

__all__ = ["with_tangents"]


def with_tangents(body: Subgraph, active: Mask) -> tuple[Subgraph, Mask]:
    """``(inputs, tangents of the active ones) -> (outputs, tangents of the reached ones)``, and which are reached."""
    reached = dependent_outputs(body, active, Through.TANGENT)

    def run(*args: Tensor) -> list[Tensor]:
        primals, tangents = args[: len(active)], args[len(active) :]
        if not any(reached):
            return list(body(*primals))
        dual_inputs = tuple(p for p, a in zip(primals, active) if a)
        outs, out_tangents = _torch.jvp(lambda *xs: body(*merged(primals, active, xs)), dual_inputs, tangents)
        return [*outs, *(t for t, r in zip(out_tangents, reached) if r)]

    def make() -> Subgraph:
        tangents = [meta for meta, a in zip(body.inputs, active) if a]
        return rewritten(run, [*body.inputs, *tangents], "jvp")

    if not any(active):
        return body, reached
    return body.derive(("tangents", active), make), reached
