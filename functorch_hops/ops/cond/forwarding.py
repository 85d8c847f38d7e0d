"""Operands that are there twice, and outputs that every branch hands on or computes twice."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ...capture.passes.forwarding import Forwarded, forward_branches
from ...capture.subgraph import StaticParameters
from .eager import cond_static

__all__ = ["cond_forward"]


def cond_forward(static: StaticParameters, operands: Sequence[Hashable]) -> Forwarded | None:
    return forward_branches(static.bodies, operands, 1, cond_static)
