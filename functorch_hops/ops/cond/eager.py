"""Run the selected branch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .op import CondParams

__all__ = ["cond_abstract_eval", "cond_impl"]


def cond_impl(params: CondParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    selector, *rest = operands
    return params.branches[int(selector.item())](*rest)


def cond_abstract_eval(params: CondParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return [meta.empty() for meta in params.branches[0].outputs]
