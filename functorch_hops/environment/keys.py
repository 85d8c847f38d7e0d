"""Static keys: what of a value goes into a fingerprint, hashable, and equal for values that trace alike."""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import pathlib
import sys
import types
import uuid
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeAlias

import torch

__all__ = ["ByIdentity", "Key", "KeyMakers", "Long", "by_value", "describe_key", "flat", "has_parts"]

Key: TypeAlias = Hashable
"""``(type, value)`` for what is compared by value, ``(kind, ...)`` with a string first for the rest."""

_LONGEST = 60


class ByIdentity:
    """A key that equals itself for the same object only, and keeps it, so that its id is not used again."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByIdentity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)

    def __repr__(self) -> str:
        return _shorten(_name(self.value))


def _as_is(value: Any) -> Key:
    return type(value), value


def _by_repr(value: Any) -> Key:
    # nan is not equal to itself, but 0.0 is to -0.0, and Decimal("1.0") to Decimal("1.00"). Texts do better.
    return type(value), repr(value)


def _by_base_repr(base: Any) -> Callable[[Any], Key]:
    return lambda value: (type(value), base.__repr__(value))


_MAKERS: dict[type, Callable[[Any], Key]] = {
    **dict.fromkeys(
        (bool, int, str, bytes, range, types.NoneType, types.EllipsisType, types.NotImplementedType), _as_is
    ),
    **dict.fromkeys((torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size), _as_is),
    **dict.fromkeys((float, complex, slice, decimal.Decimal, fractions.Fraction, uuid.UUID), _by_repr),
    **dict.fromkeys((datetime.date, datetime.datetime, datetime.time, datetime.timedelta), _by_repr),
}


def _maker(kind: type) -> Callable[[Any], Key] | None:
    if kind in _MAKERS:
        return _MAKERS[kind]
    if issubclass(kind, enum.Enum):
        return lambda value: (kind, value._name_ or repr(value._value_))
    if issubclass(kind, pathlib.PurePath):
        return lambda value: (kind, str(value))
    for base in (str, bytes, int, float, complex):
        if issubclass(kind, base):
            return _by_base_repr(base)
    numpy = sys.modules.get("numpy")
    if numpy is not None and issubclass(kind, numpy.generic):
        return lambda value: (kind, repr(value))
    if numpy is not None and issubclass(kind, numpy.dtype):
        return _by_repr
    return None


class KeyMakers(dict[type, Callable[[Any], Key] | None]):
    """For each type its maker of keys, or None for what is not compared by value; filled on demand."""

    def __missing__(self, kind: type) -> Callable[[Any], Key] | None:
        self[kind] = maker = _maker(kind)
        return maker


def by_value(value: Any, makers: KeyMakers) -> Key | None:
    """The key of what is compared by value, tuples and frozen sets of such things included; None for the rest."""
    kind = type(value)
    maker = makers[kind]
    if maker is not None:
        return maker(value)
    if kind is frozenset:
        key: Any = flat("frozenset", value, makers)
        return key and ("frozenset", tuple(sorted(key[1], key=repr)))
    return flat("tuple", value, makers) if kind is tuple else None


def flat(kind: str, items: Iterable[Any], makers: KeyMakers) -> Key | None:
    """One key for a whole container, if everything in it is compared by value."""
    keys = []
    for item in items:
        key = by_value(item, makers)
        if key is None:
            return None
        keys.append(key)
    return kind, tuple(keys)


def has_parts(value: Any) -> bool:
    """Whether something compared by value may have attributes as well: a member of an enumeration."""
    kind = type(value)
    return kind not in _MAKERS and (any(map(has_parts, value)) if kind in (tuple, frozenset) else True)


class Long:
    """The key of a long container of scalars, which costs no more than the container does."""

    __slots__ = ("values",)

    def __init__(self, values: tuple[Any, ...]) -> None:
        self.values = values

    @classmethod
    def of(cls, values: Sequence[Any]) -> Long | None:
        return cls(tuple(values)) if _MAKERS.keys() >= set(map(type, values)) else None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Long) or len(self.values) != len(other.values):
            return False
        makers = KeyMakers()
        pairs = zip(self.values, other.values)
        return all(a is b or by_value(a, makers) == by_value(b, makers) for a, b in pairs)

    def __hash__(self) -> int:
        return hash(len(self.values))


_BRACKETS = {
    "list": "[]",
    "tuple": "()",
    "set": "{}",
    "frozenset": "{}",
    "deque": ("deque([", "])"),
}


def describe_key(key: Any) -> str:
    """A key in words, for messages."""
    if isinstance(key, ByIdentity):
        return repr(key)
    first, *rest = key
    if not rest:
        return f"a {first}"
    if isinstance(first, enum.EnumMeta):
        return f"{first.__name__}.{rest[0]}"
    if isinstance(first, type):
        text = rest[0] if _maker(first) not in (None, _as_is) else repr(rest[0])
        return _shorten(str(text))
    if first == "alias":
        return f"the same object as {rest[0]}"
    if first == "memory":
        return f"{rest[0].layout[0].__name__} of {len(rest[0].saved)} bytes"
    if first == "tensor":
        return f"a {rest[0].__name__}"
    if first in _BRACKETS and isinstance(rest[0], tuple):
        left, right = _BRACKETS[first]
        return _shorten(left + ", ".join(map(describe_key, rest[0])) + right)
    if isinstance(rest[0], Long):
        rest = [len(rest[0].values)]
    if isinstance(rest[0], int):
        return f"a {first} of {rest[0]} item{'s' * (rest[0] != 1)}"
    if isinstance(rest[0], tuple):
        return _shorten(f"a {first} with keys {', '.join(map(describe_key, rest[0]))}")
    return f"{first} {_shorten(_name(rest[0].value if isinstance(rest[0], ByIdentity) else rest[0]))}"


def _name(value: Any) -> str:
    if isinstance(value, types.CodeType):
        return value.co_qualname
    if isinstance(value, str):
        return value
    if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType | types.ModuleType):
        return getattr(value, "__qualname__", None) or value.__name__
    return f"<{type(value).__qualname__} object>"


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
