"""Objects that Python gets when a graph of Dynamo's runs (checked against torch 2.13.0 and 2.14.1).

While Dynamo traces it has stand-ins for them. What comes from outside of the traced code is that object, and a guard
sees to it that Dynamo compiles again for another one. What the traced code makes is made again of the same parts:
functions and what they close over, ``functools.partial``, constants.
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Callable
from types import BuiltinMethodType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

from torch._dynamo.guards import GuardBuilder, install_guard
from torch._dynamo.source import AttrSource
from torch._dynamo.variables.base import VariableTracker
from torch._dynamo.variables.constant import ConstantVariable
from torch._dynamo.variables.functions import (
    FunctoolsPartialVariable,
    NestedUserFunctionVariable,
    UserFunctionVariable,
    UserMethodVariable,
)
from torch._dynamo.variables.lists import BaseListVariable, ListVariable, SizeVariable, TupleVariable
from torch._dynamo.variables.tensor import SymNodeVariable

__all__ = ["Objects", "type_of", "value_of"]


def value_of(variable: VariableTracker) -> Any:
    """The object that a variable stands for, None where there is none."""
    if variable.is_python_constant():
        return variable.as_python_constant()
    # What a sequence has by this name is that of its items, which may have none.
    return None if isinstance(variable, BaseListVariable) else getattr(variable, "value", None)


def type_of(variable: VariableTracker) -> type:
    """The type of the object that a variable stands for."""
    try:
        return variable.python_type()
    except NotImplementedError:
        return object


class Objects:
    """The objects that variables stand for."""

    def __init__(
        self,
        tx: Any,
        is_same: Callable[[Any, Any], bool],
        unknown: Callable[[str], Exception],
    ) -> None:
        """``is_same``: whether a function does what another one does; ``unknown``: the error for a value that is not
        there yet.
        """
        self.tx, self.is_same, self.unknown = tx, is_same, unknown
        self.made: dict[int, FunctionType] = {}

    def of(self, variable: VariableTracker, name: str) -> Any:
        """``name``: what a message calls it."""
        variable = variable.realize()
        kind: Any = type(variable)
        found: Any = variable
        if kind is UserMethodVariable:
            owner = self.of(found.obj, name)
            if found.source is not None:
                install_guard(AttrSource(found.source, "__func__").make_guard(GuardBuilder.ID_MATCH))
            return MethodType(found.get_function(), owner)
        if kind is FunctoolsPartialVariable:
            given = "an argument of a functools.partial"
            args, kwargs = [self.of(x, given) for x in found.args], found.keywords.items()
            return functools.partial(self.of(found.func, name), *args, **{key: self.of(x, given) for key, x in kwargs})
        if kind is NestedUserFunctionVariable:
            return self.made.get(id(variable)) or self._function(found)
        if kind is SymNodeVariable:
            return found.evaluate_expr(self.tx.output)
        if kind is ConstantVariable:
            return found.as_python_constant()
        if kind in (TupleVariable, SizeVariable, ListVariable):
            return (list if kind is ListVariable else tuple)(self.of(x, name) for x in found.items)
        parts = getattr(type_of(variable), "__fh_parts__", None)
        if parts is not None:
            return type_of(variable)(*(self.of(self._attribute(variable, part), name) for part in parts))
        return self._known(variable, name)

    def _attribute(self, variable: VariableTracker, name: str) -> VariableTracker:
        return VariableTracker.build(self.tx, getattr).call_function(self.tx, [variable, ConstantVariable(name)], {})

    def _known(self, variable: Any, name: str) -> Any:
        is_function = type(variable) is UserFunctionVariable
        value = variable.get_function() if is_function else value_of(variable)
        source = variable.source
        is_new_each_time = isinstance(value, BuiltinMethodType) and not isinstance(value.__self__, (ModuleType, type))
        if value is None or is_new_each_time or (source is None and not variable.is_python_constant()):
            raise self.unknown(name)
        if source is not None:
            guard = functools.partial(_same_function, self.is_same) if is_function else GuardBuilder.ID_MATCH
            install_guard(source.make_guard(guard))
        return value

    def _function(self, variable: Any) -> FunctionType:
        """A function that the traced code makes. It may close over itself."""
        code, items = variable.get_code(), variable.closure.items if variable.closure else ()
        cells = tuple(CellType() for _ in items)
        name = variable.fn_name.as_python_constant()
        if any(step.opname == "STORE_DEREF" and step.argval in code.co_freevars for step in dis.get_instructions(code)):
            raise self.unknown(name)  # what it counts, say, begins anew in each run
        made = FunctionType(code, variable.f_globals, name, closure=cells)
        self.made[id(variable)] = made
        if variable.defaults:
            made.__defaults__ = self.of(variable.defaults, f"a default of {name}")
        if variable.kwdefaults:
            made.__kwdefaults__ = variable.kwdefaults.as_python_constant()
        for cell, item, free in zip(cells, items, code.co_freevars):
            content = self.tx.output.side_effects.load_cell(item)
            cell.cell_contents = self.of(content, f"{free}, which {name} closes over,")
        return made


def _same_function(is_same: Callable[[Any, Any], bool], builder: Any, guard: Any) -> None:
    """Another function will do that does the same: a caller may make one for each call."""
    kept = builder.get(guard)
    text = [f"a function like {getattr(kept, '__qualname__', kept)}"]
    builder.get_guard_manager(guard).add_lambda_guard(lambda found: is_same(found, kept), text, guard.user_stack)
