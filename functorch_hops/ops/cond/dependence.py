"""Which outputs of a cond depend on which operands: all on the selector, and as one of the branches has it."""

from __future__ import annotations

from ...ir.dependence import Through, dependent_outputs
from ...ir.meta import Mask
from .op import CondParams

__all__ = ["cond_dependent_outputs"]


def cond_dependent_outputs(params: CondParams, sources: Mask, through: Through, trips: int | None = None) -> Mask:
    selector, *rest = sources
    if selector and through.is_of_values:
        return (True,) * params.n_outputs
    by_branch = (dependent_outputs(body, rest, through) for body in params.branches)
    return tuple(any(column) for column in zip(*by_branch, strict=True))
