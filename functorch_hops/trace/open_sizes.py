"""Calls of which torch has no kernel for open sizes (torch 2.13), and what stands in their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _torch

__all__ = ["laid_out_zeros", "symbol_as_tensor", "written_copy"]


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


def written_copy(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``slice_scatter`` or ``select_scatter`` of lanes of a vmap as a write to a view of a copy: vmap's own rule (torch
    2.13) reads concrete sizes. NotImplemented for other calls.
    """
    view = _VIEWS.get(func)
    if view is None or not any(isinstance(a, Tensor) and _torch.is_batched(a) for a in args):
        return NotImplemented

    def written(input: Tensor, src: Tensor, *where: Any, **named: Any) -> Tensor:
        # A write needs lanes of its own, which those of ``src`` may be alone.
        copy = torch.where(src.new_zeros((), dtype=torch.bool), input, input)
        view(copy, *where, **named).copy_(src)
        return copy

    return written(*args, **kwargs)


_VIEWS: dict[Any, Callable[..., Tensor]] = {
    **dict.fromkeys(
        (torch.slice_scatter, Tensor.slice_scatter, torch.ops.aten.slice_scatter.default), torch.ops.aten.slice.Tensor
    ),
    **dict.fromkeys(
        (torch.select_scatter, Tensor.select_scatter, torch.ops.aten.select_scatter.default), torch.ops.aten.select.int
    ),
}
