"""A complex tensor as its real and its imaginary part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Parts",
    "Value",
    "any_part",
    "combined",
    "imag_part",
    "paired",
    "real_part",
    "separated",
    "with_parts",
]


@dataclass(frozen=True, eq=False)
class Parts:
    """A complex tensor; ``whole`` is where it came from, if it was one."""

    real: Tensor
    imag: Tensor
    whole: Tensor | None = None

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.real, self.imag))

    def map(self, change: Callable[[Tensor], Tensor]) -> Parts:
        """The same done to both parts."""
        return Parts(change(self.real), change(self.imag))


Value = Tensor | Parts | complex


def separated(x: Tensor) -> Parts:
    pairs = torch.view_as_real(x)
    return Parts(pairs.select(-1, 0), pairs.select(-1, 1), x)


def combined(x: Any) -> Any:
    """The complex tensor; anything else as it is."""
    if not isinstance(x, Parts):
        return x
    return torch.view_as_complex(paired(x)) if x.whole is None else x.whole


def paired(x: Parts) -> Tensor:
    """The parts as pairs, in a last dimension."""
    return torch.stack((x.real, x.imag), -1) if x.whole is None else torch.view_as_real(x.whole)


def real_part(x: Value) -> Any:
    return x.real if isinstance(x, (Parts, complex)) else x


def imag_part(x: Value) -> Any:
    """None for what is real."""
    return x.imag if isinstance(x, (Parts, complex)) else None


def with_parts(x: Value, like: Tensor) -> Parts:
    """``x`` with an imaginary part in any case."""
    if isinstance(x, Parts):
        return x
    if isinstance(x, Tensor):
        return Parts(x.to(like.dtype), torch.zeros_like(x, dtype=like.dtype))
    number = complex(x)
    return Parts(torch.full_like(like, number.real), torch.full_like(like, number.imag))


def any_part(*values: Value) -> Tensor:
    return next(part for v in values for part in (v if isinstance(v, Parts) else (v,)) if isinstance(part, Tensor))
