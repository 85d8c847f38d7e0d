"""Effects by number: how compilers, and the kernels of loops, name what happens and what it is about."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...lowering.loops.happening import effect, handlers
from ..handles import number_of, params_at
from .op import EffectParams
from .running import perform

__all__ = ["call_by_number"]


def call_by_number(params: EffectParams, operands: Sequence[Tensor]) -> None:
    effect(list(operands), number_of(params), params.action.when.value, params.action.about)


def _perform(number: int, operands: Sequence[Tensor]) -> None:
    perform(params_at(number), operands)  # type: ignore[arg-type]


handlers.perform = _perform
