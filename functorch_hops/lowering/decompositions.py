"""Operators that are others for Inductor (torch 2.13)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["decompositions"]

aten = torch.ops.aten


def decompositions() -> dict[Any, Callable[..., Any]]:
    from torch._inductor.decomposition import select_decomp_table

    table = select_decomp_table()
    select = table[aten.index_select.default]

    def selected(x: Tensor, dim: int, index: Tensor) -> Tensor:
        """Rows of numbers that are no rows, negative ones among them, are an error; Inductor counts from the end."""
        size = x.shape[dim] if x.dim() else 1
        result: Tensor = select(x, dim, torch.where(index < 0, size, index))
        return result

    ours: dict[Any, Callable[..., Any]] = {
        aten.div.Tensor_mode: _divided,
        aten.eye.default: lambda n, **options: _eye(n, n, **options),
        aten.eye.m: _eye,
        aten.index_select.default: selected,
        aten.pow.Scalar: _integer_power,
    }
    return {**table, **ours}


def _divided(x: Any, y: Any, *, rounding_mode: str | None = None) -> Any:
    """The truncated quotient of integers, by operators for which a division by zero is an error: in C++ it ends the
    process.
    """
    dtype = torch.result_type(x, y)
    if rounding_mode != "trunc" or dtype.is_floating_point:
        return NotImplemented
    x, y = (v if isinstance(v, Tensor) else aten.scalar_tensor.default(v, dtype=dtype) for v in (x, y))
    return aten.div.Tensor_mode(x - aten.fmod.Tensor(x, y), y, rounding_mode="floor")


def _eye(
    rows: Any, columns: Any, *, dtype: torch.dtype | None = None, device: torch.device | None = None, **_: Any
) -> Tensor:
    """torch's own compares bytes where they are enough, of which Inductor makes each vector element by element."""
    row, column = (torch.arange(size, device=device) for size in (rows, columns))
    return (row.unsqueeze(1) == column).to(dtype or torch.get_default_dtype())


def _integer_power(base: Any, exponent: Tensor) -> Any:
    """``2 ** n`` with the base as a tensor: the C++ wrapper (torch 2.13) hands a number on as a float."""
    dtype = torch.result_type(exponent, base)
    if dtype.is_floating_point:
        return NotImplemented
    return aten.pow.Tensor_Tensor(aten.scalar_tensor.default(base, dtype=dtype), exponent)
