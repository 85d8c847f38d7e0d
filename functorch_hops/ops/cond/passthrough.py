"""Operands that are there twice, and outputs that every branch passes through or computes twice."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ...ir.subgraph import StaticParameters
from ...passes.passthrough import SimplifiedCall
from ...passes.rewiring import simplify_branches
from .op import cond_static

__all__ = ["cond_passthrough"]


def cond_passthrough(static: StaticParameters, operands: Sequence[Hashable]) -> SimplifiedCall | None:
    return simplify_branches(static.bodies, operands, 1, cond_static)
