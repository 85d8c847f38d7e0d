"""Gradients of padding by the values at the edge, and of sampling at given places, inside a loop (torch 2.13).

Inductor has C++ of the functions, and none of their derivatives.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["resampled"]

aten = torch.ops.aten

_BILINEAR, _NEAREST = 0, 1
_OUTSIDE_IS_ZERO = 0
_WIDE = torch.float32, torch.float64


def resampled() -> dict[Any, Callable[..., Any]]:
    """Decompositions."""
    return {
        aten.grid_sampler_2d_backward.default: _sampled_backward,
        **{
            operator.default: _replicated_backward
            for operator in (
                aten.replication_pad1d_backward,
                aten.replication_pad2d_backward,
                aten.replication_pad3d_backward,
            )
        },
    }


def _replicated_backward(cotangent: Tensor, x: Tensor, padding: Sequence[int]) -> Any:
    """To the first and the last number along each dimension come the cotangents of their copies."""
    if min(padding) < 0 or x.dtype not in _WIDE:
        return NotImplemented
    for i, (before, behind) in enumerate(zip(padding[::2], padding[1::2])):
        d = x.dim() - 1 - i
        size = x.shape[d]
        place = torch.arange(size, device=x.device).reshape(-1, *[1] * i)
        first = cotangent.narrow(d, 0, before).sum(d, keepdim=True)
        last = cotangent.narrow(d, before + size, behind).sum(d, keepdim=True)
        own = cotangent.narrow(d, before, size)
        cotangent = own + torch.where(place == 0, first, 0) + torch.where(place == size - 1, last, 0)
    return cotangent


def _sampled_backward(
    cotangent: Tensor, x: Tensor, grid: Tensor, mode: int, padding: int, is_aligned: bool, asked: Sequence[bool]
) -> Any:
    """Of ``y = sum over corners of u v x[corner]``, where ``u`` and ``v`` are the weights along the two sides."""
    if mode not in (_BILINEAR, _NEAREST) or padding != _OUTSIDE_IS_ZERO or x.dtype not in _WIDE:
        return NotImplemented
    sizes = x.shape[:-3:-1]  # the first number of a place is that along the last side
    scales = [(size - 1 if is_aligned else size) / 2 for size in sizes]
    first = 0 if is_aligned else -0.5
    places = [(part + 1) * scale + first for part, scale in zip(grid.unbind(-1), scales)]  # rounded as torch's
    image, channel = (torch.arange(x.shape[d], device=x.device).reshape(-1, *[1] * (3 - d)) for d in (0, 1))
    of_x, slopes = torch.zeros_like(x), [torch.zeros_like(cotangent)] * 2
    for corner in itertools.product((0, 1), repeat=2) if mode == _BILINEAR else [(0, 0)]:
        if mode == _BILINEAR:
            at = [place.floor() + side for place, side in zip(places, corner)]
            u, v = (1 - (place - i).abs() for place, i in zip(places, at))
        else:
            at = [place.round() for place in places]
            u = v = torch.ones_like(places[0])
        inside = [(i >= 0) & (i < size) for i, size in zip(at, sizes)]
        is_inside = (inside[0] & inside[1]).unsqueeze(1)
        weight, column, row = (torch.where(is_inside, part.unsqueeze(1), 0) for part in (u * v, *at))
        corner_of = image, channel, row.long(), column.long()
        of_x = of_x.index_put(corner_of, torch.where(is_inside, cotangent, 0) * weight, accumulate=True)
        if mode == _BILINEAR:
            value = torch.where(is_inside, x[corner_of], 0)
            lengths = [(2 * side - 1) * other.unsqueeze(1) for side, other in zip(corner, (v, u))]
            slopes = [slope + length * value for slope, length in zip(slopes, lengths)]
    if mode == _BILINEAR:
        of_grid = torch.stack([(cotangent * slope).sum(1) * scale for slope, scale in zip(slopes, scales)], -1)
    else:
        of_grid = torch.zeros_like(grid)
    return tuple(grad if is_asked else None for grad, is_asked in zip((of_x, of_grid), asked))
