"""What a compiler has to know of the loops in a graph."""

from __future__ import annotations

import enum

from ..ir.subgraph import Params

__all__ = ["NativeLoop", "no_native_loop"]


class NativeLoop(enum.Enum):
    """A loop among torch's own operators."""

    PLAIN = "returns its final carries, and stacks what is no carry"
    STACKED_CARRIES = "stacks all its carries"


def no_native_loop(params: Params) -> None:
    """Of an operator that is lowered without a loop."""
