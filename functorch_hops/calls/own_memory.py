"""The memory of what plain control flow returns and takes.

Captured, a result of control flow is memory of its own, and a body that writes to what it gets is refused. Plain eager
does the same: what a body only handed on is copied, so that work in place on a result means the same in every mode.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from types import (
    BuiltinMethodType,
    FunctionType,
    MemberDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
)
from typing import Any

from torch import Tensor, nn

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
    """The tensors that functions name from outside of themselves, in containers and as attributes too. So do functions
    in their closures, methods of theirs, and what a partial holds. Not found is what no name in their code leads to:
    what a property or torch's own code gives, as ``next(module.buffers())`` does.
    """
    values, names, seen = list[Any](), dict[str, None](), set[int]()
    found: list[Any] = list(functions)
    while found:
        function = found.pop()
        if isinstance(function, partial):
            found.append(function.func)
            values += (*function.args, *function.keywords.values())
            continue
        owner = function.__self__ if isinstance(function, _METHODS) else None
        if not isinstance(function, (FunctionType, MethodType)):
            values.append(owner)  # of a builtin method
            called = "forward" if isinstance(function, nn.Module) else "__call__"
            owner, function = function, getattr(type(function), called, None)
        function = function.__func__ if isinstance(function, MethodType) else function
        if owner is not None:
            values.append(owner)
        if not isinstance(function, FunctionType) or id(function) in seen:
            continue
        seen.add(id(function))
        own = function.__code__.co_names
        names.update(dict.fromkeys(own))
        named = [function.__globals__[name] for name in own if name in function.__globals__]
        held = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        for cell in function.__closure__ or ():
            with contextlib.suppress(ValueError):  # not assigned yet
                held.append(cell.cell_contents)
        methods = [getattr(type(owner), name, None) for name in own] if owner is not None else []
        own_methods = [m for m in methods if isinstance(m, FunctionType) and m.__module__ != nn.Module.__module__]
        found += [MethodType(method, owner) for method in own_methods]
        found += [x for x in held if isinstance(x, (FunctionType, MethodType, partial))]
        found += [x for x in (*named, *held) if isinstance(x, nn.Module)]
        values += [*named, *held]
    yield from _tensors_in(values, tuple(names))


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
            try:
                own = object.__getattribute__(value, "__dict__")
            except AttributeError:
                values += _slots(value, names)
                continue
            spaces = [space for space in (own, *map(own.get, _OF_MODULES)) if isinstance(space, dict)]
            values += [space[name] for space in spaces for name in names if name in space]


def _slots(value: Any, names: Sequence[str]) -> Iterator[Any]:
    for name in names:
        slot = getattr(type(value), name, None)
        if isinstance(slot, MemberDescriptorType):
            with contextlib.suppress(AttributeError):  # not assigned yet
                yield slot.__get__(value)


_CONTAINERS: dict[type, Callable[[Any], Iterable[Any]]] = {
    deque: deque.__iter__,
    dict: dict.values,
    list: list.__iter__,
    tuple: tuple.__iter__,
}
_METHODS = MethodType, BuiltinMethodType, MethodWrapperType
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
