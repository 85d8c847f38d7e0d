"""What the body of a while_loop computes from its constants alone; the condition is left as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ir.subgraph import StaticParameters
from ...passes.hoisting import Hoisted, is_total, split_invariant
from ...passes.rewiring import rewired

__all__ = ["while_loop_hoist"]


def while_loop_hoist(static: StaticParameters, operands: Sequence[Any]) -> Hoisted | None:
    cond, body = static.bodies
    n, places = static["n_carry"], range(len(operands))
    parts = split_invariant(body, tuple(i >= n for i in places), is_total)
    if parts is None:
        return None
    outside, inside = parts
    new_cond = rewired(cond, places, (True,), outside.outputs)
    return Hoisted(StaticParameters("while_loop", [new_cond, inside], **static.attributes), outside, tuple(places[n:]))
