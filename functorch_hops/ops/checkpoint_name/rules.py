"""All rules of checkpoint_name: it hands its operand on, and keeps the name."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import Tensor

from ...ir.dependence import Through
from ...ir.meta import Mask
from .op import CheckpointNameParams, checkpoint_name_op

__all__ = [
    "checkpoint_name_batch",
    "checkpoint_name_dependent_outputs",
    "checkpoint_name_impl",
    "checkpoint_name_jvp",
    "checkpoint_name_lower",
    "checkpoint_name_passthrough",
    "checkpoint_name_prune",
    "checkpoint_name_vjp_backward",
    "checkpoint_name_vjp_forward",
]


def checkpoint_name_impl(params: CheckpointNameParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return [x.view_as(x) for x in operands]


def checkpoint_name_dependent_outputs(
    params: CheckpointNameParams, sources: Mask, through: Through, trips: int | None = None
) -> Mask:
    return sources


def checkpoint_name_batch(
    params: CheckpointNameParams, operands: Sequence[Tensor], mapped: Mask, size: int, randomness: str
) -> tuple[Sequence[Tensor], Mask]:
    return checkpoint_name_op(params, *operands), mapped


def checkpoint_name_jvp(
    params: CheckpointNameParams, primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    (tangent,) = tangents
    return checkpoint_name_op(params, *primals), [None] if tangent is None else checkpoint_name_op(params, tangent)


def checkpoint_name_vjp_forward(params: CheckpointNameParams, active: Mask) -> CheckpointNameParams:
    return params


def checkpoint_name_vjp_backward(
    params: CheckpointNameParams,
    active: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    return cotangents


def checkpoint_name_prune(params: CheckpointNameParams, used: Mask) -> None:
    return None


def checkpoint_name_passthrough(params: CheckpointNameParams, operands: Sequence[Hashable]) -> None:
    """It hands its operand on, but under a name that a policy may ask for."""


def checkpoint_name_lower(params: CheckpointNameParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return operands
