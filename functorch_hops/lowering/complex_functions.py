"""Arithmetic and elementary functions of complex numbers, on their parts.

Where a factor is a real number or tensor, it multiplies both parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .complex_parts import Parts, Value, any_part, imag_part, real_part, with_parts

__all__ = [
    "absolute",
    "acos",
    "acosh",
    "add",
    "angle_of",
    "asin",
    "atanh",
    "conj",
    "cos",
    "cosh",
    "div",
    "exp",
    "expm1",
    "lerp",
    "log",
    "log1p",
    "logarithm",
    "multiplied",
    "of_result",
    "polar",
    "power",
    "reciprocal",
    "scaled",
    "sgn",
    "sigmoid",
    "sin",
    "sinh",
    "sqrt",
    "square",
    "sub",
    "tan",
    "tanh",
    "turned",
]


def scaled(x: Value, factor: complex) -> Value:
    return x if factor == 1 else multiplied(x, factor)


def add(x: Value, y: Value, *, alpha: complex = 1) -> Parts:
    y = scaled(y, alpha)
    return Parts(real_part(x) + real_part(y), _sum(imag_part(x), imag_part(y), x, y))


def _sum(a: Any, b: Any, x: Value, y: Value) -> Any:
    if a is not None and b is not None:
        return a + b
    shape = torch.broadcast_shapes(*(real_part(v).shape for v in (x, y) if not isinstance(v, (int, float, complex))))
    one = a if b is None else b
    if not isinstance(one, Tensor):
        one = torch.full((), one, dtype=torch.float64, device=any_part(x, y).device)
    return one.expand(shape)


def _negative(x: Value) -> Any:
    return Parts(-x.real, -x.imag) if isinstance(x, Parts) else -x


def sub(x: Value, y: Value, *, alpha: complex = 1) -> Parts:
    return add(x, _negative(scaled(y, alpha)))


def multiplied(x: Value, y: Value) -> Any:
    (a, b), (c, d) = (real_part(x), imag_part(x)), (real_part(y), imag_part(y))
    if b is None:
        return a * c if d is None else Parts(a * c, a * d)
    return Parts(a * c, b * c) if d is None else Parts(a * c - b * d, a * d + b * c)


def div(x: Value, y: Value) -> Any:
    c, d = real_part(y), imag_part(y)
    if d is None:
        return Parts(x.real / c, x.imag / c) if isinstance(x, Parts) else x / c
    if not isinstance(y, Parts):
        return multiplied(x, 1 / complex(y)) if y else div(with_parts(x, any_part(x)), 0.0)
    # By the larger part, so that no square overflows. Zero and infinity have no direction: they count as real ones.
    scale = torch.maximum(c.abs(), d.abs()).reciprocal()
    is_regular = (scale > 0) & (scale < math.inf)
    c, d = torch.where(is_regular, c * scale, 1), torch.where(is_regular, d * scale, 0)
    return multiplied(multiplied(x, Parts(c, -d)), scale / (c * c + d * d))


def power(base: Value, exponent: Value) -> Parts:
    x = with_parts(base, any_part(base, exponent))
    if isinstance(exponent, (int, float, complex)) and exponent in _POWERS:
        return _POWERS[exponent](x)
    exponential = multiplied(log(x), exponent)
    result, is_zero = exp(exponential), exponential.real == -math.inf
    return Parts(torch.where(is_zero, 0, result.real), torch.where(is_zero, 0, result.imag))


def lerp(x: Value, y: Value, weight: Value) -> Parts:
    return add(x, multiplied(weight, sub(y, x)))


def square(x: Parts) -> Parts:
    return Parts(x.real * x.real - x.imag * x.imag, 2 * x.real * x.imag)


def reciprocal(x: Parts) -> Parts:
    return div(1.0, x)


def absolute(x: Parts) -> Tensor:
    a, b = x.real.abs(), x.imag.abs()
    large, small = torch.maximum(a, b), torch.minimum(a, b)
    ratio = small / large
    return torch.where(ratio == ratio, large * (1 + ratio * ratio).sqrt(), large)


def angle_of(x: Parts) -> Tensor:
    return torch.atan2(x.imag, x.real)


def sgn(x: Parts) -> Parts:
    size = absolute(x)
    size = torch.where(size == 0, 1, size)
    return Parts(x.real / size, x.imag / size)


def polar(size: Tensor, angle: Tensor) -> Parts:
    return Parts(size * angle.cos(), size * angle.sin())


def exp(x: Parts) -> Parts:
    return polar(x.real.exp(), x.imag)


def log(x: Parts) -> Parts:
    return Parts(absolute(x).log(), angle_of(x))


def sqrt(x: Parts) -> Parts:
    """The root with the larger part without cancellation, the other one from their product."""
    large = (absolute(x) * 0.5 + x.real.abs() * 0.5).sqrt()
    small = x.imag.abs() / torch.where(large == 0, 1, 2 * large)
    is_right = x.real >= 0
    return Parts(torch.where(is_right, large, small), torch.copysign(torch.where(is_right, small, large), x.imag))


def sin(x: Parts) -> Parts:
    return Parts(x.real.sin() * x.imag.cosh(), x.real.cos() * x.imag.sinh())


def cos(x: Parts) -> Parts:
    return Parts(x.real.cos() * x.imag.cosh(), -x.real.sin() * x.imag.sinh())


def sinh(x: Parts) -> Parts:
    return Parts(x.real.sinh() * x.imag.cos(), x.real.cosh() * x.imag.sin())


def cosh(x: Parts) -> Parts:
    return Parts(x.real.cosh() * x.imag.cos(), x.real.sinh() * x.imag.sin())


def tanh(x: Parts) -> Parts:
    """``(t + u i) / (1 + t u i)`` with ``t = tanh(a)`` and ``u = tan(b)``; ``1 - t^2`` as ``1 / cosh(a)^2``."""
    t, u, c = x.real.tanh(), x.imag.tan(), 1 / x.real.cosh()
    size = 1 + (t * u).square()
    return Parts(t * (1 + u.square()) / size, u * c * c / size)


def sigmoid(x: Parts) -> Parts:
    half = tanh(Parts(x.real * 0.5, x.imag * 0.5))
    return Parts(0.5 + half.real * 0.5, half.imag * 0.5)


def expm1(x: Parts) -> Parts:
    """``e^a cos(b) - 1`` without cancellation near zero: ``(e^a - 1) cos(b) - 2 sin(b / 2)^2``."""
    sine = (x.imag * 0.5).sin()
    return Parts(x.real.expm1() * x.imag.cos() - 2 * sine * sine, x.real.exp() * x.imag.sin())


def log1p(x: Parts) -> Parts:
    """``|1 + z|^2 - 1 = a (a + 2) + b^2``, where that does not overflow."""
    moved = Parts(1 + x.real, x.imag)
    is_small = torch.maximum(x.real.abs(), x.imag.abs()) < 1
    near = 0.5 * (x.real * (x.real + 2) + x.imag * x.imag).log1p()
    return Parts(torch.where(is_small, near, absolute(moved).log()), angle_of(moved))


def logarithm(base: float) -> Callable[[Parts], Any]:
    return lambda x: multiplied(log(x), 1 / math.log(base))


def atanh(x: Parts) -> Parts:
    a, b = x.real.abs(), x.imag
    size = 0.25 * (4 * a / ((1 - a) * (1 - a) + b * b)).log1p()
    return Parts(torch.copysign(size, x.real), 0.5 * torch.atan2(2 * b, (1 - a) * (1 + a) - b * b))


def asin(x: Parts) -> Parts:
    """Right on both sides of the cuts, as the next two are (Kahan, Branch cuts for complex elementary functions)."""
    left, right = sqrt(sub(1.0, x)), sqrt(add(1.0, x))
    return Parts(torch.atan2(x.real, multiplied(left, right).real), multiplied(conj(left), right).imag.asinh())


def acos(x: Parts) -> Parts:
    left, right = sqrt(sub(1.0, x)), sqrt(add(1.0, x))
    return Parts(2 * torch.atan2(left.real, right.real), multiplied(conj(right), left).imag.asinh())


def acosh(x: Parts) -> Parts:
    left, right = sqrt(sub(x, 1.0)), sqrt(add(x, 1.0))
    return Parts(multiplied(conj(left), right).real.asinh(), 2 * torch.atan2(left.imag, right.real))


def turned(f: Callable[[Parts], Parts]) -> Callable[[Parts], Parts]:
    """``-i f(i z)``."""

    def rule(x: Parts) -> Parts:
        y = f(Parts(-x.imag, x.real))
        return Parts(y.imag, -y.real)

    return rule


tan = turned(tanh)


def of_result(derivative: Callable[[Parts], Value]) -> Callable[..., Any]:
    """The rule of an operator that multiplies a cotangent with the conjugate of a derivative."""
    return lambda cotangent, result: multiplied(cotangent, conj(derivative(result)))


def conj(x: Any) -> Any:
    return Parts(x.real, -x.imag) if isinstance(x, Parts) else x


_POWERS: dict[complex, Callable[[Parts], Parts]] = {
    0: lambda x: Parts(torch.ones_like(x.real), torch.zeros_like(x.imag)),
    1: lambda x: x,
    2: square,
    3: lambda x: multiplied(square(x), x),
    4: lambda x: square(square(x)),
    -1: reciprocal,
    -2: lambda x: reciprocal(square(x)),
    0.5: sqrt,
    -0.5: lambda x: reciprocal(sqrt(x)),
}
