"""Operands that are there twice, and outputs that every branch passes through or computes twice."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ...passes.passthrough import SimplifiedCall
from ...passes.rewiring import simplify_branches
from .op import CondParams

__all__ = ["cond_passthrough"]


def cond_passthrough(params: CondParams, operands: Sequence[Hashable]) -> SimplifiedCall[CondParams] | None:
    return simplify_branches(params, operands, 1)
