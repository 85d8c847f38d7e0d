"""Custom operators that write to their arguments.

torch's functionalization knows the pure twin of an ATen operator only. So a call of a custom one that writes is
recorded as its functional form, which works on copies and returns them, followed by ordinary writes of the copies.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _torch
from .capture import current_capture

__all__ = ["Functional", "functional_form", "write_back"]


class Functional:
    """``functional(*args)``: the results of an operator, followed by the new values of what it writes to."""

    def __init__(self, operator: _torch.OpOverload) -> None:
        self.operator = operator
        arguments = operator._schema.arguments
        self.written = {a.name: i for i, a in enumerate(arguments) if a.alias_info and a.alias_info.is_write}
        self.__name__ = self.__qualname__ = f"functional_{operator._schema.name.replace('::', '_')}"
        self.__module__ = __name__

    def __str__(self) -> str:
        return str(self.operator)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _torch.below_functionalization(self._run, args, kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        capture = current_capture()
        if capture is None or _torch.top_interpreter() is not None:
            return self._compute(args, kwargs)
        with _torch.without_torch_function():
            given = _torch.tree_map(lambda x: capture.proxy_of(x) if isinstance(x, Tensor) else x, (args, kwargs))
            with _torch.disable_proxy_modes_tracing(), capture.unrecorded():
                outs = self._compute(args, kwargs)
            proxy = capture.tracer.create_proxy("call_function", self, *given)
            return _torch.track_tensor_tree(outs, proxy, constant=None, tracer=capture.tracer)

    def _compute(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
        args, kwargs = self.with_copies(args, kwargs)
        results = [t for t in _torch.tree_leaves(self.operator(*args, **kwargs)) if t is not None]
        return (*results, *self.targets(args, kwargs))

    def with_copies(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call, with copies of those that are written to."""
        values, named = list(args), dict(kwargs)
        for name, place in self.written.items():
            if place < len(values):
                values[place] = _copied(values[place])
            elif name in named:
                named[name] = _copied(named[name])
        return tuple(values), named

    def targets(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
        """The tensors that the operator writes to."""
        values = [args[place] if place < len(args) else kwargs.get(name) for name, place in self.written.items()]
        return [t for t in _torch.tree_leaves(values) if isinstance(t, Tensor)]


@functools.cache
def functional_form(operator: Any) -> Functional | None:
    """The functional form of a custom operator that writes to arguments; None of any other."""
    if not isinstance(operator, _torch.OpOverload) or operator.namespace in ("aten", "prims", "functorch_hops"):
        return None
    returns = operator._schema.returns
    are_new = all(r.alias_info is None and str(r.type) == "Tensor" for r in returns)
    return Functional(operator) if operator._schema.is_mutable and are_new else None


def write_back(form: Functional, outs: Sequence[Tensor], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Write the new values to the arguments of a call; returns what the operator returns."""
    targets = form.targets(args, kwargs)
    n = len(outs) - len(targets)
    for target, value in zip(targets, outs[n:]):
        torch.ops.aten.copy_.default(target, value)
    if len(form.operator._schema.returns) == 1:
        return outs[0]
    return tuple(outs[:n]) or None


def _copied(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_copied(v) for v in value]
    return value.clone() if isinstance(value, Tensor) else value
