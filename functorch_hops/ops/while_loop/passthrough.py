"""Carries that no step changes, carries that are equal, and stacks of the same value."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ...passes.passthrough import SimplifiedCall, Source, distinct, values
from ...passes.rewiring import rewired
from ..loops.passthrough import fixed_carries, renumbered
from .op import WhileLoopParams, merge_flags

__all__ = ["while_loop_passthrough"]


def while_loop_passthrough(
    params: WhileLoopParams, operands: Sequence[Hashable]
) -> SimplifiedCall[WhileLoopParams] | None:
    cond, body, n, flags = params.cond, params.body, params.n_carry, params.flags
    consts = range(n, len(operands))
    fixed = fixed_carries(body, n, consts, operands)
    new = renumbered(body, n, fixed, [consts], operands)
    kept = [i in new.kept and i not in fixed for i in range(n)]
    first = distinct(values(body)[n:])
    ys = [i == j for i, j in enumerate(first)]
    if len(new.kept) == len(operands) and not fixed and all(ys):
        return None
    outputs = [Source("operand", i) if i in fixed else Source("output", new.numbers[i]) for i in range(n)]
    stacks = merge_flags(flags, True, ys)
    places = [i for i in range(len(stacks)) if i not in flags]
    stands_for = merge_flags(flags, None, [places[j] for j in first])
    for i, j in enumerate(stands_for):
        outputs.append(Source("output", sum(kept) + sum(stacks[: i if j is None else j])))
    new_flags = tuple(sum(stacks[:place]) for place in flags)
    bodies = rewired(cond, new.numbers, (True,)), rewired(body, new.numbers, (*kept, *ys))
    loop = WhileLoopParams(*bodies, sum(kept), new_flags, params.checkpoints)
    return SimplifiedCall(loop, new.kept, tuple(outputs))
