"""What reaches which outputs of a cond: everything if it is the selector, else what one of the branches hands on."""

from __future__ import annotations

from ...capture.subgraph import Mask, StaticParameters

__all__ = ["cond_reached"]


def cond_reached(static: StaticParameters, sources: Mask, by: str) -> Mask:
    selector, *rest = sources
    if selector and by in ("value", "lane"):
        return (True,) * static["n_outputs"]
    by_branch = (body.reached(rest, by=by) for body in static.bodies)
    return tuple(any(column) for column in zip(*by_branch, strict=True))
