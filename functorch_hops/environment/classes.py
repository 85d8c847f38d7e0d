"""What is asked of a class or of an object before its parts are looked at."""

from __future__ import annotations

import dataclasses
import inspect
import operator
import types
from collections.abc import Callable
from typing import Any

import torch

from .. import pytree

__all__ = ["SPECIAL", "TEXT", "factories", "implicit_names", "is_node", "members_of_protocol"]

_CONSTRUCTORS = frozenset({"__init__", "__new__", "__post_init__"})

TEXT = ("__repr__", "__str__", "__format__")
"""Special methods that run where objects are turned into text."""

_OPERATORS = [name for name in vars(operator) if name.startswith("__") and name not in vars(object)]

SPECIAL = frozenset(
    {
        *_OPERATORS,
        *(f"__r{name[2:]}" for name in _OPERATORS),
        *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__", "__bool__", "__len__"),
        *("__iter__", "__next__", "__reversed__", "__missing__", "__enter__", "__exit__", "__length_hint__"),
        *("__getattr__", "__getattribute__", "__setattr__", "__delattr__", "__get__", "__set__", "__delete__"),
        *("__instancecheck__", "__subclasscheck__", "__subclasshook__", "__class_getitem__", "__set_name__"),
        *("__int__", "__float__", "__complex__", "__round__", "__trunc__", "__floor__", "__ceil__", "__divmod__"),
        *("__fspath__", "__array__", "__torch_function__"),
    }
)
"""Methods that Python, NumPy and torch look up in a class by themselves: one that appears later counts, too."""

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
        if name in SPECIAL and not isinstance(value, types.FunctionType):
            return True
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


def members_of_protocol(cls: type) -> list[str]:
    """What ``isinstance`` asks an object for if the class is a `typing.Protocol`."""
    if not cls.__dict__.get("_is_protocol", False):
        return []
    return [name for name in (*cls.__dict__, *inspect.get_annotations(cls)) if not name.startswith("_")]


def factories(cls: type) -> list[tuple[str, Any]]:
    """The functions that make the default values of a dataclass."""
    fields: dict[str, Any] = cls.__dict__.get("__dataclass_fields__", {})
    made = [(name, field.default_factory) for name, field in fields.items()]
    return [(name, factory) for name, factory in made if factory is not dataclasses.MISSING]


def is_node(value: Any) -> bool:
    """Whether trees are made of such objects, so that to pass one on is to pass on all its attributes."""
    return dataclasses.is_dataclass(value) or not pytree.flatten(value)[1].is_leaf()
