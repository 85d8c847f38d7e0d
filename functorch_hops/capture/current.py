"""The capture that runs on this thread."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .speculate import Capture

__all__ = ["current_capture", "state"]


class _State(threading.local):
    capture: Capture | None = None


state = _State()


def current_capture() -> Capture | None:
    """The innermost capture that runs on this thread."""
    return state.capture
