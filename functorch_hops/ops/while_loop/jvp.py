"""jvp of while_loop: a loop over (primal, tangent) pairs; the condition reads the primals only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...derive.rewrite import rewritten
from ...ir.dependence import Through, dependent_outputs
from ...ir.subgraph import Subgraph
from ..loops.carry import carry_fixpoint
from ..loops.pairs import pair_carry
from .op import WhileLoopParams, merge_flags, while_loop_op

__all__ = ["while_loop_jvp"]


def while_loop_jvp(
    params: WhileLoopParams, primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    cond, body, n, flags = params.cond, params.body, params.n_carry, params.flags
    consts = tuple(t is not None for t in tangents[n:])
    carry = carry_fixpoint(
        [t is not None for t in tangents[:n]], lambda c: dependent_outputs(body, (*c, *consts), Through.TANGENT)[:n]
    )
    pair_body, tangent_mask = pair_carry(body, n, 0, (*carry, *consts))
    carry_t = [torch.zeros_like(x) if t is None else t for x, t, a in zip(primals, tangents, carry) if a]
    consts_t = [t for t in tangents[n:] if t is not None]
    k = len(carry_t)
    new_cond = _on_primals(cond, pair_body, n, k)
    loop = WhileLoopParams(new_cond, pair_body, n + k, (0,) if flags else (), params.checkpoints)
    outs = while_loop_op(loop, *primals[:n], *carry_t, *primals[n:], *consts_t)
    stacks, n_ys = outs[n + k :], len(body.outputs) - n
    ys = stacks[1 : 1 + n_ys] if flags else ()
    found = iter((*outs[n : n + k], *stacks[1 + n_ys :]))
    tangents_out = [next(found) if m else None for m in tangent_mask]
    values = [*outs[:n], *(merge_flags(flags, stacks[0], ys) if flags else ())]
    return values, [*tangents_out[:n], *merge_flags(flags, None, tangents_out[n:])]


def _on_primals(cond: Subgraph, pair_body: Subgraph, n: int, k: int) -> Subgraph:
    n_consts = len(cond.inputs) - n

    def run(*args: Tensor) -> Sequence[Tensor]:
        return cond(*args[:n], *args[n + k : n + k + n_consts])

    key = ("on primals", pair_body.inputs, n, k)
    return cond.derive(key, lambda: rewritten(run, pair_body.inputs, "jvp"))
