"""Run the selected branch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...ir.subgraph import StaticParameters

__all__ = ["cond_abstract_eval", "cond_impl"]


def cond_impl(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    selector, *rest = operands
    return static.bodies[int(selector.item())](*rest)


def cond_abstract_eval(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return [meta.empty() for meta in static.bodies[0].outputs]
