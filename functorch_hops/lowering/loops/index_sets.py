"""Index sets split where masks change (torch 2.13).

NOTE [Usual indices] What is read at a neighbour or written inside a border has masks, comparisons of an index with a
number: ``x >= 1 and x < n - 1``. Inductor computes them for each vector, many times over in a gradient. Most indices
lie between the same numbers, though. For these a kernel is written once more, to which its comparisons are known: no
mask is left of them. Which indices that are, one condition for each vector asks.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

__all__ = ["MIRRORED", "Interval", "is_within", "most_indices", "splitting_handler"]


class Interval(NamedTuple):
    """``start <= index < stop``."""

    start: int
    stop: int


Splits = dict[Any, set[int]]
"""By the variable of a loop, the indices before which a comparison of it changes."""

_BOUNDARIES = {"lt": (0,), "ge": (0,), "le": (1,), "gt": (1,), "eq": (0, 1), "ne": (0, 1)}
MIRRORED = {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le", "eq": "eq", "ne": "ne"}
_CONJUNCTIONS = "and_", "logical_and", "bitwise_and"
_DISJUNCTIONS = "or_", "logical_or", "bitwise_or"

_MIN_SHARE = 0.5
"""Of the indices, that are to be usual."""


def most_indices(indices: Any, tiled: Any, factor: int) -> dict[Any, Interval]:
    """Between which numbers most indices lie; those of ``tiled`` are taken ``factor`` at a time. Empty: not most."""
    intervals = {}
    for variable, size in indices.sizes.items():
        ends = [0, *sorted(place for place in indices.splits.get(variable, ()) if 0 < place < size), size]
        if len(ends) > 2 or variable == tiled:  # whole vectors only, always
            intervals[variable] = Interval(*max(itertools.pairwise(ends), key=lambda ends: ends[1] - ends[0]))
    if tiled not in intervals or all(i == (0, indices.sizes[v]) for v, i in intervals.items()):
        return {}
    share = 1.0
    for variable, (start, stop) in intervals.items():
        count = stop - start if variable != tiled else max(stop // factor + -start // factor, 0) * factor
        share *= count / indices.sizes[variable]
    return intervals if share >= _MIN_SHARE else {}


def is_within(intervals: Mapping[Any, Interval], lengths: Mapping[Any, int]) -> str:
    """Whether indices, and as many after them, lie in their intervals."""
    ends = [f"{v} >= {i.start} && {v} <= {i.stop - lengths.get(v, 1)}" for v, i in intervals.items()]
    return " && ".join(ends)


def _truth(name: str, low: int, high: int) -> bool | None:
    """Of a comparison of what lies from ``low`` to ``high`` with 0."""
    compare = getattr(operator, name)
    at_low: bool = compare(low, 0)
    if name in ("eq", "ne"):
        return at_low if low == high or low > 0 or high < 0 else None
    return at_low if at_low == compare(high, 0) else None


@functools.cache
def splitting_handler() -> Any:
    import sympy
    from torch._inductor.ops_handler import WrapperHandler

    class Known:
        """A mask that is the same everywhere."""

        def __init__(self, value: bool) -> None:
            self.value = value

    class Splitting(WrapperHandler):
        """Notes where comparisons change; between ``intervals`` they are known. ``mask(name, n)`` compares lanes."""

        def __init__(
            self,
            inner: Any,
            sizes: Mapping[Any, Any],
            intervals: Mapping[Any, Interval],
            mask: Callable[[str, Any], Any],
        ) -> None:
            super().__init__(inner)
            self.splits: Splits = {}
            self.sizes, self._intervals, self._mask = sizes, intervals, mask
            self._places: dict[str, Any] = {}

        def _default(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if name in _BOUNDARIES:
                left, right = (self._places.get(str(x)) for x in args)
                if left is not None and right is not None:
                    compared = self._compared(name, sympy.expand(left - right))
                    if compared is not None:
                        return compared
            elif name in ("masked", "where") and isinstance(args[0], Known):
                mask, body, other = args
                if name == "where":
                    return body if mask.value else other
                if mask.value:
                    return body()
            elif name in _CONJUNCTIONS or name in _DISJUNCTIONS:
                neutral = name in _CONJUNCTIONS
                for one, other in (args, args[::-1]):
                    if isinstance(one, Known):
                        return other if one.value is neutral else one
            elif name == "logical_not" and isinstance(args[0], Known):
                return Known(not args[0].value)
            if name == "masked":
                mask, body, other = args
                args = mask, lambda: self._computed(body()), other
            return getattr(self._inner, name)(*map(self._computed, args), **kwargs)

        def index_expr(self, expression: Any, dtype: torch.dtype) -> Any:
            return self._noted(self._inner.index_expr(expression, dtype), sympy.expand(expression), dtype)

        def constant(self, value: Any, dtype: torch.dtype) -> Any:
            constant = self._inner.constant(value, dtype)
            return self._noted(constant, sympy.Integer(value), dtype) if type(value) is int else constant

        def _noted(self, result: Any, value: Any, dtype: torch.dtype) -> Any:
            if dtype in (torch.int32, torch.int64):  # narrower ones wrap
                self._places[str(result)] = value
            return result

        def _computed(self, x: Any) -> Any:
            return self._inner.constant(x.value, torch.bool) if isinstance(x, Known) else x

        def _compared(self, name: str, difference: Any) -> Any:
            """A comparison with 0 of what is linear in the indices."""
            variables = difference.free_symbols
            factors = {x: difference.coeff(x) for x in variables}
            rest = difference - sum(factor * x for x, factor in factors.items())
            numbers = [rest, *factors.values()]
            if not all(isinstance(number, sympy.Integer) for number in numbers) or not variables <= {*self.sizes}:
                return None
            if len(variables) == 1:
                (variable, factor), start = next(iter(factors.items())), int(rest)
                if abs(factor) == 1:
                    name_of_index = name if factor == 1 else MIRRORED[name]
                    boundaries = {-int(factor) * start + more for more in _BOUNDARIES[name_of_index]}
                    self.splits.setdefault(variable, set()).update(boundaries)
            low = high = int(rest)
            for variable, factor in factors.items():
                interval = self._intervals.get(variable, Interval(0, self.sizes[variable]))
                ends = [int(factor) * interval.start, int(factor) * (interval.stop - 1)]
                low, high = low + min(ends), high + max(ends)
            truth = _truth(name, low, high)
            return self._mask(name, difference) if truth is None else Known(truth)

    return Splitting
