"""Batch normalisation that updates running statistics, as one that does not and their new values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["running_statistics", "without_statistics"]

_aten = torch.ops.aten

_BATCH_NORMS = {
    _aten.native_batch_norm.default: _aten.native_batch_norm.default,
    _aten._native_batch_norm_legit.default: _aten.native_batch_norm.default,
    _aten.cudnn_batch_norm.default: _aten.cudnn_batch_norm.default,
    _aten.miopen_batch_norm.default: _aten.miopen_batch_norm.default,
}
"""Operators that update running statistics, which not all of their schemas admit, with one that can do without."""


def without_statistics(func: Any, args: tuple[Any, ...]) -> Any:
    """What computes the same as this batch normalisation if it updates running statistics, else None."""
    return _BATCH_NORMS.get(func) if func in _BATCH_NORMS and isinstance(args[3], Tensor) and args[5] else None


def running_statistics(
    x: Tensor, batch_mean: Tensor, invstd: Tensor, mean: Tensor, var: Tensor, momentum: float, eps: float
) -> tuple[Tensor, Tensor]:
    """The new running statistics, from what batch normalisation saves: ``invstd = (batch_var + eps) ** -0.5``.

    The batch's variance there is the biased one, and the running one is unbiased.
    """
    n = x.numel() // x.shape[1]
    batch_var = (invstd.square().reciprocal() - eps) * (n / (n - 1))
    return mean + momentum * (batch_mean - mean), var + momentum * (batch_var - var)
