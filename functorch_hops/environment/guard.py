"""The check, made on every call, that nothing has changed; and the fetching of the tensors of the moment.

NOTE [the flat check] What a walk has found lies in flat lists, one for each kind of place, so that
a check is a few tight loops whatever the shape of the environment was. Values are compared by identity.
A place is a pair of a container and a key. Whether the container is still the same object is checked where it is
itself stored, one level up. At some places stand tensors: another tensor may stand there, if it is
of the same type, and if places that shared one tensor share that. A guard keeps no tensor alive.

Identity is stricter than equality, and that is safe: a failed check costs a new walk, after which
fingerprints are compared by value.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from itertools import chain, compress
from types import CellType, FunctionType
from typing import Any

import torch

from .. import _torch
from .contents import Content
from .keys import KeyMakers, by_value, has_parts

__all__ = ["FREE", "SAME", "TENSOR", "Guard", "GuardBuilder", "Role", "attribute_getter"]

Role = int
SAME: Role = 0
"""The place must hold the identical object, or an equal scalar."""
TENSOR: Role = 1
"""The place must hold a tensor of the same type."""
FREE: Role = 2
"""The place is not looked at."""


class GuardBuilder:
    """Collects places during a walk. `role` and `path` are those of the value that a place holds."""

    def __init__(self) -> None:
        self.items: list[tuple[Mapping[str, Any], str, Any]] = []
        self.cells: list[tuple[CellType, Any]] = []
        self.calls: list[tuple[Callable[[Any], Any], Any, Any]] = []
        self.functions: list[tuple[FunctionType, Any, Any, Any]] = []
        self.objects: list[tuple[Any, type, dict[str, Any], Callable[[Any, str], Any]]] = []
        self.modules: list[tuple[Any, ...]] = []
        self.views: list[tuple[Iterable[Any], Sequence[Any]]] = []
        self.empty: list[Sized] = []
        self.sized: list[Sized] = []
        self.absent: list[tuple[Callable[[Iterable[str]], bool], frozenset[str]]] = []
        self.memories: list[tuple[Any, Content]] = []
        self.tensor_items: list[tuple[Mapping[str, Any], str]] = []
        self.tensor_cells: list[CellType] = []
        self.tensor_calls: list[tuple[Callable[[Any], Any], Any]] = []
        self.tensor_views: list[Iterable[Any]] = []
        self.mixed_views: list[_MixedView] = []
        self.tensors: dict[str, list[tuple[Any, str]]] = {kind: [] for kind in _KINDS}

    def item(self, mapping: Mapping[str, Any], key: str, value: Any, role: Role, path: str) -> None:
        """An entry of a namespace: of a dict, or of what is read like one."""
        if role == SAME:
            self.items.append((mapping, key, value))
        elif role == TENSOR:
            self.tensor_items.append((mapping, key))
            self.tensors["items"].append((value, path))

    def cell(self, cell: CellType, value: Any, role: Role, path: str) -> None:
        if role == SAME:
            self.cells.append((cell, value))
        elif role == TENSOR:
            self.tensor_cells.append(cell)
            self.tensors["cells"].append((value, path))

    def call(self, get: Callable[[Any], Any], holder: Any, value: Any, role: Role, path: str) -> None:
        """Any other place: what ``get(holder)`` gives."""
        if role == SAME:
            self.calls.append((get, holder, value))
        elif role == TENSOR:
            self.tensor_calls.append((get, holder))
            self.tensors["calls"].append((value, path))

    def view(self, view: Iterable[Any], values: Sequence[Any], roles: Sequence[Role], paths: Sequence[str]) -> None:
        """All that iterating over `view` gives; the size of its container has to be watched as well."""
        if roles.count(SAME) == len(roles):
            self.views.append((view, values))
        elif roles.count(TENSOR) == len(roles):
            self.tensor_views.append(view)
            self.tensors["views"].extend(zip(values, paths, strict=True))
        else:
            same, tensor = (tuple(role == wanted for role in roles) for wanted in (SAME, TENSOR))
            self.mixed_views.append((view, list(compress(values, same)), same, tensor))
            self.tensors["mixed"].extend(compress(zip(values, paths, strict=True), tensor))

    def size(self, container: Sized) -> None:
        """The number of entries stays. An empty container must be one whose truth value says so."""
        (self.sized if len(container) else self.empty).append(container)

    def without(self, mapping: Mapping[str, Any], names: frozenset[str]) -> None:
        """None of `names` may appear among the keys."""
        if names:
            self.absent.append((mapping.keys().isdisjoint, names))

    def function(self, func: FunctionType) -> None:
        self.functions.append((func, func.__code__, func.__defaults__, func.__kwdefaults__))

    def object(self, value: Any) -> None:
        get = attribute_getter(type(value))
        self.objects.append((value, type(value), get(value, "__dict__"), get))

    def module(self, module: torch.nn.Module) -> None:
        """Class, mode and parts of an `nn.Module` that has no hooks."""
        attributes = module.__dict__
        values = (attributes[name] for name in ("training", "_parameters", "_buffers", "_modules"))
        self.modules.append((module, type(module), attributes, *values))

    def memory(self, value: Any, content: Content) -> None:
        self.memories.append((value, content))


_MixedView = tuple[Iterable[Any], list[Any], tuple[bool, ...], tuple[bool, ...]]
# In the order in which a guard fetches them.
_KINDS = ("items", "cells", "calls", "views", "mixed")


class Guard:
    """Called, it gives the tensors that stand at the given paths now, or None if anything else changed."""

    def __init__(self, places: GuardBuilder, paths: Sequence[str]) -> None:
        self._items = tuple(places.items)
        self._cells = tuple(places.cells)
        self._calls = tuple(places.calls)
        self._functions = tuple(places.functions)
        self._objects = tuple(places.objects)
        self._modules = tuple(places.modules)
        self._views = tuple(view for view, _ in places.views)
        self._viewed = tuple(value for _, values in places.views for value in values)
        self._empty = tuple(places.empty)
        self._sized = tuple(places.sized)
        self._sizes = [len(container) for container in places.sized]
        self._absent = tuple(places.absent)
        self._memories = tuple(places.memories)
        self._tensor_items = tuple(places.tensor_items)
        self._tensor_cells = tuple(places.tensor_cells)
        self._tensor_calls = tuple(places.tensor_calls)
        self._tensor_views = tuple(places.tensor_views)
        self._mixed_views = tuple(places.mixed_views)
        tensors = [pair for kind in _KINDS for pair in places.tensors[kind]]
        self._types = [type(tensor) for tensor, _ in tensors]
        self._states = _torch.tensor_states([tensor for tensor, _ in tensors])
        self.states = {path: state for (_, path), state in zip(tensors, self._states)}
        first: dict[int, int] = {}
        shared = [(first.setdefault(id(tensor), at), at) for at, (tensor, _) in enumerate(tensors)]
        self._shared = [(left, right) for left, right in shared if left != right]
        self._count = len(first)
        where: dict[str, int] = {}
        for index, (_, path) in enumerate(tensors):
            where.setdefault(path, index)
        self._select = _selector([where[path] for path in paths])

    def __call__(self) -> tuple[torch.Tensor, ...] | None:
        # See NOTE [the flat check].
        try:
            if not (self._same_places() and self._same_containers()):
                return None
            tensors = self._tensors()
        except (
            LookupError,
            AttributeError,
            ValueError,
            RuntimeError,
        ):  # gone, or just being changed by a thread
            return None
        if [*map(type, tensors)] != self._types or _torch.tensor_states(tensors) != self._states:
            return None
        for left, right in self._shared:
            if tensors[left] is not tensors[right]:
                return None
        if len({*map(id, tensors)}) != self._count:
            return None
        return self._select(tensors)

    def _same_places(self) -> bool:
        for mapping, key, expected in self._items:
            if (value := mapping[key]) is not expected and not _equal(value, expected):
                return False
        for cell, expected in self._cells:
            if (value := cell.cell_contents) is not expected and not _equal(value, expected):
                return False
        for func, code, defaults, keyword_defaults in self._functions:
            if (
                func.__code__ is not code
                or func.__defaults__ is not defaults
                or func.__kwdefaults__ is not keyword_defaults
            ):
                return False
        for value, cls, attributes, read in self._objects:
            if type(value) is not cls or read(value, "__dict__") is not attributes:
                return False
        for get, holder, expected in self._calls:
            if (value := get(holder)) is not expected and not _equal(value, expected):
                return False
        for module, cls, own, training, parameters, buffers, modules in self._modules:
            if (
                module.__class__ is not cls
                or own["training"] is not training
                or own["_parameters"] is not parameters
                or own["_buffers"] is not buffers
                or own["_modules"] is not modules
                or own["_forward_hooks"]
                or own["_forward_pre_hooks"]
                or own["_backward_hooks"]
                or own["_backward_pre_hooks"]
            ):
                return False
        return True

    def _same_containers(self) -> bool:
        if any(self._empty) or (self._sized and [*map(len, self._sized)] != self._sizes):
            return False
        if self._views:
            values = chain.from_iterable(self._views)
            if not all(map(operator.is_, values, self._viewed)) and not all(
                map(_equal, chain.from_iterable(self._views), self._viewed)
            ):
                return False
        for view, expected_values, same, _ in self._mixed_views:
            if not all(map(_equal, compress(view, same), expected_values)):
                return False
        for disjoint, names in self._absent:
            if not disjoint(names):
                return False
        return not self._memories or all(content.matches(value) for value, content in self._memories)

    def _tensors(self) -> list[Any]:
        tensors = [mapping[key] for mapping, key in self._tensor_items]
        if self._tensor_cells:
            tensors += [cell.cell_contents for cell in self._tensor_cells]
        if self._tensor_calls:
            tensors += [get(holder) for get, holder in self._tensor_calls]
        if self._tensor_views:
            tensors += chain.from_iterable(self._tensor_views)
        for view, _, _, is_tensor in self._mixed_views:
            tensors += compress(view, is_tensor)
        return tensors


def attribute_getter(cls: type) -> Callable[[Any, str], Any]:
    """How to read an attribute of an object without running the user's code."""
    get: Any = cls.__getattribute__
    plain: Any = object.__getattribute__
    return plain if isinstance(get, FunctionType) else get


def _equal(value: Any, expected: Any) -> bool:
    if value is expected:
        return True
    makers = KeyMakers()
    key = by_value(value, makers)
    return key is not None and key == by_value(expected, makers) and not has_parts(value)


def _selector(indices: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    if len(indices) > 1:
        return operator.itemgetter(*indices)
    if indices:
        (only,) = indices
        return lambda tensors: (tensors[only],)
    return lambda tensors: ()
