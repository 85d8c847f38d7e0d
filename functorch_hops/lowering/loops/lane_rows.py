"""How the numbers of each lane lie in a buffer, where a lane has several."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sympy

from .sizes import Size, expression_of

__all__ = ["LANE", "Rows", "places", "rows_of"]

LANE = sympy.Symbol("lane", integer=True, nonnegative=True)


@dataclass(frozen=True)
class Rows:
    """``size`` numbers of each of ``lanes`` lanes, which lie ``step`` apart. ``step`` 0: the same numbers for all."""

    lanes: Size
    step: int
    size: int

    def index(self, number: int) -> Any:
        """Where number ``number`` of lane ``LANE`` is."""
        if self.step == 0:
            return sympy.Integer(number)
        outer, inner = divmod(number, self.step)
        return outer * self.step * expression_of(self.lanes) + LANE * self.step + inner

    def number(self, index: Any) -> int | None:
        """Which number of lane ``LANE`` lies at ``index``, if it is one of its own."""
        rest = sympy.expand(index - self.step * LANE)
        if not rest.is_Integer or rest < 0:
            return None
        if self.step == 0:
            return int(rest) if rest < self.size else None
        outer, inner = divmod(int(rest), self.step * self.lanes) if isinstance(self.lanes, int) else (0, int(rest))
        number = outer * self.step + inner
        return number if inner < self.step and number < self.size else None


def rows_of(shape: Sequence[Size], lanes: Size) -> Rows:
    """Of a buffer without gaps: the first dimensions of ``lanes`` elements are those of the lanes, if there are any."""
    for start, end in itertools.combinations(range(len(shape) + 1), 2):
        if math.prod(shape[start:end]) == lanes and shape[start] != 1:
            step, size = math.prod(shape[end:]), math.prod((*shape[:start], *shape[end:]))
            return Rows(lanes, int(step), int(size))
    return Rows(lanes, 0, int(math.prod(shape)))


Way = list[list[Any]]
"""The indices of all numbers of a lane."""


def places(ranges: Sequence[int], lanes: int) -> tuple[list[Way], list[Way]]:
    """How ``ranges`` may run over lanes and what each has, and how over numbers that are the same for all lanes."""
    ways: list[Way] = []
    around = [[sympy.Integer(i) for i in range(n)] for n in ranges]
    for dim, size in enumerate(ranges if lanes > 1 else ()):
        for step in range(1, size // lanes + 1) if size % lanes == 0 else ():
            if (size // lanes) % step == 0:
                rows = Rows(lanes, step, size // lanes)
                own = [rows.index(number) for number in range(rows.size)]
                ways.append([*map(list, itertools.product(*around[:dim], own, *around[dim + 1 :]))])
    has_shared = not ways or math.prod(ranges) <= _MOST_OF_ALL
    return ways, [[*map(list, itertools.product(*around))]] if has_shared else []


_MOST_OF_ALL = 256
"""Numbers that are the same for all lanes and computed once for each vector of lanes."""
