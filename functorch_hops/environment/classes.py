"""What is asked of a class or of an object before its parts are looked at."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from typing import Any

import torch

from .. import pytree

__all__ = ["TEXT", "factories", "implicit_names", "is_node"]

_CONSTRUCTORS = frozenset({"__init__", "__new__", "__post_init__"})

TEXT = ("__repr__", "__str__", "__format__")
"""Special methods that run where objects are turned into text."""

# Special methods that no tracing runs, and those that dataclasses make, which mention every field.
_NEVER_RUN = {*TEXT, "__del__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__"}

_MADE_BY_DATACLASS = {
    *("__init__", "__eq__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__"),
    *("__setattr__", "__delattr__", "__replace__"),
}


def implicit_names(cls: type, follows: Callable[[type], bool], *, constructed: bool) -> list[str]:
    """Methods that run without being mentioned: special ones, and those that a library's base class calls."""
    overridden = {"forward"} if issubclass(cls, torch.nn.Module) else set()
    for base in cls.__mro__[1:]:
        if base not in (object, torch.nn.Module) and not follows(base):
            overridden.update(base.__dict__)
    made = _MADE_BY_DATACLASS if "__dataclass_fields__" in cls.__dict__ else frozenset()

    def runs(name: str, value: Any) -> bool:
        if not isinstance(value, types.FunctionType | staticmethod | classmethod | property):
            return False
        if name in made and isinstance(value, types.FunctionType) and value.__code__.co_filename == "<string>":
            return False
        if name in _CONSTRUCTORS:
            return constructed
        if name.startswith("__") and name.endswith("__"):
            return name not in _NEVER_RUN
        return name in overridden

    return [name for name, value in cls.__dict__.items() if runs(name, value)]


def factories(cls: type) -> list[tuple[str, Any]]:
    """The functions that make the default values of a dataclass."""
    fields: dict[str, Any] = cls.__dict__.get("__dataclass_fields__", {})
    made = [(name, field.default_factory) for name, field in fields.items()]
    return [(name, factory) for name, factory in made if factory is not dataclasses.MISSING]


def is_node(value: Any) -> bool:
    """Whether trees are made of such objects, so that to pass one on is to pass on all its attributes."""
    return dataclasses.is_dataclass(value) or not pytree.flatten(value)[1].is_leaf()
