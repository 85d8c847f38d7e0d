"""Run the selected branch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...capture.subgraph import StaticParameters, Subgraph

__all__ = ["cond_abstract", "cond_run", "cond_static"]


def cond_static(branches: Sequence[Subgraph]) -> StaticParameters:
    return StaticParameters("cond", branches, n_outputs=len(branches[0].outputs))


def cond_run(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    selector, *rest = operands
    return static.bodies[int(selector.item())](*rest)


def cond_abstract(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return [meta.empty() for meta in static.bodies[0].outputs]
