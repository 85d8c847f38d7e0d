"""Objects, classes and Python modules: the attributes that code mentions."""

from __future__ import annotations

import operator
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

from . import origin
from .keys import ByIdentity
from .places import Path, attribute
from .walk import Walk

__all__ = ["FIELDS", "extras", "instance", "python_class", "python_module"]

FIELDS = "__environment__"
"""A class may name here the attributes of its instances that functions read; no others are followed then."""

# The library's, but nothing else than the user's attributes.
_PLAIN = {("types", "SimpleNamespace"), ("argparse", "Namespace")}
# Of the interpreter's, without a state that changes.
_IMMUTABLE = frozenset({object, operator.attrgetter, operator.itemgetter, operator.methodcaller})


def python_module(walk: Walk, path: Path, value: Any, escapes: bool) -> None:
    walk.record(path, ByIdentity(value))
    code = origin.of_module(value)
    if walk.follows(code):
        walk.search(value.__dict__, path)
    elif not origin.is_pure(code):
        walk.unwatched(path)


def python_class(walk: Walk, path: Path, cls: type, escapes: bool) -> None:
    walk.record(path, ("class", cls))
    if "<locals>" in cls.__qualname__:  # it may close over anything, and another call makes another one
        walk.unwatched(path)
    walk.class_of(cls, constructed=True)


def instance(walk: Walk, path: Path, value: Any, escapes: bool) -> None:
    """An instance of a class that nothing more special is known about."""
    cls = type(value)
    fields = getattr(cls, FIELDS, None)
    if isinstance(fields, tuple):
        walk.record(path, ("object", cls))
        walk.attributes(value, path, [name for name in fields if hasattr(value, name)])
        walk.class_of(cls, constructed=False)
        return
    attributes = _attributes(value)
    if attributes is not None and "__wrapped__" in attributes:
        walk.value(attribute(path, "__wrapped__"), attributes["__wrapped__"])
    if walk.follows_class(cls) or (cls.__module__, cls.__name__) in _PLAIN:
        walk.record(path, ("object", cls))
        if "<locals>" in cls.__qualname__:
            walk.unwatched(path)
        node = walk.is_node(value)
        for names in (attributes, _Slots(value)):
            if names is not None:
                walk.search(names, path, opens=True, everything=node and escapes, node=value if node else None)
        walk.class_of(cls, constructed=False)
    else:
        everything = attributes is not None and _is_read_whole(cls)
        walk.record(path, ("object", cls) if everything else ByIdentity(value))
        if attributes is None and hasattr(cls, "__setitem__"):
            walk.opaque.append(path)
        if cls not in _IMMUTABLE and not (everything and origin.is_pure(origin.of_class(cls))):
            walk.unwatched(path)
        if attributes is not None and origin.package(origin.of_class(cls)) != "functorch_hops":
            walk.search(attributes, path, everything=everything)
    if attributes is not None:
        walk.guard.object(value)


def extras(walk: Walk, path: Path, value: Any) -> None:
    """What an instance of a container's subclass has besides its items."""
    cls = type(value)
    if cls.__module__ in ("builtins", "collections"):
        return
    attributes = _attributes(value)
    followed = walk.follows_class(cls)
    if attributes is not None:
        walk.search(attributes, path, opens=followed)
        walk.guard.object(value)
    walk.class_of(cls, constructed=False)


def _is_read_whole(cls: type) -> bool:
    """Whether a library's code, which is not followed, is likely to read the attributes of such an object.

    So it is for what computes with tensors (a distribution), and for containers and configurations that
    compute their items and attributes.
    """
    code = origin.of_class(cls)
    if origin.package(code) == "functorch_hops":
        return False
    defining = sys.modules.get(cls.__module__)
    uses_torch = origin.package(code) == "torch" or (defining is not None and "torch" in defining.__dict__)
    computes = isinstance(cls.__getattribute__, types.FunctionType) or hasattr(cls, "__getattr__")
    return uses_torch or computes or hasattr(cls, "__getitem__")


def _attributes(value: Any) -> dict[str, Any] | None:
    attributes = getattr(value, "__dict__", None)
    return attributes if type(attributes) is dict and value.__dict__ is attributes else None


class _Slots(Mapping[str, Any]):
    """The slots of an object as a namespace."""

    def __init__(self, value: Any) -> None:
        self._value = value
        self._members = {
            name: member
            for base in reversed(type(value).__mro__)
            if base.__dict__.get("__slots__")
            for name, member in base.__dict__.items()
            if isinstance(member, types.MemberDescriptorType)
        }

    def __getitem__(self, name: str) -> Any:
        try:
            return self._members[name].__get__(self._value)
        except AttributeError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._members if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)
