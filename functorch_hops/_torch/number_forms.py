"""Arithmetic of scalars and Python numbers, for forward mode.

The tangent of ``x * 1.5`` is float64 in torch.func (2.13) where ``x`` is a float32 scalar, and the next operator may
refuse it: a number is a float64 tensor to torch.func, like any other. The overloads for numbers keep it a number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["NUMBER_FORMS"]

_aten = torch.ops.aten


def _form(function: Callable[..., Any], of_number: Callable[..., Tensor], to_number: Callable[..., Tensor]) -> Any:
    """``function``, by ``of_number(x, number)``, or where the number is first by ``to_number(x, number)``."""

    def form(input: Any, other: Any, **kwargs: Any) -> Tensor:
        if "out" in kwargs:
            return function(input, other, **kwargs)
        if type(other) in (float, complex) and isinstance(input, Tensor) and input.dim() == 0:
            return of_number(input, other, **kwargs)
        if type(input) in (float, complex) and isinstance(other, Tensor) and other.dim() == 0:
            return to_number(other, input, **kwargs)
        return function(input, other, **kwargs)

    return form


def _number_plus(x: Tensor, number: complex, alpha: complex = 1) -> Tensor:
    return _aten.add.Scalar(x if alpha == 1 else _aten.mul.Scalar(x, alpha), number)


def _over_number(x: Tensor, number: complex, rounding_mode: str | None = None) -> Tensor:
    if rounding_mode is None:
        return _aten.div.Scalar(x, number)
    return _aten.div.Scalar_mode(x, number, rounding_mode=rounding_mode)


def _number_over(x: Tensor, number: complex, rounding_mode: str | None = None) -> Tensor:
    if rounding_mode is None:
        return _aten.mul.Scalar(x.reciprocal(), number)
    dividend = x.new_tensor(number, dtype=torch.result_type(x, number))
    return torch.div(dividend, x.detach(), rounding_mode=rounding_mode)


_SUMS = torch.add, Tensor.add, _aten.add.Tensor
_DIFFERENCES = torch.sub, torch.subtract, Tensor.sub, Tensor.subtract, _aten.sub.Tensor
_PRODUCTS = torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, _aten.mul.Tensor
_QUOTIENTS = torch.div, torch.divide, torch.true_divide, Tensor.div, Tensor.divide, Tensor.true_divide, _aten.div.Tensor

NUMBER_FORMS: dict[Any, Callable[..., Any]] = {
    **{f: _form(f, _aten.add.Scalar, _number_plus) for f in _SUMS},
    **{f: _form(f, _aten.sub.Scalar, _aten.rsub.Scalar) for f in _DIFFERENCES},
    **{f: _form(f, _aten.mul.Scalar, _aten.mul.Scalar) for f in _PRODUCTS},
    **{f: _form(f, _over_number, _number_over) for f in (*_QUOTIENTS, _aten.div.Tensor_mode)},
    Tensor.__rdiv__: _form(Tensor.__rdiv__, _number_over, _over_number),
}
"""By the function of torch."""
