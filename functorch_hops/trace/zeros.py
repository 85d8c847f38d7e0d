"""Tangents that are zero by structure.

torch has tensors for them, whose memory is a null pointer and whose kernels skip what they are multiplied with, were it
infinite. In a graph such a tensor is a trap: compiled code reads the pointer (torch 2.13), and with open sizes the
kernels read concrete ones. So in a capture such a tangent is ordinary zeros that are remembered, and the kernels are
these.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _torch
from ..ir.memory import is_view_operator

__all__ = ["SymbolicZeros"]

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
        if args and self._is_zero(args[0]) and is_view_operator(func):
            return self._view(func, args, kwargs)
        if func not in _PRODUCTS and func not in _SUMS:
            return None
        first, second = map(self._is_zero, args)
        if (first and second) if func in _SUMS else (first or (second and func is _aten.mul.Tensor)):
            like = _value(func, args, kwargs)
            return self._new(like.shape, like.dtype, like.device)
        if func in _SUMS and second and isinstance(args[0], Tensor):
            return _cast(args[0], _value(func, args, kwargs))
        if func in _SUMS and first and not kwargs and isinstance(args[1], Tensor):
            # As torch's kernel does: there is no subtraction from truth values, whose tangents these may be.
            like = _value(func, args, kwargs)
            return _cast(args[1] if func is _aten.add.Tensor else _aten.neg.default(args[1]), like)
        return None

    def forget(self, written: Tensor) -> None:
        """What lies in this memory is about to change."""
        key = _torch.storage_key(written)
        for zeros in [t for t in self._known if _torch.storage_key(t) == key]:
            del self._known[zeros]

    def _is_zero(self, x: Any) -> bool:
        return isinstance(x, Tensor) and x in self._known

    def _view(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        views = func(*args, **kwargs)
        for view in views if isinstance(views, (list, tuple)) else [views]:
            self._known[view] = True
        return views

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
    """``x`` as a sum of this kind, in memory of its own: forward mode writes to tangents."""
    if x.shape == like.shape and x.dtype == like.dtype:
        copy: Tensor = _aten.clone.default(x)
        return copy
    expanded = _aten.expand.default(x, list(like.shape))
    packed = _aten.clone.default(expanded, memory_format=torch.contiguous_format)
    cast: Tensor = packed if x.dtype == like.dtype else _aten._to_copy.default(packed, dtype=like.dtype)
    return cast
