"""The check, made on every call, that nothing has changed; and the fetching of the tensors of the moment.

NOTE [The flat check] What a walk has found lies in flat lists, one for each kind of place. A guard is a function that
is written for them: a line for each place of a kind of which there are few, a tight loop for the others, and nothing
for a kind that is not there. Values are compared by identity. A place is a pair of a container and a key. Whether the
container is still the same object is checked where it is itself stored, one level up. At some places stand tensors:
another tensor may stand there, if it is of the same type, and if places that shared one tensor share that. A guard
keeps no tensor alive.

Identity is stricter than equality, and that is safe: a failed check costs a new walk, after which
fingerprints are compared by value.
"""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import chain, compress
from types import CellType, FunctionType
from typing import Any

import torch

from .. import _torch
from .contents import Content
from .keys import KeyMakers, by_value, has_parts
from .source import Source

__all__ = ["FREE", "HOOKS", "PARTS", "SAME", "TENSOR", "Guard", "GuardBuilder", "Role", "attribute_getter"]

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
        self.sizes: list[int] = []
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
        if len(container):
            self.sized.append(container)
            self.sizes.append(len(container))
        else:
            self.empty.append(container)

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
        values = (attributes[name] for name in ("training", *PARTS))
        self.modules.append((module, type(module), attributes, *values))

    def memory(self, value: Any, content: Content) -> None:
        self.memories.append((value, content))


_MixedView = tuple[Iterable[Any], list[Any], tuple[bool, ...], tuple[bool, ...]]
PARTS = ("_parameters", "_buffers", "_modules")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# In the order in which a guard fetches them.
_KINDS = ("items", "cells", "calls", "views", "mixed")


class Guard:
    """Called, it gives the tensors that stand at the given paths now, or None if anything else changed."""

    def __init__(self, places: GuardBuilder, paths: Sequence[str]) -> None:
        self._places = copy.copy(places)
        self._places.tensors = {}  # they are not to be kept
        tensors = [pair for kind in _KINDS for pair in places.tensors[kind]]
        self._types = [type(tensor) for tensor, _ in tensors]
        self._states = _torch.tensor_states([tensor for tensor, _ in tensors])
        self.states = {path: state for (_, path), state in zip(tensors, self._states)}
        # What a user hung on a tensor does not hang on the next one that stands there.
        self._attributes = [(at, tensor.__dict__) for at, (tensor, _) in enumerate(tensors) if tensor.__dict__]
        first: dict[int, int] = {}
        shared = [(first.setdefault(id(tensor), at), at) for at, (tensor, _) in enumerate(tensors)]
        self._shared = [(left, right) for left, right in shared if left != right]
        self._count = len(first)
        where: dict[str, int] = {}
        for index, (_, path) in enumerate(tensors):
            where.setdefault(path, index)
        self.selected = tuple(where[path] for path in paths)
        """Which of the tensors that `fetch` gives stand at the given paths."""

    def __call__(self) -> tuple[torch.Tensor, ...] | None:
        tensors = self.fetch()
        if tensors is None or [*map(type, tensors)] != self._types or _torch.tensor_states(tensors) != self._states:
            return None
        for left, right in self._shared:
            if tensors[left] is not tensors[right]:
                return None
        if len({*map(id, tensors)}) != self._count:
            return None
        return tuple([tensors[at] for at in self.selected])

    @functools.cached_property
    def fetch(self) -> Callable[[], list[Any] | None]:
        """A function that gives what stands at all places where tensors stood, or None if anything else changed.

        See NOTE [The flat check].
        """
        source = Source()
        _check_places(source, self._places)
        _check_containers(source, self._places)
        source.add(f"found = [{', '.join(_tensors(source, self._places))}]")
        for at, attributes in self._attributes:
            source.refuse_if(f"found[{at}].__dict__ is not {source.name(attributes)}")
        source.add("return found")
        # What is gone, or is just being changed by a thread.
        return source.function("fetch", "", (LookupError, AttributeError, TypeError, ValueError, RuntimeError))


def _check_places(source: Source, places: GuardBuilder) -> None:
    name, refuse = source.name, source.refuse_if
    equal = name(_equal)

    def same(text: str, expected: Any) -> None:
        value = name(expected)
        refuse(f"(value := {text}) is not {value} and not {equal}(value, {value})")

    for mapping, key, expected in places.items:
        same(f"{name(mapping)}[{_key(source, key)}]", expected)
    for cell, expected in places.cells:
        same(f"{name(cell)}.cell_contents", expected)
    for func, *parts in places.functions:
        code, defaults, keyword_defaults = map(name, parts)
        refuse(f"(f := {name(func)}).__code__ is not {code}")
        refuse(f"f.__defaults__ is not {defaults} or f.__kwdefaults__ is not {keyword_defaults}")
    for get, holder, expected in places.calls:
        same(f"{name(get)}({name(holder)})", expected)
    if places.objects:
        refuse(f"not {name(_same_objects)}({name(tuple(places.objects))})")
    if places.modules:
        refuse(f"not {name(_same_modules)}({name(tuple(places.modules))})")


def _same_objects(objects: Iterable[tuple[Any, ...]]) -> bool:
    return all(type(value) is cls and read(value, "__dict__") is attributes for value, cls, attributes, read in objects)


def _same_modules(modules: Iterable[tuple[Any, ...]]) -> bool:
    for module, cls, own, training, parameters, buffers, children in modules:
        if (
            module.__class__ is not cls
            or own["training"] is not training
            or own["_parameters"] is not parameters
            or own["_buffers"] is not buffers
            or own["_modules"] is not children
            or own["_forward_hooks"]
            or own["_forward_pre_hooks"]
            or own["_backward_hooks"]
            or own["_backward_pre_hooks"]
        ):
            return False
    return True


def _check_containers(source: Source, places: GuardBuilder) -> None:
    name, refuse = source.name, source.refuse_if
    if places.empty:
        refuse(f"{name(any)}({name(tuple(places.empty))})")
    if places.sized:
        refuse(f"[*{name(map)}({name(len)}, {name(tuple(places.sized))})] != {name(places.sizes)}")
    if places.views:
        views = f"{name(chain.from_iterable)}({name(tuple(view for view, _ in places.views))})"
        expected = name(tuple(value for _, values in places.views for value in values))
        compared = (f"{name(all)}({name(map)}({name(f)}, {views}, {expected}))" for f in (operator.is_, _equal))
        refuse(f"not ({' or '.join(compared)})")
    for view, values, same, _ in places.mixed_views:
        kept = f"{name(compress)}({name(view)}, {name(same)})"
        refuse(f"not {name(all)}({name(map)}({name(_equal)}, {kept}, {name(values)}))")
    for disjoint, names in places.absent:
        refuse(f"not {name(disjoint)}({name(names)})")
    for value, content in places.memories:
        refuse(f"not {name(content.matches)}({name(value)})")


def _tensors(source: Source, places: GuardBuilder) -> Iterator[str]:
    """What stands where tensors stood, in the order of `_KINDS`."""
    name = source.name
    for mapping, key in places.tensor_items:
        yield f"{name(mapping)}[{_key(source, key)}]"
    for cell in places.tensor_cells:
        yield f"{name(cell)}.cell_contents"
    for get, holder in places.tensor_calls:
        yield f"{name(get)}({name(holder)})"
    for view in places.tensor_views:
        yield f"*{name(view)}"
    for view, _, _, is_tensor in places.mixed_views:
        yield f"*{name(compress)}({name(view)}, {name(is_tensor)})"


def _key(source: Source, key: str) -> str:
    return repr(key) if type(key) is str else source.name(key)


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
