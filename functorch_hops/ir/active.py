"""What records the operators that run on this thread."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

__all__ = ["Recorder", "state"]


class Recorder(Protocol):
    """What a graph knows of the capture that runs (``trace.capture.Capture``)."""

    def inline(self, body: Any, operands: Sequence[Tensor]) -> list[Tensor] | None:
        """The outputs of a graph that was copied into the capture, or None where it has to run."""
        ...


class _State(threading.local):
    capture: Recorder | None = None
    stops_at_nan = False
    """Whether graphs run node by node, see ``first_nan``."""


state = _State()
