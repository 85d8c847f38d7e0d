"""All rules of checkpoint_name: it hands its operand on, and keeps the name."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import Tensor

from ...ir.dependence import Through
from ...ir.meta import Mask
from ...ir.subgraph import StaticParameters
from .op import checkpoint_name_op

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


def checkpoint_name_impl(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return [x.view_as(x) for x in operands]


def checkpoint_name_dependent_outputs(static: StaticParameters, sources: Mask, through: Through) -> Mask:
    return sources


def checkpoint_name_batch(
    static: StaticParameters, operands: Sequence[Tensor], mapped: Mask, size: int, randomness: str
) -> tuple[Sequence[Tensor], Mask]:
    return checkpoint_name_op(static, *operands), mapped


def checkpoint_name_jvp(
    static: StaticParameters, primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    (tangent,) = tangents
    return checkpoint_name_op(static, *primals), [None] if tangent is None else checkpoint_name_op(static, tangent)


def checkpoint_name_vjp_forward(static: StaticParameters, active: Mask) -> StaticParameters:
    return static


def checkpoint_name_vjp_backward(
    static: StaticParameters,
    active: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    return cotangents


def checkpoint_name_prune(static: StaticParameters, used: Mask) -> None:
    return None


def checkpoint_name_passthrough(static: StaticParameters, operands: Sequence[Hashable]) -> None:
    """It hands its operand on, but under a name that a policy may ask for."""


def checkpoint_name_lower(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return operands
