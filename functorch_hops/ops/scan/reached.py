"""What reaches which outputs of a scan: through the carry, any number of steps."""

from __future__ import annotations

from ...capture.subgraph import Mask, StaticParameters
from .carry import carry_fixpoint

__all__ = ["scan_reached"]


def scan_reached(static: StaticParameters, sources: Mask, by: str) -> Mask:
    (body,) = static.bodies
    n = static["n_carry"]
    _, *rest = sources
    init, fixed = rest[:n], rest[n:]
    carry = carry_fixpoint(init, lambda c: body.reached((*c, *fixed), by=by)[:n])
    return (*carry, *body.reached((*carry, *fixed), by=by)[n:])
