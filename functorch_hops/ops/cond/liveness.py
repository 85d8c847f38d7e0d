"""Unused outputs of a cond: no branch computes them."""

from __future__ import annotations

from ...ir.dependence import Pruned, needed_inputs
from ...ir.meta import Mask
from ...passes.rewiring import restricted
from .op import CondParams

__all__ = ["cond_prune"]


def cond_prune(params: CondParams, used: Mask) -> Pruned[CondParams]:
    needed = tuple(any(c) for c in zip(*(needed_inputs(b, used) for b in params.branches), strict=True))
    return Pruned(params.with_bodies(lambda b: restricted(b, needed, used)), (True, *needed), used)
