"""Exceptions that leave a public call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .notes import note_habits
from .tracebacks import shorten

__all__ = ["prepare"]


def prepare(error: Exception, function: Callable[..., Any] | None = None) -> None:
    """To be called where an exception is caught to be raised on to the user; ``function``: the one that was called."""
    note_habits(error, function)
    shorten(error)
