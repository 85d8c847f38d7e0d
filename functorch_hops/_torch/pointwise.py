"""Which operators compute each element from those at the same place (torch 2.13)."""

from __future__ import annotations

from typing import TypeGuard

import torch

from .dispatch import OpOverload

__all__ = ["is_pointwise"]

aten = torch.ops.aten

UNTAGGED = (
    aten._prelu_kernel.default,
    aten.elu_backward.default,
    aten.floor_divide.Scalar,
    aten.floor_divide.default,
    aten.hardshrink_backward.default,
    aten.hardsigmoid_backward.default,
    aten.hardswish.default,
    aten.hardswish_backward.default,
    aten.hardtanh_backward.default,
    aten.leaky_relu_backward.default,
    aten.masked_fill.Tensor,
    aten.mish_backward.default,
    aten.softplus_backward.default,
    aten.softshrink_backward.default,
)


def is_pointwise(target: object) -> TypeGuard[OpOverload]:
    """Whether it is torch's operator, and each element depends on those of its operands, broadcast, at the same place.
    torch's tag leaves some out.
    """
    return isinstance(target, OpOverload) and (torch.Tag.pointwise in target.tags or target in UNTAGGED)
