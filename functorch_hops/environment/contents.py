"""Raw memory - NumPy arrays, ``array.array``, ``bytearray``, ``memoryview``, ctypes - compared by its bytes.

The bytes are copied once and compared in place (``bytes.startswith`` is a ``memcmp`` with any buffer), so that a
check takes the time to read them.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import Any

__all__ = ["Content"]


class Content:
    """What a buffer held at one moment. A key: equal for equal bytes in an equal layout."""

    __slots__ = ("__weakref__", "layout", "saved")

    def __init__(self, layout: Hashable, saved: bytes) -> None:
        self.layout = layout
        self.saved = saved

    @classmethod
    def of(cls, value: Any) -> Content | None:
        """The content of a buffer, the same object while an equal one of it is alive; None for what is no buffer."""
        known = _known.get(id(value))
        if known is not None and known.matches(value):
            return known
        try:
            view = _view(value)
        except (TypeError, ValueError, BufferError):
            return None
        content = _known[id(value)] = cls(_layout(value, view), view.tobytes())
        return content

    def matches(self, value: Any) -> bool:
        try:
            view = _view(value)
        except (TypeError, ValueError, BufferError):
            return False
        if _layout(value, view) != self.layout:
            return False
        return self.saved.startswith(view) if view.c_contiguous else view.tobytes() == self.saved

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Content):
            return NotImplemented
        return self is other or (self.layout == other.layout and self.saved == other.saved)

    def __hash__(self) -> int:
        return hash(self.layout)


_known: weakref.WeakValueDictionary[int, Content] = weakref.WeakValueDictionary()
"""Contents by the id of what they were read from; an id that is used again costs a comparison."""


def _view(value: Any) -> memoryview:
    try:
        return memoryview(value)
    except ValueError:  # NumPy exports no dates and no types of extensions
        return memoryview(value.view(f"V{value.dtype.itemsize}"))


def _layout(value: Any, view: memoryview) -> Hashable:
    return type(value), view.format, view.shape, view.strides, getattr(value, "dtype", None), view.readonly
