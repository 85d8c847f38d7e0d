"""``roll`` inside a loop as two pieces one after the other.

Read by an index modulo the size, as Inductor does, each element is loaded alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["rolls"]

aten = torch.ops.aten


def rolls(general: Callable[..., Any]) -> dict[Any, Callable[..., Any]]:
    """Decompositions; ``general`` is that of open sizes."""

    def rolled(x: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Any:
        if not all(type(n) is int for n in (*x.shape, *shifts)):
            return general(x, shifts, dims)
        if not dims:
            return rolled(x.flatten(), shifts, [0]).reshape(x.shape)
        for shift, dim in zip(shifts, dims, strict=True):
            size = x.shape[dim] if x.dim() else 1
            first = -shift % size if size else 0
            if first:
                x = torch.cat([x.narrow(dim, first, size - first), x.narrow(dim, 0, first)], dim)
        return x.clone()

    return {aten.roll.default: rolled}
