"""What a body returned: tensors for the graph, and everything else put back afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import pytree
from ..ir.meta import TensorMeta
from .static_values import same_static

__all__ = ["Constant", "OutputSpec", "number_as_tensor", "numbers_as_tensors"]


@dataclass(frozen=True)
class Constant:
    """A leaf that is no tensor."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constant) and same_static(self.value, other.value)

    def __hash__(self) -> int:
        return hash(type(self.value))

    def __str__(self) -> str:
        return f"the constant {self.value!r}"


@dataclass(frozen=True)
class OutputSpec:
    """The tree of an output, its constant leaves, and the metadata of its tensors."""

    spec: pytree.Spec
    leaves: tuple[TensorMeta | Constant, ...]

    @classmethod
    def flatten(cls, tree: Any) -> tuple[list[Tensor], OutputSpec]:
        leaves, spec = pytree.flatten(tree)
        kinds = tuple(TensorMeta.of(x) if isinstance(x, Tensor) else Constant(x) for x in leaves)
        return [x for x in leaves if isinstance(x, Tensor)], cls(spec, kinds)

    @property
    def metas(self) -> list[TensorMeta]:
        return [leaf for leaf in self.leaves if isinstance(leaf, TensorMeta)]

    def unflatten(self, tensors: Sequence[Tensor]) -> Any:
        values = iter(tensors)
        leaves = [leaf.value if isinstance(leaf, Constant) else next(values) for leaf in self.leaves]
        return pytree.unflatten(self.spec, leaves)

    def paths(self, root: str) -> list[str]:
        return pytree.leaf_paths(self.spec, root)


def number_as_tensor(value: Any) -> Any:
    """A Python number as a 0-d tensor (bool, int64, default dtype, default complex dtype); anything else as it is."""
    if isinstance(value, bool):
        return torch.full((), value, dtype=torch.bool)
    if isinstance(value, int):
        return torch.full((), value, dtype=torch.int64)
    if isinstance(value, float):
        return torch.full((), value, dtype=torch.get_default_dtype())
    if isinstance(value, complex):
        return torch.full((), value, dtype=torch.get_default_dtype().to_complex())
    if isinstance(value, torch.SymFloat):
        return torch.scalar_tensor(value, dtype=torch.get_default_dtype())  # type: ignore[arg-type]
    if isinstance(value, torch.SymInt):
        return torch.scalar_tensor(value, dtype=torch.int64)  # type: ignore[arg-type]
    return value


def numbers_as_tensors(tree: Any) -> Any:
    """The tree with its Python numbers as tensors."""
    leaves, spec = pytree.flatten(tree)
    if all(type(leaf) is Tensor for leaf in leaves):
        return tree
    return pytree.unflatten(spec, [number_as_tensor(leaf) for leaf in leaves])
