"""What becomes of the loops of a graph."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ...errors import message
from ...ir.subgraph import Params, Subgraph
from .forms import Form
from .kept import Library

__all__ = ["LoopReport", "Plan", "Whole", "failed"]

_TOLD_LINES = 5


@dataclass(frozen=True)
class LoopReport:
    """How a loop is lowered. ``taken``: "lanes" (one kernel, a block of lanes runs through all steps), "steps" (one
    kernel, its body a function), "tape" (the same, and its steps are written to a tape or read from one),
    "replayed" or "native" (torch's own operator). ``reason``: what prevented the one before.
    ``trips``: how many steps it takes, if that is known; ``depth``: how many loops are around it.
    """

    operator: str
    taken: str
    reason: str | None = None
    params: Params | None = field(default=None, compare=False, repr=False)
    trips: int | None = field(default=None, compare=False)
    depth: int = field(default=0, compare=False)

    def __str__(self) -> str:
        origin = None if self.params is None else self.params.origin
        place = "" if origin is None else f" ({origin})"
        part = "" if origin is None or origin.part is None else f", {origin.part},"
        if self.taken in ("native", "replayed"):
            return f"{self.operator}{place}{part} stays torch's own: {self.reason}"
        return f"{self.operator}{place}{part} is a kernel"

    def of(self, params: Params, trips: int | None) -> LoopReport:
        """The report as that of a call, or of a loop inside of it."""
        if self.params is None:
            return replace(self, params=params, trips=trips)
        return replace(self, depth=self.depth + 1)

    def as_replayed(self) -> LoopReport:
        """The report of a loop in a graph that is replayed: NOTE [Replayed loops]."""
        return replace(self, taken="replayed") if self.taken == "native" else self


@dataclass(frozen=True)
class Plan:
    """A graph in which loops are kernels where they can be, and what became of each, in the order of the graph.
    ``kernels``: the loops that they are, by the names of their functions.
    """

    body: Subgraph
    loops: tuple[LoopReport, ...]
    kernels: Mapping[str, Form] = field(default_factory=dict)


@dataclass(frozen=True)
class Whole:
    """A graph that is one kernel, and what became of its loops."""

    library: Library
    loops: tuple[LoopReport, ...]


def failed(label: str, error: Exception) -> str:
    """Warn that a loop runs as torch's own, with what Inductor or the C++ compiler said: its errors, or its end."""
    lines = str(error).strip().splitlines()
    errors = [line for line in lines if "error:" in line]
    reason = "\n".join([type(error).__name__, *(errors[:_TOLD_LINES] or lines[-_TOLD_LINES:])])
    problem = f"its kernel could not be made, and torch's own loop runs in its place: {reason}"
    remedy = 'options={"loop_kernels": False} compiles without kernels of loops'
    warnings.warn(message(label, problem, remedy=remedy), RuntimeWarning, stacklevel=2)
    return reason
