"""The body of a loop on pairs of a value and its tangent."""

from __future__ import annotations

import torch
from torch import Tensor

from ...derive.rewrite import rewritten
from ...derive.tangent import with_tangents
from ...ir.meta import Mask
from ...ir.subgraph import Subgraph

__all__ = ["pair_carry"]


def pair_carry(body: Subgraph, n_carry: int, n_xs: int, active: Mask) -> tuple[Subgraph, Mask]:
    """The body on pairs: ``(carry, carry', x, x', consts, consts') -> (carry, carry', y, y')``, and which outputs
    have tangents.

    Every active carry keeps a tangent, zeros where the body's output has none.
    """
    dual, reached = with_tangents(body, active)
    tangent_mask = tuple(a or r for a, r in zip(active[:n_carry], reached)) + reached[n_carry:]
    n_out = len(body.outputs)
    parts = (active[:n_carry], active[n_carry : n_carry + n_xs], active[n_carry + n_xs :])
    metas = (body.inputs[:n_carry], body.inputs[n_carry : n_carry + n_xs], body.inputs[n_carry + n_xs :])

    def run(*args: Tensor) -> list[Tensor]:
        values, tangents, rest = [], [], list(args)
        for part in parts:
            values += rest[: len(part)]
            tangents += rest[len(part) : len(part) + sum(part)]
            rest = rest[len(part) + sum(part) :]
        outs = dual(*values, *tangents)
        found = iter(outs[n_out:])
        own = [next(found) if r else None for r in reached]
        out_tangents = [torch.zeros_like(o) if t is None else t for o, t, m in zip(outs, own, tangent_mask) if m]
        k = sum(tangent_mask[:n_carry])
        return [*outs[:n_carry], *out_tangents[:k], *outs[n_carry:n_out], *out_tangents[k:]]

    inputs = [x for part, m in zip(parts, metas) for x in (*m, *(v for v, a in zip(m, part) if a))]
    return body.derive(("pairs", n_carry, n_xs, active), lambda: rewritten(run, inputs, "jvp")), tangent_mask
