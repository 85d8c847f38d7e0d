"""Which outputs of a while_loop depend on which operands: all of them if the condition does, else as the body has it.

The trip count depends on values and differs between lanes, but it has no derivative.
"""

from __future__ import annotations

from ...ir.dependence import Through, dependent_outputs
from ...ir.meta import Mask
from ..loops.carry import carry_fixpoint
from .op import WhileLoopParams, merge_flags

__all__ = ["while_loop_dependent_outputs"]


def while_loop_dependent_outputs(
    params: WhileLoopParams, sources: Mask, through: Through, trips: int | None = None
) -> Mask:
    cond, body = params.cond, params.body
    n = params.n_carry
    init, consts = sources[:n], sources[n:]
    carry = carry_fixpoint(init, lambda c: dependent_outputs(body, (*c, *consts), through)[:n])
    if through.is_of_values and any(dependent_outputs(cond, (*carry, *consts), through)):
        return (True,) * params.n_outputs
    ys = dependent_outputs(body, (*carry, *consts), through)[n:]
    return (*carry, *merge_flags(params.flags, False, ys))
