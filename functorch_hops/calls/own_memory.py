"""The memory of what plain control flow returns and takes.

Captured, a result of control flow is memory of its own, and a body that writes to what it gets is refused. Plain eager
does the same: what a body only handed on is copied, so that work in place on a result means the same in every mode.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor

from .. import _torch, pytree
from ..errors import ErrorContext
from ..ir.meta import TensorMeta
from ..trace.refusals import write_to_input

__all__ = ["InputVersions", "with_own_memory"]


def with_own_memory(result: Any, operands: Iterable[Tensor], *functions: Callable[..., Any]) -> Any:
    """``result``, copied where it is memory of an operand, of a tensor that a function closes over, or of another part
    of the result.
    """
    leaves, spec = ([result], None) if type(result) is Tensor else pytree.flatten(result)
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    taken = set(map(_memory, (*operands, *_closed_over(functions)))) if tensors else set()
    is_shared = False
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            memory = _memory(leaf)
            if memory in taken or (leaf.is_leaf and leaf.requires_grad):
                leaves[i], is_shared = leaf.clone(), True
            taken.add(memory)
    if not is_shared:
        return result
    return leaves[0] if spec is None else pytree.unflatten(spec, leaves)


def _memory(t: Tensor) -> Any:
    base = _torch.base_tensor(t)
    return _torch.storage_key(base) if _torch.has_storage(base) else id(base)


def _closed_over(functions: Iterable[Callable[..., Any]]) -> Iterator[Tensor]:
    """The tensors that a function names from outside of itself, in containers and as attributes too."""
    for function in functions:
        owner = [function.__self__] if isinstance(function, MethodType) else []
        function = function.__func__ if isinstance(function, MethodType) else function
        if isinstance(function, FunctionType):
            names = function.__code__.co_names
            values = owner + [function.__globals__[name] for name in names if name in function.__globals__]
            for cell in function.__closure__ or ():
                with contextlib.suppress(ValueError):  # not assigned yet
                    values.append(cell.cell_contents)
            yield from _tensors_in(values, names)


def _tensors_in(values: list[Any], names: Sequence[str]) -> Iterator[Tensor]:
    """The tensors among these values and in them, as attributes under these names. Objects are not asked: what a
    ``__getattr__`` of the user's would raise or do is no part of the program.
    """
    seen = set[int]()
    while values:
        value = values.pop()
        if isinstance(value, Tensor):
            yield value
        elif id(value) not in seen and not isinstance(value, (ModuleType, FunctionType, type)):
            seen.add(id(value))
            for kind, items in _CONTAINERS.items():
                if isinstance(value, kind):
                    values += items(value)
            with contextlib.suppress(AttributeError):
                own = object.__getattribute__(value, "__dict__")
                spaces = [space for space in (own, *map(own.get, _OF_MODULES)) if isinstance(space, dict)]
                values += [space[name] for space in spaces for name in names if name in space]


_CONTAINERS: dict[type, Callable[[Any], Iterable[Any]]] = {
    dict: dict.values,
    list: list.__iter__,
    tuple: tuple.__iter__,
}
_OF_MODULES = ("_parameters", "_buffers", "_modules")
"""Where a module keeps its attributes."""


class InputVersions:
    """Which versions the inputs of a body had when it was first called."""

    def __init__(self, inputs: Iterable[Any]) -> None:
        plain = [x for x in inputs if type(x) in _torch.PLAIN_TYPES and isinstance(x, Tensor) and not x.is_inference()]
        self._versions = [(x, x._version) for x in plain]

    def check(self, context: ErrorContext) -> None:
        for x, version in self._versions:
            if x._version != version:
                raise write_to_input(context, f"a write to {TensorMeta.of(x)}")
