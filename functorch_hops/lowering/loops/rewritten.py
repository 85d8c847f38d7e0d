"""Operators that are others inside a loop, where Inductor's form of them is slow on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .products import LARGEST_PRODUCT

__all__ = ["rewritten"]

_SHORT = 16
"""By how many times it is shorter than all."""

aten = torch.ops.aten


def rewritten(table: Mapping[Any, Callable[..., Any]]) -> dict[Any, Callable[..., Any]]:
    """Decompositions; those of ``table`` are for open sizes and what is large."""

    def roll(x: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Any:
        """Two pieces: read by an index modulo the size, each element is loaded alone. Where one is short, masks choose,
        which most indices do not need (NOTE [Usual indices]); else they are put one after the other.
        """
        if not all(type(n) is int for n in (*x.shape, *shifts)):
            return table[aten.roll.default](x, shifts, dims)
        if not dims:
            return roll(x.flatten(), shifts, [0]).reshape(x.shape)
        for shift, dim in zip(shifts, dims, strict=True):
            size = x.shape[dim] if x.dim() else 1
            first = -shift % size if size else 0
            if first:
                left, right = x.narrow(dim, first, size - first), x.narrow(dim, 0, first)
                if _SHORT * min(first, size - first) > size:
                    x = torch.cat([left, right], dim)
                else:
                    after = [0, 0] * (x.dim() - 1 - dim % x.dim())
                    index = torch.arange(size, device=x.device).reshape(-1, *[1] * (len(after) // 2))
                    left, right = F.pad(left, [*after, 0, first]), F.pad(right, [*after, size - first, 0])
                    x = torch.where(index < size - first, left, right)
        return x.clone()

    def mv(a: Tensor, x: Tensor) -> Any:
        """A product, whose sums are independent of one another: Inductor reduces row after row."""
        if not all(type(n) is int for n in a.shape) or not 0 < a.numel() <= LARGEST_PRODUCT:
            return table[aten.mv.default](a, x)
        return aten.mm(a, x[:, None])[:, 0]

    return {aten.roll.default: roll, aten.mv.default: mv}
