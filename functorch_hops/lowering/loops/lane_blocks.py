"""How lanes are cut into blocks.

NOTE [Lanes of several dimensions] Where all that a body reads is laid out as its lanes are, one after the other, these
have one dimension. A factor that is expanded over some dimension keeps it apart: the lanes have as many dimensions as
the kernels of the body need. A block takes some rows of one dimension, all of the dimensions behind it, and one place
in each before it; so its lanes lie one after the other, and what is expanded is read in rows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sympy import Symbol

from .forms import Refused
from .sizes import OpenSize, Size, hint, quotient, ratio

__all__ = ["REST", "Blocks", "blocks", "lane_shape"]

_SMALL, _LARGE = 64, 4096
"""Lanes whose carries fit into registers; lanes that are read and written in long rows, their carries in L1."""
_FEW = 256
"""Lanes from which on rows count."""
_CACHE = 1 << 14
_VECTOR = 16


@dataclass(frozen=True)
class Blocks:
    """``shape`` of the lanes; a block takes ``rows`` of dimension ``cut``. No dimension behind it is open."""

    shape: tuple[Size, ...]
    cut: int
    rows: int

    @property
    def lanes(self) -> Size:
        return math.prod(self.shape)

    @property
    def inner(self) -> tuple[int, ...]:
        return tuple(map(int, self.shape[self.cut + 1 :]))

    @property
    def in_dimension(self) -> Size:
        """How many blocks there are for one place in the dimensions before."""
        return quotient(self.shape[self.cut] + (self.rows - 1), self.rows)

    @property
    def number(self) -> Size:
        return math.prod(self.shape[: self.cut]) * self.in_dimension

    @property
    def row_counts(self) -> list[Size]:
        """Of a block; of the last one in its dimension, if that has fewer."""
        size = self.shape[self.cut]
        rest = REST if isinstance(size, OpenSize) else size % self.rows
        return [self.rows, rest] if isinstance(rest, OpenSize) or rest else [self.rows]

    def size(self, rows: Size) -> Size:
        """Lanes of a block of so many rows."""
        return rows * math.prod(self.inner)


REST = OpenSize(Symbol("rest", integer=True, nonnegative=True), _SMALL)
"""The rows of a last block, where the size of its dimension is open."""


def lane_shape(count: Size, ranges: Iterable[Sequence[Size]]) -> tuple[Size, ...]:
    """The dimensions of ``count`` lanes of which each of ``ranges`` merges some neighbours."""
    steps: set[Size] = {1, count}
    for sizes in ranges:
        steps.update(itertools.accumulate(reversed(sizes), lambda a, b: a * b))
    ordered = sorted(steps, key=hint)
    ratios = [ratio(large, small) for small, large in itertools.pairwise(ordered)]
    if None in ratios:
        raise Refused("its kernels run over dimensions that do not fit together")
    return tuple(reversed(ratios)) or (1,)  # type: ignore[arg-type]


def blocks(shape: tuple[Size, ...], carry_bytes: int, *, has_rows: bool, parts: int) -> Blocks:
    """Blocks for lanes that carry so many bytes each, at least ``parts`` of them if there are enough lanes.
    ``has_rows``: whether lanes read or write something at every step.
    """
    count = hint(math.prod(shape))
    most = min(_LARGE, _CACHE // max(carry_bytes, 1), count // parts) if has_rows and count > _FEW else 0
    most = max(most, _SMALL)
    cut, inner = len(shape) - 1, 1
    while cut > 0 and isinstance(size := shape[cut], int) and inner * size * 2 <= most:
        inner *= size
        cut -= 1
    size, rows, step = shape[cut], max(1, most // inner), _VECTOR // math.gcd(_VECTOR, inner)
    if isinstance(size, OpenSize):
        return Blocks(shape, cut, max(rows // step, 1) * step)
    number = -(-size // min(size, rows))
    even = -(-size // (number * step)) * step  # as many blocks, of nearly one size
    return Blocks(shape, cut, min(size, even))
