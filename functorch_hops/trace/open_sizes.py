"""Calls of which torch has no kernel for open sizes (torch 2.13), and what stands in their place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["laid_out_zeros", "symbol_as_tensor"]


def symbol_as_tensor(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """A number of an open size as a tensor, if that is what this call converts: vmap gives a number beside a 0-d lane
    the dtype of the result so, and torch's kernel (2.13) knows no symbols.
    """
    if func is not torch.ops.aten._to_copy.default or not isinstance(
        args[0], (torch.SymInt, torch.SymFloat, torch.SymBool)
    ):
        return None
    made: Tensor = torch.ops.aten.scalar_tensor.default(args[0], dtype=kwargs.get("dtype"), device=kwargs.get("device"))
    return made


def laid_out_zeros(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Zeros laid out like another tensor, to which torch copies a tangent whose layout is not that of its primal, if
    that is what this call makes: torch's kernel (2.13) reads a concrete offset.
    """
    if func is not torch.ops.aten._new_zeros_with_same_feature_meta.default or not args[1].is_contiguous():
        return None
    x, other = args
    shape = [*x.shape[: kwargs.get("self_num_batch_dims", 0)], *other.shape]
    zeros: Tensor = torch.ops.aten.zeros.default(shape, dtype=x.dtype, device=x.device)
    return zeros
