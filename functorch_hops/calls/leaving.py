"""Exceptions that leave a public call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .arguments import P, R
from .notes import note_habits
from .tracebacks import shorten

__all__ = ["leaving", "prepare"]


def prepare(error: Exception, function: Callable[..., Any] | None = None) -> None:
    """To be called where an exception is caught to be raised on to the user; ``function``: the one that was called."""
    note_habits(error, function)
    shorten(error)


def leaving(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, whose exceptions go on to the user."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            prepare(error)
            raise

    return call
