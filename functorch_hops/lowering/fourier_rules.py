"""Fourier transforms in loops, as products with small matrices.

A library's transform ends the kernel of a loop, and to call it costs as much as a few hundred numbers take. With
``n = a b``, ``t = t1 b + t2`` and ``k = k1 + a k2`` a transform of n numbers is b transforms of a numbers, factors, and
a transforms of b numbers (Cooley and Tukey, "An algorithm for the machine calculation of complex Fourier series",
1965),

    y[k1 + a k2] = sum_t2 w_b^(t2 k2) w_n^(t2 k1) sum_t1 w_a^(t1 k1) x[t1 b + t2],  w_n = exp(-2 pi i / n);

a transform of few numbers is a product with a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .complex_functions import multiplied, scaled
from .complex_parts import Parts
from .complex_rules import product

__all__ = ["FOURIER_RULES"]

aten = torch.ops.aten

_FEW = 16
"""So many numbers are transformed by one product; more are cut into factors up to this one, where they have any."""
_LARGEST = 64
"""Numbers without such factors are left to the library from here on."""
_ENOUGH = 1 << 18
"""From so many products of complex numbers on a library's transform is faster."""

_mm = product(aten.mm.default)


def _complex(x: Parts, dims: Sequence[int], normalization: int, forward: bool) -> Any:
    shape = x.real.shape
    if not _is_small(shape, dims):
        return NotImplemented
    for dim in dims:
        x = _along(x, dim, -1 if forward else 1)
    return scaled(x, _scale([shape[d] for d in dims], normalization))


def _from_real(x: Tensor, dims: Sequence[int], normalization: int, onesided: bool) -> Any:
    if not _is_small(x.shape, dims):
        return NotImplemented
    *others, last = dims
    y = _along(Parts(x, torch.zeros_like(x)), last, -1)
    if onesided:
        y = y.map(lambda part: part.narrow(last, 0, x.shape[last] // 2 + 1))
    for dim in others:
        y = _along(y, dim, -1)
    return scaled(y, _scale([x.shape[d] for d in dims], normalization))


def _to_real(x: Parts, dims: Sequence[int], normalization: int, size: int) -> Any:
    """The other half of what is transformed is the conjugate of the first, backwards."""
    *others, last = dims
    shape = [size if d == last % x.real.dim() else n for d, n in enumerate(x.real.shape)]
    if not _is_small(shape, dims):
        return NotImplemented
    for dim in others:
        x = _along(x, dim, 1)
    n_first = size // 2 + 1
    first = x.map(lambda part: part.narrow(last, 0, n_first))
    behind = x.map(lambda part: part.narrow(last, 1, size - n_first).flip(last))
    whole = Parts(
        torch.cat([first.real, behind.real], last),
        torch.cat([first.imag, -behind.imag], last),
    )
    return _along(whole, last, 1).real * _scale([shape[d] for d in dims], normalization)


def _is_small(shape: Sequence[Any], dims: Sequence[int]) -> bool:
    if not all(type(size) is int for size in shape):
        return False
    radices = [_radices(shape[d]) for d in dims]
    work = math.prod(shape) * sum(map(sum, radices))
    return 0 < work <= _ENOUGH and all(max(found) <= _LARGEST for found in radices)


def _radices(n: int) -> list[int]:
    a = _factor(n)
    return [n] if a == n else [a, *_radices(n // a)]


def _factor(n: int) -> int:
    """The numbers that are transformed first: near the square root, of what divides n."""
    if n <= _FEW:
        return n
    factors = [a for a in range(2, min(math.isqrt(n), _FEW) + 1) if n % a == 0]
    return factors[-1] if factors else n


def _along(x: Parts, dim: int, sign: int) -> Parts:
    """The transform along a dimension, without a factor."""
    x = x.map(lambda part: part.movedim(dim, 0))
    shape = x.real.shape
    y = _of_columns(x.map(lambda part: part.reshape(shape[0], -1)), sign)
    return y.map(lambda part: part.reshape(shape).movedim(0, dim))


def _of_columns(x: Parts, sign: int) -> Parts:
    n, columns = x.real.shape
    a = _factor(n)
    if a == n:
        return _mm(_matrix(n, n, n, sign, x.real), x)
    b = n // a
    y = _mm(_matrix(a, a, a, sign, x.real), x.map(lambda part: part.reshape(a, b * columns)))
    factors = _matrix(a, b, n, sign, x.real).map(lambda part: part[:, :, None])
    y = multiplied(y.map(lambda part: part.reshape(a, b, columns)), factors)
    y = _of_columns(y.map(lambda part: part.transpose(0, 1).reshape(b, a * columns)), sign)
    return y.map(lambda part: part.reshape(n, columns))


def _matrix(rows: int, columns: int, n: int, sign: int, like: Tensor) -> Parts:
    """The powers ``t k`` of ``exp(sign 2 pi i / n)``."""
    at = (torch.arange(rows, device=like.device)[:, None] * torch.arange(columns, device=like.device)) % n
    angle = torch.arange(n, device=like.device, dtype=torch.float64) * (sign * 2 * math.pi / n)
    return Parts(angle.cos().to(like.dtype)[at], angle.sin().to(like.dtype)[at])


def _scale(sizes: Sequence[int], normalization: int) -> float:
    """``normalization``: by nothing, by the root of the number of elements, by that number."""
    return float(math.prod(sizes) ** (-0.5 * normalization))


FOURIER_RULES: dict[Any, Callable[..., Any]] = {
    aten._fft_c2c.default: _complex,
    aten._fft_r2c.default: _from_real,
    aten._fft_c2r.default: _to_real,
}
