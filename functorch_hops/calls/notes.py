"""Notes on exceptions of the user's own code in a body: in what it was run, in which step, and what may be meant."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

from ..errors import FunctorchHopsError, user_place

__all__ = ["note_body"]


def note_body(
    error: Exception,
    operation: str,
    function: Callable[..., Any],
    given: tuple[Any, ...],
    *,
    step: int | None = None,
) -> None:
    """Note on an exception of ``function(*given)`` that it was raised in an operation; ours say so themselves.

    ``step``: of a loop that runs as Python. The same exception may pass several operations, and gets a note of each.
    """
    if isinstance(error, FunctorchHopsError):
        return
    place = user_place(sys._getframe(1))
    what = f"in {operation}" if step is None else f"in step {step} of {operation}"
    notes = [what if place is None else f"{what}, called at {place[0]}:{place[1]}"]
    if isinstance(error, (TypeError, AttributeError)):
        notes += _hints(operation, function, given)
    for note in notes:
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)


def _hints(operation: str, function: Callable[..., Any], given: tuple[Any, ...]) -> list[str]:
    """What to do, if the function would take the parts of a tuple that came as one argument."""
    if len(given) != 1 or type(given[0]) not in (tuple, list) or _takes(function, given[0]) is False:
        return []
    if operation in ("cond", "switch"):
        return [f"help: fh.{operation} takes operands one by one, not in a tuple as torch.cond does: pass *operands"]
    return [] if _takes(function, given) else [f"help: {operation} hands the carry on as one argument, a tuple"]


def _takes(function: Callable[..., Any], arguments: Any) -> bool | None:
    """None of a function that has no signature, such as torch's own."""
    try:
        inspect.signature(function).bind(*arguments)
    except ValueError:
        return None
    except TypeError:
        return False
    return True
