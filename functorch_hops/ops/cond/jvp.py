"""jvp of cond: each branch on (primals, tangents)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...derive.rewrite import rewritten
from ...derive.tangent import with_tangents
from ...ir.dependence import Through
from ...ir.meta import Mask
from ...ir.subgraph import Subgraph
from .dependence import cond_dependent_outputs
from .op import CondParams, cond_op

__all__ = ["cond_jvp"]


def cond_jvp(
    params: CondParams, primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    active = tuple(t is not None for t in tangents[1:])
    reached = cond_dependent_outputs(params, (False, *active), Through.TANGENT)
    paired = params.with_bodies(lambda body: _branch_with_tangents(body, active, reached))
    given = [t for t in tangents if t is not None]
    outs = cond_op(paired, *primals, *given)
    n = params.n_outputs
    found = iter(outs[n:])
    return outs[:n], [next(found) if r else None for r in reached]


def _branch_with_tangents(body: Subgraph, active: Mask, reached: Mask) -> Subgraph:
    """Tangents of all ``reached`` outputs, zeros where this branch does not reach them."""
    dual, own = with_tangents(body, active)
    if own == reached:
        return dual
    n = len(body.outputs)

    def run(*args: Tensor) -> list[Tensor]:
        outs = dual(*args[: len(dual.inputs)])
        found = iter(outs[n:])
        tangents = [next(found) if o else meta.zeros() for o, meta in zip(own, body.outputs)]
        return [*outs[:n], *(t for t, r in zip(tangents, reached) if r)]

    inputs = [*body.inputs, *(m for m, a in zip(body.inputs, active) if a)]
    return body.derive(("branch tangents", active, reached), lambda: rewritten(run, inputs, "jvp"))
