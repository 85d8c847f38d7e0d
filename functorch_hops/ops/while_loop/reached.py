"""What reaches which outputs of a while_loop: everything if it reaches the condition, else what the body hands on.

The trip count depends on values and differs between lanes, but it has no derivative.
"""

from __future__ import annotations

from ...capture.subgraph import Mask, StaticParameters
from ..scan.carry import carry_fixpoint
from .eager import merge_flags

__all__ = ["while_loop_reached"]


def while_loop_reached(static: StaticParameters, sources: Mask, by: str) -> Mask:
    cond, body = static.bodies
    n = static["n_carry"]
    init, consts = sources[:n], sources[n:]
    carry = carry_fixpoint(init, lambda c: body.reached((*c, *consts), by=by)[:n])
    if by in ("value", "lane") and any(cond.reached((*carry, *consts), by=by)):
        return (True,) * static["n_outputs"]
    ys = body.reached((*carry, *consts), by=by)[n:]
    return (*carry, *merge_flags(static["flags"], False, ys))
