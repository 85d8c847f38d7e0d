"""jvp of scan: a scan over (primal, tangent) pairs; a carry that gets a tangent on the way has one from the start."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...capture.derive import rewritten, with_tangents
from ...capture.subgraph import Mask, StaticParameters, Subgraph
from .eager import scan_static, split_operands
from .reached import scan_reached

__all__ = ["pair_carry", "scan_jvp"]


def scan_jvp(
    static: StaticParameters, primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    from . import scan_op

    (body,) = static.bodies
    n, m = static["n_carry"], static["n_xs"]
    length, init, xs, consts = split_operands(static, primals)
    _, init_t, xs_t, consts_t = split_operands(static, tangents)
    fixed = tuple(t is not None for t in (*xs_t, *consts_t))
    carry_active = scan_reached(static, tuple(t is not None for t in tangents), "tangent")[:n]
    pair_body, reached = pair_carry(body, n, m, (*carry_active, *fixed))
    k = sum(carry_active)
    init_t = [torch.zeros_like(c) if t is None else t for c, t, a in zip(init, init_t, carry_active) if a]
    xs_t, consts_t = [t for t in xs_t if t is not None], [t for t in consts_t if t is not None]
    outs = scan_op(
        scan_static(pair_body, n + k, m + len(xs_t), static["reverse"]),
        length,
        *init,
        *init_t,
        *xs,
        *xs_t,
        *consts,
        *consts_t,
    )
    n_ys = len(body.outputs) - n
    ys = outs[n + k : n + k + n_ys]
    moving = iter((*outs[n : n + k], *outs[n + k + n_ys :]))
    return [*outs[:n], *ys], [next(moving) if r else None for r in reached]


def pair_carry(body: Subgraph, n_carry: int, n_xs: int, active: Mask) -> tuple[Subgraph, Mask]:
    """The body on pairs: ``(carry, carry', x, x', consts, consts') -> (carry, carry', y, y')``, and which outputs move.

    Every active carry keeps a tangent, zeros where the body's output has none.
    """
    dual, reached = with_tangents(body, active)
    moves = tuple(a or r for a, r in zip(active[:n_carry], reached)) + reached[n_carry:]
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
        moving = iter(outs[n_out:])
        own = [next(moving) if r else None for r in reached]
        out_tangents = [torch.zeros_like(o) if t is None else t for o, t, m in zip(outs, own, moves) if m]
        k = sum(moves[:n_carry])
        return [*outs[:n_carry], *out_tangents[:k], *outs[n_carry:n_out], *out_tangents[k:]]

    inputs = [x for part, m in zip(parts, metas) for x in (*m, *(v for v, a in zip(m, part) if a))]
    return body.derive(("pairs", n_carry, n_xs, active), lambda: rewritten(run, inputs, "jvp")), moves
