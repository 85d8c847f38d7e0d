"""All rules of effects: they have no outputs, hence no derivatives; they happen in each lane."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import Tensor

from ...ir.dependence import Through
from ...ir.meta import Mask
from .native import call_by_number
from .op import EffectParams, effect_op
from .running import perform

__all__ = [
    "effect_abstract_eval",
    "effect_batch",
    "effect_dependent_outputs",
    "effect_impl",
    "effect_jvp",
    "effect_lower",
    "effect_passthrough",
    "effect_prune",
    "effect_vjp_backward",
    "effect_vjp_forward",
]


def effect_impl(params: EffectParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    perform(params, operands)
    return []


def effect_abstract_eval(params: EffectParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return []


def effect_dependent_outputs(params: EffectParams, sources: Mask, through: Through, trips: int | None = None) -> Mask:
    return ()


def effect_batch(
    params: EffectParams, operands: Sequence[Tensor], mapped: Mask, size: int, randomness: str
) -> tuple[Sequence[Tensor], Mask]:
    if params.action.asks_for_lanes:
        params, operands = params.under_vmap(operands, mapped, size)
    effect_op(params, *operands)
    return [], ()


def effect_jvp(
    params: EffectParams, primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    effect_op(params, *primals)
    return [], []


def effect_vjp_forward(params: EffectParams, active: Mask) -> EffectParams:
    return params


def effect_vjp_backward(
    params: EffectParams,
    active: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    return [None] * len(active)


def effect_prune(params: EffectParams, used: Mask) -> None:
    return None


def effect_passthrough(params: EffectParams, operands: Sequence[Hashable]) -> None:
    return None


def effect_lower(params: EffectParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    params.refuse_export("print, check or call back", "fh.debug")
    call_by_number(params, operands)
    return []
