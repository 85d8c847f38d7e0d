"""Functions of torch that a trace or a vmap can't see through, written in operators that it can."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["replaced"]


def replaced(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the call gives, by other operators; NotImplemented where torch's own will do."""
    other = _REPLACED.get(func)
    return NotImplemented if other is None else other(*args, **kwargs)


def _one_hot(classes: Tensor, num_classes: int = -1) -> Any:
    """torch reads the classes to check them, unless it finds a traced tensor that no transform wraps."""
    if num_classes < 0 or classes.dtype != torch.int64:
        return NotImplemented  # a size that depends on values, or an error of torch's
    return (classes.unsqueeze(-1) == torch.arange(num_classes, device=classes.device)).to(torch.int64)


def _flip(x: Tensor, *dims: Any) -> Any:
    """torch's batching rule (2.13) refuses what has no dimensions."""
    return x.clone() if x.dim() == 0 and dims in ((0,), (-1,), ((0,),), ((-1,),), ([0],), ([-1],)) else NotImplemented


def _out_dtype(operator: Any, dtype: torch.dtype, *args: Any) -> Tensor:
    """torch's operator (2.13) knows no transform."""
    inputs = [a.dtype for a in args if isinstance(a, Tensor)]
    common = functools.reduce(torch.promote_types, inputs, dtype)
    result: Tensor = operator(*(a.to(common) if isinstance(a, Tensor) else a for a in args)).to(dtype)
    return result


_REPLACED: dict[Any, Callable[..., Any]] = {
    torch.nn.functional.one_hot: _one_hot,
    torch.ops.higher_order.out_dtype: _out_dtype,
    torch.flip: _flip,
    Tensor.flip: _flip,
}
