"""Whether two static values are the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable
from types import CellType, FunctionType
from typing import Any

import torch

from ..environment.keys import KeyMakers, by_value, describe_key
from ..ir.meta import TensorMeta

__all__ = ["ObjectKey", "described", "described_arguments", "same_function", "same_static", "static_key"]


class ObjectKey:
    """A static argument that is compared by identity where its own equality can't be a key."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ObjectKey):
            return NotImplemented
        return self.value is other.value or (_is_value(self.value) and same_static(self.value, other.value))

    def __hash__(self) -> int:
        return hash(self.value) if _is_value(self.value) else id(self.value)


def static_key(value: Any) -> tuple[Any, Any]:
    """What tells a static value from others: of equal numbers, True, 1 and 1.0 are different ones."""
    found: Any = by_value(value, KeyMakers())
    if found is None and type(value) is tuple:
        return "tuple", tuple(map(static_key, value))
    return found or (type(value), ObjectKey(value))


def same_static(a: Any, b: Any) -> bool:
    """Whether two static values are the same: of one type, and equal in all that a trace could tell apart.

    NaN is the same as NaN, and 0.0 is not -0.0; arrays are compared by content.
    """
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    key = by_value(a, KeyMakers())
    if key is not None:
        return key == by_value(b, KeyMakers())
    if isinstance(a, torch.Tensor):
        return False  # a sparse one, see NOTE [Sparse matrices]
    if hasattr(type(a), "__array__"):
        x, y = a.__array__(), b.__array__()
        return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
    return bool(a == b) and _content(a) == _content(b)


def same_function(a: object, b: object) -> bool:
    """Whether two functions do the same: they are made by one line of code, with equal defaults, and close over equal
    values.
    """
    if a is b:
        return True
    if not (isinstance(a, FunctionType) and isinstance(b, FunctionType)) or a.__code__ is not b.__code__:
        return False
    if a.__globals__ is not b.__globals__ or not same_static(a.__kwdefaults__, b.__kwdefaults__):
        return False
    cells = zip(a.__closure__ or (), b.__closure__ or ())
    return same_static(a.__defaults__, b.__defaults__) and all(_same_cell(x, y) for x, y in cells)


def _same_cell(a: CellType, b: CellType) -> bool:
    try:
        return same_static(a.cell_contents, b.cell_contents)
    except ValueError:  # one is empty yet
        return a is b


def described(entry: Any) -> str:
    """The key of an argument in words."""
    if entry is float:
        return "float"
    if len(entry) > 2:
        shape, dtype, device, *kind_of_tensor = entry
        return " ".join([*kind_of_tensor, str(TensorMeta(tuple(shape), dtype, device))])
    kind, value = entry
    if isinstance(value, ObjectKey):
        return repr(value.value)
    return f"({', '.join(map(described, value))})" if kind == "tuple" else describe_key(entry)


def described_arguments(key: tuple[Any, ...]) -> str:
    """The leaves of an argument key, short."""
    return f"({', '.join(map(described, key[1:]))})"


def _content(x: Any) -> Hashable:
    """A key for the types of the numbers inside ``x``: P(1) == P(1.0), but they trace differently. None if ``x`` has no
    parts that can be looked at.
    """
    key = by_value(x, KeyMakers())
    if key is not None or not _is_value(x):
        return key
    if isinstance(x, tuple):
        parts: Iterable[Any] = x
    elif dataclasses.is_dataclass(x):
        parts = (getattr(x, field.name) for field in dataclasses.fields(x))
    else:
        parts = getattr(x, "__dict__", {}).values()
    return type(x), tuple(map(_content, parts))


def _is_value(x: Any) -> bool:
    """Whether a static argument is compared by its own equality, which it defines together with its hash."""
    cls = type(x)
    has_own = any("__eq__" in vars(base) for base in cls.__mro__ if base is not object)
    return cls.__hash__ is not None and has_own and not isinstance(x, (torch.nn.Module, torch.Tensor))
