"""What reaches which outputs of a cond: everything if it is the selector, else what one of the branches hands on."""

from __future__ import annotations

from ...ir.dependence import Through, dependent_outputs
from ...ir.meta import Mask
from ...ir.subgraph import StaticParameters

__all__ = ["cond_dependent_outputs"]


def cond_dependent_outputs(static: StaticParameters, sources: Mask, through: Through) -> Mask:
    selector, *rest = sources
    if selector and through.is_of_values:
        return (True,) * static["n_outputs"]
    by_branch = (dependent_outputs(body, rest, through) for body in static.bodies)
    return tuple(any(column) for column in zip(*by_branch, strict=True))
