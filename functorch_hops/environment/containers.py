"""Containers: length, order, keys and items; NumPy arrays by content."""

from __future__ import annotations

import collections
import types
from typing import Any

from .guard import SAME, array_content
from .keys import ByIdentity, by_value, flat
from .objects import extras
from .places import Path, attribute, item
from .walk import Walk

__all__ = ["MAPPINGS", "SEQUENCES", "array", "entries", "items", "mapping", "sequence"]

LARGEST_ARRAY = 2**20
"""Bytes of a NumPy array that is compared by content; a larger one is taken by identity."""

# With the word for each in a key. An instance of a subclass counts as one of its base.
SEQUENCES: dict[type, str] = {
    list: "list",
    tuple: "tuple",
    set: "set",
    frozenset: "frozenset",
    collections.deque: "deque",
    bytearray: "bytearray",
}
MAPPINGS: tuple[type, ...] = (dict, types.MappingProxyType)
_PLAIN_MAPPINGS = frozenset({dict, collections.OrderedDict, types.MappingProxyType})


def sequence(walk: Walk, path: Path, value: Any, escapes: bool) -> None:
    kind = next(word for base, word in SEQUENCES.items() if isinstance(value, base))
    if not walk.has_budget(len(value)):
        walk.unfollowed(path, value)
        return
    mutable = kind not in ("tuple", "frozenset")
    content = list(value)
    key = flat(kind, content, walk.makers)
    if key is None:
        walk.record(path, (kind, len(content)))
        fields = getattr(type(value), "_fields", None)
        if fields is None or len(fields) != len(content):
            items(walk, value, [item(path, at) for at in range(len(content))], mutable=mutable)
        else:
            items(walk, value, [attribute(path, field) for field in fields], mutable=mutable)
    else:
        walk.record(path, key)
        if mutable:
            walk.guard.size(value)
            walk.guard.view(value, content, [SAME] * len(content), [path] * len(content))
    extras(walk, path, value)


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


def array(walk: Walk, path: Path, value: Any, escapes: bool) -> None:
    if value.dtype.hasobject or value.nbytes > LARGEST_ARRAY:
        walk.unfollowed(path, value)
        return
    content = array_content(value)
    walk.record(path, ("array", type(value), content))
    walk.guard.array(value, content)
