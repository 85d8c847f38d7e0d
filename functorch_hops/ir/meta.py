"""What is known of a tensor without its values: shape, dtype and device, and whether it has tangents."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._torch import FakeTensorMode, size_hint
from .sizes import Binding, open_size, same_sizes, size_key, size_value

__all__ = ["Mask", "TensorMeta", "count", "is_differentiable"]

Mask = tuple[bool, ...]

_DIFFERENTIABLE = frozenset(
    dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype) and (dtype.is_floating_point or dtype.is_complex)
)


def is_differentiable(dtype: torch.dtype) -> bool:
    """Whether values of ``dtype`` have tangents."""
    return dtype in _DIFFERENTIABLE


class TensorMeta(NamedTuple):
    """What a capture knows of a tensor. A size may be open, see NOTE [Open sizes].

    Two are equal if their sizes are the same expressions; comparing them records no fact about the sizes.
    """

    shape: tuple[Any, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, t: Tensor) -> TensorMeta:
        return cls(tuple(t.shape), t.dtype, t.device)

    def _form(self) -> Hashable:
        return tuple(map(size_key, self.shape)), self.dtype, self.device

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TensorMeta) and self._form() == other._form()

    def __hash__(self) -> int:
        return hash(self._form())

    def agrees(self, other: TensorMeta) -> bool:
        """Whether tensors of both kinds can stand for one another."""
        return self[1:] == other[1:] and same_sizes(self.shape, other.shape)

    @property
    def nbytes(self) -> int:
        """Its bytes; an open size counts as what it was when it was traced, and as 1 where only a run knows it."""
        return math.prod(size_hint(size) or 1 for size in self.shape) * self.dtype.itemsize

    def opened(self, env: Any, name: str) -> TensorMeta:
        """The same with every size from 2 on left open."""
        sizes = (open_size(env, size, f"{name}_{d}") for d, size in enumerate(self.shape))
        return TensorMeta(tuple(sizes), self.dtype, self.device)

    def at(self, binding: Binding) -> TensorMeta:
        """The same with numbers for the open sizes."""
        return TensorMeta(tuple(size_value(s, binding) for s in self.shape), self.dtype, self.device)

    def empty(self) -> Tensor:
        """An uninitialised tensor of this kind (a fake one under a fake mode)."""
        return torch.empty(self.shape, dtype=self.dtype, device=self.device)

    def zeros(self) -> Tensor:
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device)

    def or_zeros(self, t: Tensor | None) -> Tensor:
        """``t``, where None stands for zero."""
        return self.zeros() if t is None else t

    def fake(self, mode: FakeTensorMode) -> Tensor:
        with mode:
            return self.empty()

    def with_leading(self, size: Any) -> TensorMeta:
        return TensorMeta((size, *self.shape), self.dtype, self.device)

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"{kind}[{', '.join(map(str, self.shape))}]@{self.device}"


def count(mask: Iterable[bool]) -> int:
    return sum(map(bool, mask))
