"""What an installed library's code reads of the objects that it is given.

NOTE [Libraries read the user's objects] A library's code is taken as fixed, and what it reads elsewhere is not
followed. But what it gets from the user is the user's: the attribute names in its code count as if the user's code
mentioned them. Its code is what can be reached, inside of the library, from what the user names. Libraries that are
known to compute only (torch, NumPy, what `origin` lists) and the standard library read no such attributes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

from torch import Tensor

from .. import _torch
from . import origin
from .bytecode import code_facts

__all__ = ["attributes_read_by", "is_setting", "reads_any_attribute", "stored_attribute"]

_MOST = 400
"""Functions that are read for one that the user names."""


@functools.lru_cache(maxsize=1024)
def attributes_read_by(value: FunctionType | type) -> tuple[str, ...]:
    """The attribute names that a function or class of a library mentions, or what it calls in the library does."""
    names: dict[str, None] = {}
    todo: list[Any] = [value]
    seen: set[int] = set()
    package = origin.package(_origin(value))
    for part in todo:
        if id(part) in seen or len(seen) >= _MOST:
            continue
        seen.add(id(part))
        if isinstance(part, type):
            todo += [entry for base in part.__mro__ if _is_read(base, package) for entry in vars(base).values()]
        elif not isinstance(part, FunctionType):
            todo += _functions_in(part)
        elif _is_read(part, package):
            todo += _called(part)
            facts = code_facts(part.__code__)
            names.update(dict.fromkeys(facts.attributes))
            names.update((name, None) for (kind, _), read in facts.roots.items() if kind == "closure" for name in read)
    return tuple(names)


def reads_any_attribute(function: FunctionType) -> bool:
    """Whether a library's function computes the names of the attributes that it reads itself."""
    return _is_read(function, origin.package(_origin(function))) and code_facts(function.__code__).reads_all


def is_setting(holder: Any, name: str) -> bool:
    """Whether a module of torch, or an object in one, computes this attribute, as ``torch.backends`` does, and what
    the configurations of its compilers are.
    """
    cls = type(holder)
    if cls is ModuleType or not cls.__module__.startswith(_torch.COMPUTING_SETTINGS) or name in vars(holder):
        return False
    is_method = isinstance(inspect.getattr_static(cls, name, None), FunctionType)  # another object for each that asks
    return not is_method and hasattr(holder, name)


def stored_attribute(holder: Any, name: str) -> Any:
    """An attribute that an object of a library keeps, or nothing. What the object would compute is not asked for, as
    the members of a tensor are; what a class or a function has is code, for the most part.
    """
    if isinstance(holder, (type, FunctionType)):
        return _NOTHING
    static = inspect.getattr_static(holder, name, _NOTHING)
    if not isinstance(static, _OF_MEMBERS):
        return static
    return _NOTHING if isinstance(holder, Tensor) else getattr(holder, name, _NOTHING)


_NOTHING = object()
_OF_MEMBERS = (GetSetDescriptorType, MemberDescriptorType)


def _origin(value: FunctionType | type) -> origin.Origin:
    return origin.of_class(value) if isinstance(value, type) else origin.of_globals(value.__globals__)


def _is_read(value: FunctionType | type, package: str) -> bool:
    code = _origin(value)
    return package == origin.package(code) and not (origin.is_pure(code) or origin.standard(code))


def _functions_in(value: Any) -> Iterator[Any]:
    """Of a descriptor, a method, a partial."""
    for name in ("__func__", "func", "fget", "__wrapped__"):
        inner = getattr(value, name, None) if isinstance(value, _HOLDERS) else None
        if isinstance(inner, FunctionType):
            yield inner


_HOLDERS = (staticmethod, classmethod, property, functools.cached_property, functools.partial, MethodType)


def _called(function: FunctionType) -> list[FunctionType | type]:
    """The functions and classes that the globals of a function, or the modules among them, hold."""
    inner = function.__dict__.get("__wrapped__")
    found: list[FunctionType | type] = [inner] if isinstance(inner, FunctionType) else []
    facts = code_facts(function.__code__)
    for kind, name in facts.roots:
        held = function.__globals__.get(name) if kind == "global" else None
        if isinstance(held, (FunctionType, type)):
            found.append(held)
    for (kind, name), names in facts.chains:
        held = function.__globals__.get(name) if kind == "global" else None
        for attribute in names:
            held = vars(held).get(attribute) if isinstance(held, ModuleType) else None
        if isinstance(held, (FunctionType, type)):
            found.append(held)
    return found
