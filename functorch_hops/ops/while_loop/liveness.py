"""Unused outputs of a while_loop; what the condition reads stays alive, and so do the flags as long as one stack is
read.
"""

from __future__ import annotations

from ...ir.dependence import Pruned, needed_inputs
from ...ir.meta import Mask
from ...passes.rewiring import restricted
from ..loops.carry import carry_fixpoint
from .op import WhileLoopParams, merge_flags, split_stacks

__all__ = ["while_loop_prune"]


def while_loop_prune(params: WhileLoopParams, used: Mask) -> Pruned[WhileLoopParams]:
    cond, body, n, flags = params.cond, params.body, params.n_carry, params.flags
    read = needed_inputs(cond, (True,))
    ys = tuple(split_stacks(flags, used[n:]))
    is_stacked = any(used[n:])
    seed = [a or b for a, b in zip(used[:n], read)]
    carry = carry_fixpoint(seed, lambda c: needed_inputs(body, (*c, *ys))[:n])
    by_body = needed_inputs(body, (*carry, *ys))[n:]
    needed = (*carry, *(a or b for a, b in zip(by_body, read[n:])))
    stacks = merge_flags(flags, is_stacked, ys)
    new_flags = tuple(sum(stacks[:place]) for place in flags) if is_stacked else ()
    bodies = restricted(cond, needed, (True,)), restricted(body, needed, (*carry, *ys))
    smaller = WhileLoopParams(*bodies, sum(carry), new_flags, params.checkpoints)
    return Pruned(smaller, needed, (*carry, *stacks))
