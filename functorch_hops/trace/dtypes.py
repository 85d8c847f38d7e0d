"""Dtypes that an operator refuses, which its fake does not look at.

The shape functions of many operators (torch 2.13: products, writes by index, batch norm) take any dtypes. The error of
eager would come when the graph runs, without the user's line, and under a compiler as the failure of a kernel. So where
operands of different dtypes meet in an operator that is not known to convert them, it is run on the smallest real
tensors of these dtypes: the error is torch's own, at the line that is being captured.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _torch

__all__ = ["check_dtypes"]

_OF_DTYPES = re.compile(r"dtype|scalar type", re.IGNORECASE)
_aten = torch.ops.aten
_POINTWISE_AND_STRICT = (_aten.complex.default, _aten.polar.default)
_CONVERTS = (_aten.copy_.default, _aten.copy.default)


def check_dtypes(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Raise what torch raises for operands of these dtypes, if it does."""
    if not _may_refuse(func) or len({t.dtype for t in _tensors(args)}) < 2:
        return
    with _torch.suspended(keep_autocast=False):
        try:
            func(*map(_small, args), **{name: _small(value) for name, value in kwargs.items()})
        except (RuntimeError, TypeError, ValueError) as error:
            if _OF_DTYPES.search(str(error)):
                raise


@functools.cache
def _may_refuse(func: Any) -> bool:
    if not isinstance(func, _torch.OpOverload) or func.namespace != "aten" or func in _CONVERTS:
        return False
    if torch.Tag.nondeterministic_seeded in func.tags:
        return False
    return torch.Tag.pointwise not in func.tags or func in _POINTWISE_AND_STRICT


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from _tensors(v)


def _small(value: Any) -> Any:
    """One element for each tensor: 0 as an index, 1 as a value."""
    if isinstance(value, Tensor):
        fill = torch.ones if value.dtype.is_floating_point or value.dtype.is_complex else torch.zeros
        return fill((1,) * value.dim(), dtype=value.dtype)
    if isinstance(value, (list, tuple)):
        return [_small(v) for v in value]
    return value
