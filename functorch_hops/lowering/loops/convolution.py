"""Convolutions inside a loop as products with the shifted input, one row for each tap ("im2col"); transposed ones as
the gradients of these.

A call of a library's convolution costs as much as a small one. Where the products are too large for a kernel, the loop
is torch's own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

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
    """Where the elements lie that meet the same element of the weight. ``size``: of what is read; ``out``: of what is
    written, which a transposed convolution has as its input.
    """

    def __init__(
        self, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
    ) -> None:
        self.kernel, self.stride, self.padding, self.dilation = kernel, stride, padding, dilation
        self.reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation)]
        self.size: Sequence[int] = ()
        self.out: Sequence[int] = ()

    def reading(self, size: Sequence[int]) -> Self:
        sides = zip(size, self.padding, self.reach, self.stride, strict=True)
        self.size, self.out = size, [(n + 2 * p - r) // s + 1 for n, p, r, s in sides]
        return self

    def writing(self, out: Sequence[int], more: Sequence[int]) -> Self:
        sides = zip(out, self.padding, self.reach, self.stride, more, strict=True)
        self.size, self.out = [(n - 1) * s - 2 * p + r + m for n, p, r, s, m in sides], out
        return self

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

    def scattered(self, rows: Tensor, batch: int, groups: int) -> Tensor:
        """The transpose of ``gathered``."""
        rows = rows.reshape(groups, -1, self.count, batch, *self.out).movedim(3, 0).flatten(1, 2)
        for d, step in enumerate(self.stride, start=3):
            rows = _apart(rows, d, step)
        total = None
        for i, start in enumerate(self.starts()):
            pads = []
            for first, p, n, m, step in zip(start, self.padding, self.out, self.size, self.stride):
                pads.append((first, m + 2 * p - (n - 1) * step - 1 - first))
            part = aten.constant_pad_nd(rows[:, :, i], [value for pair in reversed(pads) for value in pair])
            total = part if total is None else total + part
        assert total is not None
        for d, (p, n) in enumerate(zip(self.padding, self.size), start=2):
            total = total.narrow(d, p, n)
        return total


def _apart(x: Tensor, dim: int, step: int) -> Tensor:
    """``step - 1`` zeros between any two elements."""
    if step == 1:
        return x
    size = x.shape[dim]
    x = aten.constant_pad_nd(x.unsqueeze(dim + 1), [0, 0] * (x.dim() - 1 - dim) + [0, step - 1])
    return x.flatten(dim, dim + 1).narrow(dim, 0, (size - 1) * step + 1)


def _taps(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    more: Sequence[int] | None,
) -> _Taps | None:
    """``more``: the places at the end that a transposed convolution has besides, None for one that is not."""
    n = x.ndim - 2
    if n < 1 or weight.ndim != x.ndim or not (len(stride) == len(padding) == len(dilation) == n):
        return None
    taps = _Taps(weight.shape[2:], stride, padding, dilation)
    if taps.count > _MOST_TAPS:
        return None
    taps = taps.reading(x.shape[2:]) if more is None else taps.writing(x.shape[2:], more)
    return taps if min(*taps.out, *taps.size) > 0 else None


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
    taps = _taps(x, weight, stride, padding, dilation, output_padding if transposed else None)
    if taps is None:
        return NotImplemented
    if transposed:
        out = taps.scattered(torch.bmm(_by_group(weight, groups).mT, _rows(x, groups)), x.shape[0], groups)
    else:
        sums = torch.bmm(_by_group(weight, groups), taps.gathered(x, groups))
        out = sums.reshape(weight.shape[0], x.shape[0], *taps.out).movedim(1, 0)
    return out if bias is None else out + bias.reshape(-1, *[1] * len(taps.out))


def _by_group(weight: Tensor, groups: int) -> Tensor:
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def _rows(x: Tensor, groups: int) -> Tensor:
    """(groups, channels of a group, batch times places)."""
    return x.movedim(1, 0).reshape(groups, x.shape[1] // groups, -1)


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
    taps = _taps(x, weight, stride, padding, dilation, output_padding if transposed else None)
    if taps is None:
        return NotImplemented
    of_x = of_weight = of_bias = None
    # What the taps gather from, and what meets it: a transposed convolution has them the other way round.
    read, met = (grad, x) if transposed else (x, grad)
    if output_mask[0] and transposed:
        sums = torch.bmm(_by_group(weight, groups), taps.gathered(grad, groups))
        of_x = sums.reshape(weight.shape[0], x.shape[0], *taps.out).movedim(1, 0)
    elif output_mask[0]:
        of_x = taps.scattered(torch.bmm(_by_group(weight, groups).mT, _rows(grad, groups)), x.shape[0], groups)
    if output_mask[1]:
        of_weight = torch.bmm(_rows(met, groups), taps.gathered(read, groups).mT).reshape(weight.shape)
    if output_mask[2]:
        of_bias = grad.sum([0, *range(2, grad.ndim)])
    return of_x, of_weight, of_bias
