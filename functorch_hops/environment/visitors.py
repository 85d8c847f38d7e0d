"""The table from a type to the function that visits its parts."""

from __future__ import annotations

import contextvars
import enum
import functools
import operator
import pathlib
import sys
import types
import weakref
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from . import attributes, containers, functions, modules, objects, references
from .places import Path
from .walk import Walk

__all__ = ["LATER", "Visitor", "visitor_of"]

LATER = (references.subclasses, references.contexts)
"""What a walk asks for when it knows which names code mentions and which types it meets; more than once."""

Visitor: TypeAlias = Callable[[Walk, Path, Any, bool], None]
"""Tells a walk which parts of a value to follow and to guard, or that it is taken by identity."""

_BASES: dict[type, Visitor] = {
    type: objects.python_class,
    torch.nn.Module: modules.module,
    types.FunctionType: functions.function,
    types.MethodType: functions.method,
    types.BuiltinFunctionType: functions.builtin,
    types.MethodWrapperType: functions.builtin,
    types.ModuleType: objects.python_module,
    functools.partial: functions.partial,
    functools.partialmethod: functions.partial,
    staticmethod: functions.wrapper("__func__"),
    classmethod: functions.wrapper("__func__"),
    property: functions.wrapper("fget"),
    functools.cached_property: functions.wrapper("func"),
    **dict.fromkeys(containers.MAPPINGS, containers.mapping),
    **dict.fromkeys(containers.VIEWS, containers.view),
    **dict.fromkeys(containers.SEQUENCES, containers.sequence),
    bytearray: containers.memory,
    memoryview: containers.memory,
    weakref.ref: references.reference,
    weakref.ProxyType: references.proxy,
    weakref.CallableProxyType: references.proxy,
    contextvars.ContextVar: references.context_variable,
    types.CellType: references.cell,
    types.GenericAlias: references.parameters,
    types.UnionType: references.parameters,
    types.GeneratorType: references.iterator,
    operator.attrgetter: references.getter,
    operator.methodcaller: references.getter,
    **dict.fromkeys((enum.Enum, str, bytes, int, float, complex, pathlib.PurePath), attributes.parts),
}


def visitor_of(kind: type) -> Visitor:
    exact = _BASES.get(kind)
    if exact is not None:
        return exact
    for base, known in _BASES.items():
        if issubclass(kind, base):
            return known
    numpy = sys.modules.get("numpy")
    if numpy is not None and issubclass(kind, numpy.ndarray):
        return containers.memory
    if numpy is not None and kind.__module__.startswith("numpy.random"):
        return references.generator
    return objects.instance
