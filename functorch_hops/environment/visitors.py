"""The table from a type to the function that visits its parts."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from . import containers, functions, modules, objects
from .places import Path
from .walk import Walk

__all__ = ["Visitor", "visitor_of"]

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
    **dict.fromkeys(containers.SEQUENCES, containers.sequence),
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
        return containers.array
    return objects.instance
