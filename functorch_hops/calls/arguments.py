"""The arguments of a call: which are traced, and which are static."""

from __future__ import annotations

import inspect
import pathlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from .. import _torch, pytree
from ..ir.meta import TensorMeta
from ..ir.sizes import open_shape, shape_env_of
from .numbers import from_numpy
from .static_values import ObjectKey, static_key

__all__ = [
    "Arguments",
    "Function",
    "P",
    "R",
    "TensorSpec",
    "distinct_operands",
    "is_operand",
    "one_or_several",
    "signature_of",
]

Function = Callable[..., Any]
P = ParamSpec("P")
"""The parameters of a user's function, which what a transform makes of it has as well."""
R = TypeVar("R")
"""What a user's function returns."""


class TensorSpec:
    """Shape, dtype and device of a tensor that is not there.

    :func:`eval_shape` returns them in the place of tensors, and takes them there. Two are equal, and have one hash, if
    shape, dtype and device are. In trees they are leaves.

    Arguments:
        shape: the sizes, any sequence of ints.
        dtype: a ``torch.dtype``.
        device: a ``torch.device``, or the name of one.

    Attributes: ``shape`` (a tuple), ``dtype`` and ``device`` (a ``torch.device``).

    >>> import torch, functorch_hops as fh
    >>> x = fh.TensorSpec((2, 3), torch.float32)
    >>> fh.eval_shape(lambda x: x @ x.T, x)
    TensorSpec(shape=(2, 2), dtype=torch.float32, device=cpu)
    """

    __fh_leaf__ = True
    __fh_parts__ = ("shape", "dtype", "device")
    """Of which Dynamo makes one again."""
    __slots__ = ("device", "dtype", "shape")

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.shape = tuple(shape)
        self.dtype = dtype
        self.device = torch.device(device)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TensorSpec) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        return self.shape, self.dtype, self.device

    def __repr__(self) -> str:
        return f"TensorSpec(shape={self.shape}, dtype={self.dtype}, device={self.device})"

    def __fx_create_arg__(self, tracer: Any) -> Any:
        """What ``torch.fx.symbolic_trace`` makes of it as an argument."""
        return tracer.create_node("call_function", TensorSpec, self._key(), {})


_NODES_OF_A_CALL = 3
"""In the tree of a call without trees: the pair, the tuple of positional arguments, the dict of the others."""


class Arguments:
    """The arguments of a call, flattened: tensors and floats are operands, everything else is static.

    ``static_floats``: floats are static too (a function that branched on one was seen). ``dynamic``: sizes from 2 on
    are open, see NOTE [Open sizes]. ``numpy``: NumPy's arrays count, and are handed on, as tensors, its scalars as
    numbers.
    """

    __slots__ = ("dynamic", "key", "leaves", "objects", "operands", "spec")

    def __init__(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        static_floats: bool = False,
        dynamic: bool = False,
        numpy: bool = True,
    ) -> None:
        self.dynamic = dynamic
        self.leaves, self.spec = pytree.flatten((args, kwargs))
        self.operands: list[Tensor] = []
        self.objects: list[Any] = []
        has_mappings = kwargs or self.spec.num_nodes > len(self.leaves) + _NODES_OF_A_CALL
        key: list[Hashable] = [(self.spec, pytree.mapping_keys((args, kwargs))) if has_mappings else self.spec]
        for place, leaf in enumerate(self.leaves):
            kind = type(leaf)
            if numpy and kind.__module__ == "numpy":
                leaf = self.leaves[place] = from_numpy(leaf)
                kind = type(leaf)
            if is_operand(leaf):
                self.operands.append(leaf)
                meta = (open_shape(leaf.shape) if dynamic else leaf.shape, leaf.dtype, leaf.device)
                is_parameter = kind is not Tensor and isinstance(leaf, torch.nn.Parameter)
                key.append((*meta, "parameter") if is_parameter else meta)
            elif kind is float and not static_floats:
                self.operands.append(torch.scalar_tensor(leaf, dtype=torch.float64, device="cpu"))
                key.append(float)
            else:
                entry = static_key(leaf)
                if isinstance(entry[1], ObjectKey) or isinstance(leaf, pathlib.Path):  # what a path names may change
                    self.objects.append(leaf)
                key.append(entry)
        if len({*map(id, self.operands)}) != len(self.operands):
            key[0] = (key[0], tuple(self.first_places()))
        self.key = tuple(key)

    def first_places(self) -> list[int]:
        """For each operand, the place of the first one that is the same object."""
        places: dict[int, int] = {}
        return [places.setdefault(id(x), i) for i, x in enumerate(self.operands)]

    def has_symbols(self) -> bool:
        """Whether a size or a number among the arguments is a symbol of an enclosing capture."""
        numbers = any(isinstance(leaf, (torch.SymInt, torch.SymFloat)) for leaf in self.leaves)
        return numbers or shape_env_of(x.shape for x in self.operands) is not None

    def metas(self) -> list[TensorMeta]:
        metas = [TensorMeta(tuple(x.shape), x.dtype, x.device) for x in self.operands]
        if not self.dynamic:
            return metas
        env = _torch.new_shape_env()
        return [meta.opened(env, f"arg{i}") for i, meta in enumerate(metas)]


def is_operand(leaf: Any) -> bool:
    """Whether a leaf is a value of the graph, if it is no float. A sparse matrix is not: NOTE [Sparse matrices]."""
    return _torch.is_dense(leaf) if isinstance(leaf, Tensor) else isinstance(leaf, TensorSpec)


def distinct_operands(leaves: Sequence[Any]) -> tuple[list[Tensor], Callable[[Sequence[Any]], list[Any]]]:
    """The operands among ``leaves``, each once, and the leaves with other values in their places: what is one object
    outside is one inside.
    """
    operands = {id(leaf): leaf for leaf in leaves if is_operand(leaf)}
    numbers = {key: i for i, key in enumerate(operands)}
    which = [numbers.get(id(leaf)) for leaf in leaves]
    return [*operands.values()], lambda values: [
        leaf if i is None else values[i] for leaf, i in zip(leaves, which, strict=True)
    ]


def signature_of(func: Callable[..., Any]) -> inspect.Signature:
    """The signature that a caller has in mind: of a module, or of what was made of one, that is its ``forward``."""
    inner = inspect.unwrap(func)
    return inspect.signature(inner.forward if isinstance(inner, torch.nn.Module) else func)


def one_or_several(given: Any) -> tuple[Any, ...]:
    """``argnums=0`` says the same as ``argnums=(0,)``, and a name as a tuple with it. A tensor is no sequence."""
    if isinstance(given, Iterable) and not isinstance(given, (str, Tensor)):
        return tuple(given)
    return (given,)
