"""Containers: length, order, keys and items; raw memory by content."""

from __future__ import annotations

import collections
import types
from typing import Any

from .attributes import attributes_of, extras
from .contents import Content
from .guard import SAME
from .keys import ByIdentity, Key, Long, by_value, flat, has_parts
from .places import Path, attribute, item
from .walk import Walk

__all__ = ["MAPPINGS", "SEQUENCES", "VIEWS", "entries", "items", "mapping", "memory", "sequence", "view"]

LONG = 4096
"""Items of a container from which on it has one key as a whole, if all are scalars."""

# With the word for each in a key. An instance of a subclass counts as one of its base.
SEQUENCES: dict[type, str] = {
    list: "list",
    tuple: "tuple",
    set: "set",
    frozenset: "frozenset",
    collections.deque: "deque",
}
MAPPINGS: tuple[type, ...] = (dict, types.MappingProxyType)
_EMPTY: tuple[dict[Any, Any], ...] = ({}, collections.OrderedDict())
VIEWS = tuple(type(view) for made in _EMPTY for view in (made.keys(), made.values(), made.items()))
_PLAIN_MAPPINGS = frozenset({dict, collections.OrderedDict, types.MappingProxyType})


def sequence(walk: Walk, path: Path, value: Any, escapes: bool) -> None:
    kind = next(word for base, word in SEQUENCES.items() if isinstance(value, base))
    mutable = kind not in ("tuple", "frozenset")
    content = list(value)
    key = _as_a_whole(walk, kind, content)
    if isinstance(value, collections.deque):
        walk.record(attribute(path, "maxlen"), (int, value.maxlen))
    if key is not None:
        walk.record(path, key)
        if mutable:
            walk.guard.size(value)
            walk.guard.view(value, content, [SAME] * len(content), [path] * len(content))
    elif not walk.has_budget(len(content)):
        walk.unfollowed(path, value)
        return
    else:
        walk.record(path, (kind, len(content)))
        fields = getattr(type(value), "_fields", None)
        if fields is None or len(fields) != len(content):
            items(walk, value, [item(path, at) for at in range(len(content))], mutable=mutable)
        else:
            items(walk, value, [attribute(path, field) for field in fields], mutable=mutable)
    extras(walk, path, value)


def _as_a_whole(walk: Walk, kind: str, content: list[Any]) -> Key | None:
    """One key for a container of scalars; None if there is anything else in it."""
    if len(content) >= LONG:
        long = Long.of(content)
        return long and (kind, long)
    return None if any(map(has_parts, content)) else flat(kind, content, walk.makers)


def items(walk: Walk, container: Any, paths: list[Path], *, mutable: bool) -> None:
    values = list(container)
    roles = [walk.value(path, value) for path, value in zip(paths, values, strict=True)]
    if mutable:
        walk.guard.size(container)
    # What never changes is looked at again only to fetch the tensors in it.
    if mutable or any(role != SAME for role in roles):
        walk.guard.view(container, values, roles, paths)


def mapping(walk: Walk, path: Path, value: Any, escapes: bool) -> None:
    keys = list(_views(value)[0])
    if len(keys) >= LONG and _long_mapping(walk, path, value, keys):
        return
    if not walk.has_budget(len(keys)):
        walk.unfollowed(path, value)
        return
    static = [by_value(key, walk.makers) for key in keys]
    places, kept = [], []
    for at, (key, made) in enumerate(zip(keys, static, strict=True)):
        # A key without a readable text of its own is named by its place.
        places.append(f"{path}[#{at}]" if made is None else item(path, key))
        kept.append(ByIdentity(key) if made is None else made)
        if made is None:
            walk.unwatched(places[-1])
    walk.record(path, ("dict", tuple(kept)))
    entries(walk, value, places)
    if isinstance(value, collections.defaultdict):
        walk.attributes(value, path, ("default_factory",))
    extras(walk, path, value)


def view(walk: Walk, path: Path, value: Any, escapes: bool) -> None:
    """What ``keys()``, ``values()`` or ``items()`` gave, which lives with its dict."""
    walk.record(path, ("view", type(value)))
    mapping(walk, f"{path}.mapping", value.mapping, escapes)


def _long_mapping(walk: Walk, path: Path, value: Any, keys: list[Any]) -> bool:
    """Watch a long mapping from scalars to scalars; False if there is anything else in it."""
    values = list(_views(value)[1])
    long = Long.of(keys), Long.of(values)
    if None in long:
        return False
    walk.record(path, ("dict", *long))
    walk.guard.size(value)
    for view, content in zip(_views(value), (keys, values)):
        walk.guard.view(view, content, [SAME] * len(content), [path] * len(content))
    extras(walk, path, value)
    return True


def entries(walk: Walk, container: Any, paths: list[Path]) -> None:
    keys, values = _views(container)
    if not keys:
        walk.guard.size(container if type(container) in _PLAIN_MAPPINGS else _Truthful(keys))
        return
    walk.guard.size(keys)
    walk.guard.view(keys, list(keys), [SAME] * len(keys), paths)
    content = list(values)
    roles = [walk.value(path, value) for path, value in zip(paths, content, strict=True)]
    walk.guard.view(values, content, roles, paths)


def _views(container: Any) -> tuple[Any, Any]:
    """Living views of keys and values; of a subclass, which may have ideas of its own, those of its base."""
    kind: Any = type(container)
    if kind not in _PLAIN_MAPPINGS:
        kind = next(base for base in (collections.OrderedDict, *MAPPINGS) if isinstance(container, base))
    return kind.keys(container), kind.values(container)


class _Truthful:
    """A view that is false when it is empty; views themselves are always true."""

    def __init__(self, view: Any) -> None:
        self._view = view

    def __len__(self) -> int:
        return len(self._view)


def memory(walk: Walk, path: Path, value: Any, escapes: bool) -> None:
    """What keeps its content as bytes."""
    if getattr(getattr(value, "dtype", None), "hasobject", False):
        walk.record(path, ("array", type(value), value.shape))
        items(walk, _Flat(value), [f"{path}.flat[{at}]" for at in range(value.size)], mutable=True)
        return
    content = Content.of(value)
    if content is None:
        walk.unfollowed(path, value)
        return
    walk.record(path, ("memory", content))
    walk.guard.memory(value, content)
    if attributes_of(value) is not None:  # a masked array has its mask there
        extras(walk, path, value, everything=not walk.follows_class(type(value)))


class _Flat:
    """The items of an array of objects, as often as one asks for them."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __iter__(self) -> Any:
        return iter(self._array.flat)

    def __len__(self) -> int:
        return int(self._array.size)
