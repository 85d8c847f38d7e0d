"""What a body returned: tensors for the graph, and everything else put back afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .. import pytree
from ..ir.meta import TensorMeta
from .numbers import number_as_tensor
from .static_values import same_static

__all__ = ["Constant", "OutputSpec"]


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
    def of_body(cls, tree: Any) -> tuple[list[Tensor], OutputSpec]:
        """What a branch or the body of a loop returned: a number there is a tensor."""
        leaves, spec = pytree.flatten(tree)
        return cls._of([number_as_tensor(leaf) for leaf in leaves], spec)

    @classmethod
    def flatten(cls, tree: Any) -> tuple[list[Tensor], OutputSpec]:
        return cls._of(*pytree.flatten(tree))

    @classmethod
    def _of(cls, leaves: pytree.Leaves, spec: pytree.Spec) -> tuple[list[Tensor], OutputSpec]:
        kinds = tuple(TensorMeta.of(x) if isinstance(x, Tensor) else Constant(x) for x in leaves)
        return [x for x in leaves if isinstance(x, Tensor)], cls(spec, kinds)

    @property
    def metas(self) -> list[TensorMeta]:
        return [leaf for leaf in self.leaves if isinstance(leaf, TensorMeta)]

    def unflatten(self, tensors: Iterable[Tensor]) -> Any:
        values = iter(tensors)
        leaves = [leaf.value if isinstance(leaf, Constant) else next(values) for leaf in self.leaves]
        return pytree.unflatten(self.spec, leaves)

    def paths(self, root: str) -> list[str]:
        return pytree.leaf_paths(self.spec, root)
