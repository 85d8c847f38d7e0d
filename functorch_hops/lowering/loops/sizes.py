"""Sizes in the C++ of a kernel.

NOTE [Open sizes of kernels] A size that a trace leaves open is an argument of the kernel: its C++ computes extents,
offsets and the workspace from such arguments, under the names that the symbols have in the trace. What has to be known
to write the code - the sizes of a tile, the choice of an algorithm - is a number, or there is no kernel; and no code
is written that is right for some of the sizes only: while loops are planned, the trace learns no fact about its sizes.
A guess at a size (``hint``) decides what is fast, never what is right.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ..._torch import size_hint
from .forms import Refused

__all__ = [
    "OpenSize",
    "Size",
    "aligned",
    "expression_of",
    "hint",
    "largest",
    "number",
    "quotient",
    "ratio",
    "size_of",
    "symbols",
]


class OpenSize:
    """An expression of open sizes. Its text is C++; what would need its value raises ``Refused``."""

    __slots__ = ("expression", "hint")

    def __init__(self, expression: Any, hint: int) -> None:
        self.expression, self.hint = expression, hint

    def __str__(self) -> str:
        from torch.utils._sympy.printers import CppPrinter

        text = CppPrinter().doprint(self.expression)
        return text if self.expression.is_Symbol else f"({text})"

    __format__ = object.__format__

    def __add__(self, other: Size) -> Size:
        return _made(self.expression + _expression(other), self.hint + hint(other))

    def __mul__(self, other: Size) -> Size:
        return _made(self.expression * _expression(other), self.hint * hint(other))

    def __sub__(self, other: Size) -> Size:
        return self + other * -1

    def __rsub__(self, other: Size) -> Size:
        return self * -1 + other

    __radd__, __rmul__ = __add__, __mul__

    def __eq__(self, other: object) -> bool:
        from sympy import expand

        if not isinstance(other, OpenSize | int):
            return NotImplemented
        return bool(expand(self.expression - _expression(other)) == 0)

    def __hash__(self) -> int:
        from sympy import expand

        return hash(expand(self.expression))

    def __int__(self) -> int:
        raise Refused(f"a size is open: {self.expression}")

    __index__ = __bool__ = __int__


Size = int | OpenSize


def _expression(size: Size) -> Any:
    return size.expression if isinstance(size, OpenSize) else size


def _made(expression: Any, hint: int) -> Size:
    return int(expression) if expression.is_Integer else OpenSize(expression, hint)


def size_of(size: Any, near: int | None = None) -> Size:
    """A size as a number or an open one: an int, a SymInt, or an expression of Inductor's, which is ``near`` then."""
    if isinstance(size, int | OpenSize):
        return size
    if isinstance(size, torch.SymInt):
        return _made(size.node.expr, size_hint(size) or 1)
    return int(size) if size.is_Integer else OpenSize(size, 1 if near is None else near)


def hint(size: Size) -> int:
    """What a size was when it was traced."""
    return size.hint if isinstance(size, OpenSize) else size


def expression_of(size: Size) -> Any:
    """As sympy knows it."""
    from sympy import sympify

    return sympify(_expression(size))


def number(size: Any) -> int:
    """A size that has to be known."""
    return int(size_of(size))


def quotient(size: Size, by: int) -> Size:
    """``size // by``"""
    if isinstance(size, int):
        return size // by
    from torch.utils._sympy.functions import FloorDiv

    return _made(FloorDiv(size.expression, by), size.hint // by)


def ratio(large: Size, small: Size) -> Size | None:
    """``large / small``, if ``small`` divides it whatever the open sizes are."""
    if isinstance(large, int) and isinstance(small, int):
        return None if large % small else large // small
    from sympy import cancel

    found = cancel(expression_of(large) / expression_of(small))
    return _made(found, hint(large) // hint(small)) if found.as_numer_denom()[1] == 1 else None


def aligned(size: Size, unit: int) -> Size:
    """The next multiple of ``unit``."""
    return quotient(size + (unit - 1), unit) * unit


def largest(sizes: Iterable[Size]) -> Size:
    given = list(dict.fromkeys(sizes)) or [0]
    if all(isinstance(size, int) for size in given):
        return max(given)  # type: ignore[type-var]
    from torch.utils._sympy.functions import Max

    return _made(Max(*map(_expression, given)), max(map(hint, given)))


def symbols(sizes: Iterable[Any]) -> tuple[OpenSize, ...]:
    """The open sizes that these are expressions of, in the order of their names."""
    found: dict[str, OpenSize] = {}
    for size in map(size_of, sizes):
        if isinstance(size, OpenSize):
            found |= {str(symbol): OpenSize(symbol, 1) for symbol in size.expression.free_symbols}
    return tuple(found[name] for name in sorted(found))
