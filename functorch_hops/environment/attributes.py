"""The attributes of instances, in their ``__dict__`` and in slots."""

from __future__ import annotations

import enum
import pathlib
import types
from collections.abc import Iterator, Mapping
from typing import Any

from .guard import attribute_getter
from .keys import by_value
from .places import Path
from .walk import Walk

__all__ = ["Slots", "attributes_of", "extras", "parts"]


def parts(walk: Walk, path: Path, value: Any, escapes: bool) -> None:
    """The attributes of what is compared by value."""
    cls = type(value)
    if isinstance(value, pathlib.Path):  # which names something that changes
        walk.unwatched(path)
    if not any(map(walk.follows_class, cls.__mro__)):
        return
    for names in (attributes_of(value), Slots(value)):
        if names is not None:
            walk.search(names, path)
    if attributes_of(value) is not None:
        walk.guard.object(value)
    if isinstance(value, enum.Enum) and by_value(value._value_, walk.makers) is None:
        walk.mentions(["_value_"])  # what `value` reads
    walk.class_of(cls, constructed=False)


def extras(walk: Walk, path: Path, value: Any, *, everything: bool = False) -> None:
    """What an instance of a container's subclass has besides its items; `everything`: code that is not followed reads
    its attributes.
    """
    cls = type(value)
    if cls.__module__ in ("builtins", "collections"):
        return
    attributes = attributes_of(value)
    for names in (attributes, Slots(value)):
        if names is not None:
            walk.search(names, path, everything=everything)
    if attributes is not None:
        walk.guard.object(value)
    walk.class_of(cls, constructed=False)


def attributes_of(value: Any) -> dict[str, Any] | None:
    get = attribute_getter(type(value))
    try:
        attributes = get(value, "__dict__")
    except AttributeError:
        return None
    return attributes if type(attributes) is dict and get(value, "__dict__") is attributes else None


class Slots(Mapping[str, Any]):
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
