"""A graph run node by node, which stops at the node that makes the first NaN."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, fx

from .._torch import nonfinite
from .active import state
from .origin import Origin

__all__ = ["NanMade", "holds_nan", "looked_at", "stopping_at_nan"]


class NanMade(Exception):
    """``operation`` made a NaN, of operands without one. ``steps``: of the loops around, from the innermost; each with
    its name and origin.
    """

    def __init__(self, operation: str) -> None:
        super().__init__(operation)
        self.operation = operation
        self.steps: list[tuple[int, str, Origin | None]] = []


@contextlib.contextmanager
def stopping_at_nan() -> Iterator[None]:
    """Graphs that run meanwhile, on this thread, raise NanMade; none runs compiled."""
    outer, state.stops_at_nan = state.stops_at_nan, True
    try:
        yield
    finally:
        state.stops_at_nan = outer


def looked_at(module: fx.GraphModule, operands: Sequence[Tensor]) -> Any:
    return _Looking(module).run(*operands)


class _Looking(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_function" and holds_nan(result):
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            if not holds_nan((args, kwargs)):
                raise NanMade(str(n.target))
        return result


def holds_nan(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(map(holds_nan, value))
    if isinstance(value, dict):
        return holds_nan([*value.values()])
    return isinstance(value, Tensor) and nonfinite(value) == "nan"
