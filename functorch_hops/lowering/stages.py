"""What a compilation took: seconds of each stage, the size of what was generated, what became of the loops."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = [
    "COMPILED",
    "GRAPH",
    "KERNELS",
    "PASSES",
    "Code",
    "Compilation",
    "compilation",
    "generated",
    "keep_named",
    "stage",
]

Code = Callable[[list[Tensor]], Sequence[Tensor]]
"""What a compilation makes of a graph: it may empty the list of operands."""

PASSES, KERNELS, COMPILED, GRAPH = "passes", "code of kernels", "compilation of kernels", "graph"
"""The stages, in their order; "graph" is what the backend does."""


@dataclass
class Compilation:
    """``seconds``: of each stage, without those of stages inside it. ``body``: the graph as the passes leave it."""

    seconds: dict[str, float] = field(default_factory=dict)
    source_bytes: int = 0
    body: Any = None
    reports: Callable[[], tuple[Any, ...]] = tuple
    """What ``lowering.loops`` says of the loops."""
    named: list[Any] = field(default_factory=list)
    """What the code knows by a number only: it lives as long as the code."""


class _State(threading.local):
    current: Compilation | None = None
    inside = 0.0
    """Seconds of the stages that ran inside of the present one."""


_state = _State()


@contextlib.contextmanager
def compilation() -> Iterator[Compilation]:
    """Keep what is measured meanwhile, on this thread."""
    outer = _state.current
    _state.current = Compilation()
    try:
        yield _state.current
    finally:
        _state.current = outer


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    current, outer = _state.current, _state.inside
    _state.inside, start = 0.0, time.perf_counter()
    try:
        yield
    finally:
        took = time.perf_counter() - start
        if current is not None:
            current.seconds[name] = current.seconds.get(name, 0.0) + took - _state.inside
        _state.inside = outer + took


def keep_named(value: Any) -> None:
    """Keep what compiled code will name by a number; in a trace that is not ours, for good."""
    (_named_for_good if _state.current is None else _state.current.named).append(value)


_named_for_good: list[Any] = []


def generated(source: str) -> None:
    """This source was made for a compiler."""
    if _state.current is not None:
        _state.current.source_bytes += len(source)
