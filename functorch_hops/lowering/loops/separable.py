"""Gradients of interpolation, and adaptive means, inside a loop (torch 2.13).

What is linear in each dimension by itself is a product with a small matrix for each of them: of ``y[o] = sum_i m[i, o]
x[i]`` the gradient is ``bar x[i] = sum_o m[i, o] bar y[o]``. Inductor has no C++ of these, but of the nearest in two
dimensions. A matrix is mostly zeros, so large sizes are left to the library, which does not multiply by them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..nearest import which_nearest
from .source import computed_dtype

__all__ = ["separable"]

aten = torch.ops.aten

_LONGEST = 32
"""Elements along a dimension up to which a product is faster than the library."""

Matrix = Callable[[int, int, torch.dtype], Tensor]
"""``(n, m, dtype)``: (n, m), of ``n`` elements that are read and ``m`` that are written."""


def separable() -> dict[Any, Callable[..., Any]]:
    """Decompositions."""
    return {
        aten._adaptive_avg_pool2d_backward.default: _mean_backward(2),
        aten._adaptive_avg_pool3d.default: _mean,
        aten._adaptive_avg_pool3d_backward.default: _mean_backward(3),
        aten._upsample_nearest_exact1d_backward.default: _upsampled_backward(is_exact=True),
        aten._upsample_nearest_exact2d_backward.default: _upsampled_backward(is_exact=True),
        aten._upsample_nearest_exact3d_backward.default: _upsampled_backward(is_exact=True),
        aten.upsample_bicubic2d_backward.default: _aligned_backward(_cubic),
        aten.upsample_bilinear2d_backward.default: _aligned_backward(_linear),
        aten.upsample_linear1d_backward.default: _aligned_backward(_linear),
        aten.upsample_nearest1d_backward.default: _upsampled_backward(is_exact=False),
        aten.upsample_nearest3d_backward.default: _upsampled_backward(is_exact=False),
        aten.upsample_trilinear3d_backward.default: _aligned_backward(_linear),
    }


def _multiplied(x: Tensor, matrices: Sequence[Matrix], sizes: Sequence[int], is_transposed: bool) -> Any:
    """The last dimensions of ``x``, each by its matrix, are ``sizes``."""
    first, dtype = x.dim() - len(sizes), x.dtype
    shape = *x.shape, *sizes
    if not all(type(size) is int and size > 0 for size in shape) or max(*x.shape[first:], *sizes) > _LONGEST:
        return NotImplemented
    x = x.to(computed_dtype(dtype))
    for d, (matrix, size) in enumerate(zip(matrices, sizes, strict=True), start=first):
        rows = x.movedim(d, -1)
        factor = matrix(size, x.shape[d], x.dtype).mT if is_transposed else matrix(x.shape[d], size, x.dtype)
        product = rows.reshape(-1, x.shape[d]) @ factor
        x = product.reshape(*rows.shape[:-1], size).movedim(-1, d)
    return x.to(dtype)


# ---------------------------------------------------------------------------------------------------------------------
# means


def _mean(x: Tensor, sizes: Sequence[int]) -> Any:
    return _multiplied(x, [_averaging] * len(sizes), sizes, is_transposed=False)


def _mean_backward(n: int) -> Callable[..., Any]:
    return lambda cotangent, x: _multiplied(cotangent, [_averaging] * n, x.shape[-n:], is_transposed=True)


def _averaging(n: int, m: int, dtype: torch.dtype) -> Tensor:
    i, o = torch.arange(n)[:, None], torch.arange(m)
    first, end = o * n // m, ((o + 1) * n + m - 1) // m
    return ((i >= first) & (i < end)).to(dtype) / (end - first).to(dtype)


# ---------------------------------------------------------------------------------------------------------------------
# interpolation


def _aligned_backward(matrix: Callable[[float, bool], Matrix]) -> Callable[..., Any]:
    def backward(
        cotangent: Tensor, out: Sequence[int], size: Sequence[int], is_aligned: bool, *scales: float | None
    ) -> Any:
        def between(n: int, m: int, scale: float | None) -> float:
            return (n - 1) / (m - 1) if is_aligned and m > 1 else 0.0 if is_aligned else _step(n, m, scale)

        return _of_each(cotangent, out, size, scales, lambda *of: matrix(between(*of), is_aligned))

    return backward


def _upsampled_backward(*, is_exact: bool) -> Callable[..., Any]:
    def backward(cotangent: Tensor, out: Sequence[int], size: Sequence[int], *scales: float | None) -> Any:
        return _of_each(cotangent, out, size, scales, lambda *of: _nearest(*of, is_exact=is_exact))

    return backward


def _of_each(
    cotangent: Tensor,
    out: Sequence[int],
    size: Sequence[int],
    scales: Sequence[float | None],
    matrix: Callable[[int, int, float | None], Matrix],
) -> Any:
    size = size[-len(out) :]
    of = zip(size, out, [*scales, *[None] * (len(out) - len(scales))])
    return _multiplied(cotangent, [matrix(n, m, scale) for n, m, scale in of], size, is_transposed=True)


def _step(n: int, m: int, scale: float | None) -> float:
    return 1 / scale if scale else n / m


def _nearest(n: int, m: int, scale: float | None, *, is_exact: bool) -> Matrix:
    def matrix(n: int, m: int, dtype: torch.dtype) -> Tensor:
        return (torch.arange(n)[:, None] == which_nearest(n, m, scale, is_exact=is_exact)).to(dtype)

    return matrix


def _linear(step: float, is_aligned: bool) -> Matrix:
    def matrix(n: int, m: int, dtype: torch.dtype) -> Tensor:
        o, i = torch.arange(m, dtype=dtype), torch.arange(n, dtype=dtype)[:, None]
        if n == m:  # whatever the scale is
            return (i == o).to(dtype)
        place = o * step if is_aligned else (o + 0.5) * step - 0.5
        return (1 - (i - place.clamp(0, n - 1)).abs()).clamp(min=0)

    return matrix


def _cubic(step: float, is_aligned: bool) -> Matrix:
    """Weights of four neighbours (Keys, 1981, with a = -0.75); those that are outside are the last inside."""

    def matrix(n: int, m: int, dtype: torch.dtype) -> Tensor:
        o, i, a = torch.arange(m, dtype=dtype), torch.arange(n)[:, None], -0.75
        place = o * step if is_aligned else (o + 0.5) * step - 0.5
        low = place.floor()
        total = None
        for k in range(-1, 3):
            x = (place - low - k).abs()
            weight = ((a + 2) * x - (a + 3)) * x * x + 1 if k in (0, 1) else ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
            part = torch.where(i == (low.long() + k).clamp(0, n - 1), weight, 0)
            total = part if total is None else total + part
        assert total is not None
        return total

    return matrix
