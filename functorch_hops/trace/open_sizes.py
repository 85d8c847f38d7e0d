"""Calls of which torch has no kernel for open sizes (torch 2.13), and what is done in their place.

First of all tangents that are zero by structure. torch has tensors for them whose kernels skip what they are multiplied
with, were it infinite. With open sizes these kernels read concrete ones, which closes them. So here such a tangent is
ordinary zeros that are remembered, and the kernels are these.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _torch

__all__ = ["SymbolicZeros", "laid_out_zeros", "symbol_as_tensor"]

_aten = torch.ops.aten
_PRODUCTS = (_aten.mul.Tensor, _aten.div.Tensor)
_SUMS = (_aten.add.Tensor, _aten.sub.Tensor)


class SymbolicZeros:
    """Those of one capture."""

    def __init__(self) -> None:
        self._known = _torch.WeakTensorKeyDictionary()

    def result(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """What a call gives that makes such zeros, or computes with them; None for any other."""
        if func is _aten._efficientzerotensor.default:
            return self._new(args[0], kwargs.get("dtype"), kwargs.get("device"))
        if func not in _PRODUCTS and func not in _SUMS:
            return None
        first, second = map(self._is_zero, args)
        if func in _PRODUCTS and (first or (second and func is _aten.mul.Tensor)):
            like = _value(func, args, kwargs)
            return self._new(like.shape, like.dtype, like.device)
        if func in _SUMS and second and isinstance(args[0], Tensor):
            return _cast(args[0], _value(func, args, kwargs))
        if func is _aten.add.Tensor and first and not kwargs and isinstance(args[1], Tensor):
            return _cast(args[1], _value(func, args, kwargs))
        return None

    def _is_zero(self, x: Any) -> bool:
        return isinstance(x, Tensor) and x in self._known

    def _new(self, shape: Any, dtype: torch.dtype | None, device: Any) -> Tensor:
        zeros: Tensor = _aten.zeros.default(list(shape), dtype=dtype, device=device)
        self._known[zeros] = True
        return zeros


def _value(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The metadata of a result; nothing is recorded."""
    with _torch.disable_proxy_modes_tracing():
        value: Tensor = func(*args, **kwargs)
    return value


def _cast(x: Tensor, like: Tensor) -> Tensor:
    expanded: Tensor = _aten.expand.default(x, list(like.shape))
    return expanded if x.dtype == like.dtype else _aten._to_copy.default(expanded, dtype=like.dtype)


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
