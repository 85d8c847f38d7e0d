"""Unused outputs of a cond: no branch computes them."""

from __future__ import annotations

from ...ir.dependence import Pruned, needed_inputs
from ...ir.meta import Mask
from ...ir.subgraph import StaticParameters
from ...passes.rewiring import restricted
from .op import cond_static

__all__ = ["cond_prune"]


def cond_prune(static: StaticParameters, used: Mask) -> Pruned:
    needed = tuple(any(c) for c in zip(*(needed_inputs(b, used) for b in static.bodies), strict=True))
    return Pruned(cond_static([restricted(b, needed, used) for b in static.bodies]), (True, *needed), used)
