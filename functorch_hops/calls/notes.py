"""Notes on exceptions of the user's own code: in what it was run, in which step, and what may be meant."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..errors import FunctorchHopsError, is_internal, is_own, user_place

__all__ = ["note_body", "note_called_back", "note_habits"]

_CALLS = {
    "cond": "true_fn(*operands) or false_fn(*operands)",
    "switch": "one of branches, with (*operands)",
    "while_loop": "cond_fn(carry) and body_fn(carry), where the carry is one argument, and may be a tuple",
    "fori_loop": "body_fn(i, carry)",
    "scan": "f(carry, x)",
    "sharded_scan": "f(carry, x)",
    "map": "f(x), where x is one argument, and is a tuple if xs is one",
    "associative_scan": "fn(left, right)",
    "pure_callback": "f with the arguments behind result_shape",
    "debug.callback": "func with the arguments behind it",
    "sharded_associative_scan": "fn(left, right)",
}
"""How operations call their bodies."""

_TENSORS = {
    "at": "copy, and write to the copy: y = x.clone(); y[i] = value",
    "astype": "write x.to(dtype)",
    "block_until_ready": "leave it out: on a CPU results are there when the call ends",
    "copy": "write x.clone()",
}
"""Attributes of arrays that tensors don't have, and what to write."""


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
        notes += _hints(operation, function, given) or _call_of(operation, error)
    _add(error, notes)


def note_called_back(error: Exception, operation: str, place: tuple[str, int] | None, **at: Any) -> None:
    """Note on an exception of Python that a graph calls: where in the user's code, and ``at`` which step and lane."""
    parts = [f"in {operation}", *(f"{name} {value}" for name, value in at.items() if value is not None)]
    notes = [", ".join([*parts, *([] if place is None else [f"called at {place[0]}:{place[1]}"])])]
    if isinstance(error, TypeError):
        notes += _call_of(operation, error)
    _add(error, notes)


def note_habits(error: Exception, function: Callable[..., Any] | None = None) -> None:
    """Note what to write where a call did not fit the parameters of ``function``, one of ours, or where a tensor has no
    such attribute, as arrays elsewhere have.
    """
    if isinstance(error, AttributeError) and isinstance(error.obj, Tensor) and error.name in _TENSORS:
        _add(error, [f"help: {_TENSORS[error.name]}"])
    is_mistake = isinstance(error, TypeError) and not isinstance(error, FunctorchHopsError)
    if function is not None and is_mistake and all(is_own(file, "calls") for file in _files(error)):
        parameters = [p.replace(annotation=p.empty) for p in inspect.signature(function).parameters.values()]
        _add(error, [f"help: the arguments are {function.__name__}{inspect.Signature(parameters)}"])


def _add(error: Exception, notes: list[str]) -> None:
    for note in notes:
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)


def _files(error: Exception) -> list[str]:
    """The files of the frames that an error has passed."""
    return [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]


def _call_of(operation: str, error: Exception) -> list[str]:
    """How the operation calls its body, if the body could not be called: no frame of the user's was entered."""
    if operation not in _CALLS or isinstance(error, AttributeError) or not all(map(is_internal, _files(error))):
        return []
    return [f"help: {operation} calls {_CALLS[operation]}"]


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
