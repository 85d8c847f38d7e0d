"""Entries by key, of which those that were used last are kept."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["Recent"]

E = TypeVar("E")


class Recent(Generic[E]):
    """At most ``maxsize`` entries, several of them for one key where that does not tell them apart.

    Only adding needs a lock. Without one, threads that use entries at once may lose one, which is then made again.
    """

    def __init__(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self._entries: OrderedDict[Hashable, tuple[E, ...]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._entries.values()))

    def of(self, key: Hashable) -> tuple[E, ...]:
        """The one used last first."""
        return self._entries.get(key, ())

    def use(self, key: Hashable, entry: E) -> None:
        found = self.of(key)
        if found and found[0] is not entry:
            self._entries[key] = (entry, *(other for other in found if other is not entry))
        with contextlib.suppress(KeyError):  # another thread has thrown it out just now
            self._entries.move_to_end(key)

    def add(self, key: Hashable, entry: E) -> None:
        self._entries[key] = (entry, *self.of(key))
        self._entries.move_to_end(key)
        while len(self) > self.maxsize:
            oldest, entries = next(iter(self._entries.items()))
            if len(entries) > 1:
                self._entries[oldest] = entries[:-1]
            else:
                del self._entries[oldest]

    def clear(self) -> None:
        self._entries.clear()
