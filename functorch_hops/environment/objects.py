"""Objects, classes and Python modules: the attributes that code mentions."""

from __future__ import annotations

import abc
import enum
import operator
import sys
import types
from typing import Any

from . import origin
from .attributes import Slots, attributes_of
from .containers import memory
from .contents import Content
from .guard import SAME
from .keys import ByIdentity
from .places import Path, attribute
from .references import hides_state, iterator, registry
from .spaces import LibraryMethods
from .walk import Walk

__all__ = ["FIELDS", "instance", "python_class", "python_module"]

FIELDS = "__environment__"
"""A class may name here the attributes of its instances that functions read; no others are followed then."""

# The library's, but nothing else than the user's attributes.
_PLAIN = {("types", "SimpleNamespace"), ("argparse", "Namespace")}
# Of the interpreter's, without a state that changes.
_IMMUTABLE = frozenset({object, operator.attrgetter, operator.itemgetter, operator.methodcaller})


def python_module(walk: Walk, path: Path, value: Any, escapes: bool) -> None:
    walk.record(path, ByIdentity(value))
    code = origin.of_module(value)
    if walk.follows(code):
        walk.search(value.__dict__, path, opens=escapes)
        # `__getattr__` of a module answers for names that it does not have, or its class does.
        walk.mentions([name for name in ("__getattr__",) if name in value.__dict__])
        walk.class_of(type(value), constructed=False)
    else:
        if escapes:
            walk.library_names(value)
        if not origin.is_pure(code):
            walk.unwatched(path)


def python_class(walk: Walk, path: Path, cls: type, escapes: bool) -> None:
    walk.record(path, ("class", cls, cls.__mro__))
    if "<locals>" in cls.__qualname__:  # it may close over anything, and another call makes another one
        walk.unwatched(path)
    walk.class_of(cls, constructed=True)
    if isinstance(cls, enum.EnumMeta):
        walk.search(cls._member_map_, path, everything=True)
    if isinstance(cls, abc.ABCMeta):
        registry(walk, path, cls)


def instance(walk: Walk, path: Path, value: Any, escapes: bool) -> None:
    """An instance of a class that nothing more special is known about."""
    cls = type(value)
    fields = getattr(cls, FIELDS, None)
    if isinstance(fields, tuple):
        walk.record(path, ("object", cls))
        walk.attributes(value, path, [name for name in fields if hasattr(value, name)])
        walk.class_of(cls, constructed=False)
        return
    attributes = attributes_of(value)
    methods: LibraryMethods | None
    if attributes is not None and "__wrapped__" in attributes:
        walk.item(attributes, "__wrapped__", attribute(path, "__wrapped__"))
    is_buffer = not isinstance(getattr(cls, "__buffer__", None), types.FunctionType) and Content.of(value) is not None
    if is_buffer:
        memory(walk, f"{path}.memory", value, escapes)
        if any((base.__module__, base.__name__) == ("_ctypes", "_Pointer") for base in cls.__mro__):
            walk.hide(path, "a pointer, behind which nobody looks")
    if walk.follows_class(cls) or (cls.__module__, cls.__name__) in _PLAIN:
        walk.record(path, ("object", cls))
        if "<locals>" in cls.__qualname__:
            walk.unwatched(path)
        node = walk.is_node(value)
        methods = walk.methods_of(cls)
        for names in (attributes, Slots(value)):
            if names is not None:
                everything, tree = node and escapes, value if node else None
                walk.search(names, path, everything=everything, node=tree, methods=methods)
        if attributes is None:
            walk.guard.call(type, value, cls, SAME, path)
        walk.class_of(cls, constructed=False)
    elif is_buffer:
        walk.record(path, ("object", cls))
    elif attributes is None and hasattr(cls, "__next__"):
        iterator(walk, path, value, escapes)
    else:
        everything = attributes is not None and _is_read_whole(cls)
        walk.record(path, ("object", cls) if everything else ByIdentity(value))
        walk.foreign(cls)
        if attributes is None and hasattr(cls, "__setitem__"):
            walk.opaque.append(path)
        if hides_state(cls):
            walk.hide(path, f"a {cls.__qualname__}, whose state can't be watched")
        if cls not in _IMMUTABLE and not (everything and origin.is_pure(origin.of_class(cls))):
            walk.unwatched(path)
        if attributes is not None and origin.package(origin.of_class(cls)) != "functorch_hops":
            methods = None if origin.is_stateful(cls.__module__, "") else walk.methods_of(cls)
            walk.search(attributes, path, everything=everything, methods=methods)
    if attributes is not None:
        walk.guard.object(value)


def _is_read_whole(cls: type) -> bool:
    """Whether a library's code, which is not followed, is likely to read the attributes of such an object.

    So it is for what computes with tensors (a distribution), and for containers and configurations that
    compute their items and attributes.
    """
    code = origin.of_class(cls)
    if origin.package(code) == "functorch_hops":
        return False
    defining = sys.modules.get(cls.__module__)
    uses_torch = origin.package(code) == "torch" or (defining is not None and "torch" in defining.__dict__)
    computes = isinstance(cls.__getattribute__, types.FunctionType) or hasattr(cls, "__getattr__")
    return uses_torch or computes or hasattr(cls, "__getitem__") or hasattr(cls, "__iter__")
