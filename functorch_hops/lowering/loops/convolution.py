"""Convolutions inside a loop as products with the shifted input, one row for each tap ("im2col").

A call of a library's convolution costs as much as a small one. Where the products are too large for a kernel, the loop
is torch's own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["convolutions"]

aten = torch.ops.aten

_MOST_TAPS = 64
"""Of one channel. Each is a statement of the kernel."""


def convolutions() -> dict[Any, Callable[..., Any]]:
    """Decompositions."""
    return {aten.convolution.default: _convolution, aten.convolution_backward.default: _convolution_backward}


class _Taps:
    """Where the elements lie that meet the same element of the weight."""

    def __init__(
        self, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
    ) -> None:
        self.kernel, self.size = weight.shape[2:], x.shape[2:]
        self.stride, self.padding, self.dilation = stride, padding, dilation
        reach = [d * (k - 1) + 1 for k, d in zip(self.kernel, dilation)]
        self.out = [(n + 2 * p - r) // s + 1 for n, p, r, s in zip(self.size, padding, reach, stride, strict=True)]

    @property
    def count(self) -> int:
        return math.prod(self.kernel)

    def starts(self) -> Iterator[list[int]]:
        """In the padded input."""
        for place in itertools.product(*map(range, self.kernel)):
            yield [i * d for i, d in zip(place, self.dilation)]

    def gathered(self, x: Tensor, groups: int) -> Tensor:
        """(groups, channels of a group times taps, batch times places)."""
        padded = aten.constant_pad_nd(x, [p for p in reversed(self.padding) for _ in range(2)])
        shifted = []
        for start in self.starts():
            part = padded
            for d, (first, step, n) in enumerate(zip(start, self.stride, self.out), start=2):
                part = aten.slice(part, d, first, first + step * (n - 1) + 1, step)
            shifted.append(part)
        rows = torch.stack(shifted, 2)
        rows = rows.reshape(x.shape[0], groups, x.shape[1] // groups * self.count, math.prod(self.out))
        return rows.permute(1, 2, 0, 3).flatten(2)

    def scattered(self, rows: Tensor, x: Tensor, groups: int) -> Tensor:
        """The transpose of ``gathered``, of stride 1."""
        batch, channels = x.shape[:2]
        rows = rows.reshape(groups, channels // groups, self.count, batch, *self.out).movedim(3, 0).flatten(1, 2)
        total = None
        for i, start in enumerate(self.starts()):
            pads = []
            for first, p, n, m in zip(start, self.padding, self.out, self.size):
                pads.append((first - p, m - n - first + p))
            part = aten.constant_pad_nd(rows[:, :, i], [value for pair in reversed(pads) for value in pair])
            total = part if total is None else total + part
        assert total is not None
        return total


def _taps(x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, transposed: bool) -> _Taps | None:
    n = x.ndim - 2
    if transposed or n < 1 or weight.ndim != x.ndim or not (len(stride) == len(padding) == len(dilation) == n):
        return None
    taps = _Taps(x, weight, stride, padding, dilation)
    return taps if taps.count <= _MOST_TAPS and min(taps.out) > 0 else None


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Any:
    taps = _taps(x, weight, stride, padding, dilation, transposed)
    if taps is None:
        return NotImplemented
    sums = torch.bmm(_by_group(weight, groups), taps.gathered(x, groups))
    out = sums.reshape(weight.shape[0], x.shape[0], *taps.out).movedim(1, 0)
    return out if bias is None else out + bias.reshape(-1, *[1] * len(taps.out))


def _by_group(weight: Tensor, groups: int) -> Tensor:
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def _convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> Any:
    taps = _taps(x, weight, stride, padding, dilation, transposed)
    if taps is None or (output_mask[0] and any(step != 1 for step in stride)):
        return NotImplemented
    rows = grad.movedim(1, 0).reshape(groups, weight.shape[0] // groups, -1)
    of_x = of_weight = of_bias = None
    if output_mask[0]:
        of_x = taps.scattered(torch.bmm(_by_group(weight, groups).mT, rows), x, groups)
    if output_mask[1]:
        of_weight = torch.bmm(rows, taps.gathered(x, groups).mT).reshape(weight.shape)
    if output_mask[2]:
        of_bias = grad.sum([0, *range(2, grad.ndim)])
    return of_x, of_weight, of_bias
