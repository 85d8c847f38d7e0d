"""Sizes that a trace leaves open.

NOTE [Open sizes] A size that is not fixed while tracing is a ``torch.SymInt`` of one ``ShapeEnv`` that belongs to the
whole trace: nested captures, graphs derived from it and its compilation all use that environment. What tracing or
compilation had to assume about the sizes (``s0 == s1``, ``s0 > 4``) is recorded there as facts. A graph may be used for
sizes of which all facts hold that were recorded when it was made, compiled code for sizes of which all hold that were
recorded when it was compiled. Sizes 0 and 1 are never open: torch decides about emptiness and broadcasting by them.

Tensors that really exist have sizes that are numbers: outside a trace the metadata of a graph is first bound to the
operands of the call (``Binding``).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from torch import SymInt, Tensor

from .. import _torch

__all__ = [
    "Binding",
    "SymbolPlaces",
    "facts_hold",
    "is_closed",
    "open_shape",
    "open_size",
    "same_sizes",
    "shape_env_of",
    "size_key",
    "size_value",
]

Binding = dict[Any, Any]
"""The (sympy) number that each symbol of a trace stands for in one call."""
_FIRST_OPEN = 2


def is_closed(shape: Sequence[Any]) -> bool:
    """Whether all sizes are numbers: only then they may be compared without recording a fact."""
    return all(type(size) is int for size in shape)


def open_shape(shape: Sequence[int]) -> tuple[int | None, ...]:
    """A shape without the sizes that a trace leaves open."""
    return tuple(None if size >= _FIRST_OPEN else size for size in shape)


def open_size(env: Any, size: int, name: str) -> Any:
    """``size`` as a new symbol of a trace, if it may be left open."""
    return _torch.new_symbol(env, size, name) if size >= _FIRST_OPEN else size


def size_key(size: Any) -> Hashable:
    """A key that is equal for sizes of one form, without recording a fact."""
    if isinstance(size, SymInt):
        return id(_torch.shape_env(size)), _torch.expression(size)
    return size


def size_value(size: Any, binding: Binding) -> Any:
    """The number that a size stands for; the size itself where it is open in the call too (while tracing)."""
    if not isinstance(size, SymInt):
        return size
    value = _torch.expression(size).xreplace(binding)
    return int(value) if value.is_number else size


def same_sizes(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two shapes agree; where open sizes agree by chance, that becomes a fact of the trace.

    A size may belong to an enclosing capture, so the comparison is none of the current one's.
    """
    with _torch.disable_proxy_modes_tracing():
        return len(a) == len(b) and all(bool(x == y) for x, y in zip(a, b))


def shape_env_of(shapes: Iterable[Sequence[Any]]) -> Any:
    """The environment of the first open size, None if there is none."""
    return next((_torch.shape_env(s) for shape in shapes for s in shape if isinstance(s, SymInt)), None)


class SymbolPlaces:
    """Where the symbols of a graph's inputs are found: input, dimension, symbol."""

    def __init__(self, shapes: Sequence[Sequence[Any]]) -> None:
        found: dict[Any, tuple[int, int]] = {}
        for i, shape in enumerate(shapes):
            for d, size in enumerate(shape):
                if isinstance(size, SymInt) and _torch.expression(size).is_Symbol:
                    found.setdefault(_torch.expression(size), (i, d))
        self.places = [(symbol, i, d) for symbol, (i, d) in found.items()]

    def bind(self, tensors: Sequence[Tensor]) -> Binding:
        from sympy import Integer  # there are symbols, so it is loaded; the package imports without it

        sizes = ((symbol, tensors[i].shape[d]) for symbol, i, d in self.places)
        return {symbol: Integer(size) for symbol, size in sizes if not isinstance(size, SymInt)}


def facts_hold(env: Any, binding: Binding, first: int | None = None) -> bool:
    """Whether all facts (the ``first`` so many) that a trace recorded about its sizes hold for a call."""
    facts = _torch.facts(env)[:first]
    return all(bool(fact.xreplace(binding)) for fact in facts if fact.free_symbols <= binding.keys())
