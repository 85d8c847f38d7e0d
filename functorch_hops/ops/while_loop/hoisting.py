"""What the body of a while_loop computes from its constants alone; the condition is left as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...passes.hoisting import Hoisted, is_total, split_invariant
from ...passes.rewiring import rewired
from .op import WhileLoopParams

__all__ = ["while_loop_hoist"]


def while_loop_hoist(params: WhileLoopParams, operands: Sequence[Any]) -> Hoisted[WhileLoopParams] | None:
    cond, body = params.cond, params.body
    n, places = params.n_carry, range(len(operands))
    parts = split_invariant(body, tuple(i >= n for i in places), is_total)
    if parts is None:
        return None
    outside, inside = parts
    new_cond = rewired(cond, places, (True,), outside.outputs)
    return Hoisted(replace(params, cond=new_cond, body=inside), outside, tuple(places[n:]))
