"""The exceptions of functorch_hops, and how their messages are built.

Every error derives from ``FunctorchHopsError`` and from the built-in exception that a user would catch. A
message reads, top to bottom: operation and problem, the user's parameter and the place in its tree, what was
expected, what came, what to do, and the user's own source line.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FrameType
from typing import Any, NamedTuple

import optree
import torch

__all__ = [
    "AnomalyError",
    "ArgumentTypeError",
    "ArgumentValueError",
    "CaptureError",
    "CheckError",
    "DataDependentError",
    "ErrorContext",
    "FunctorchHopsError",
    "InfiniteLoopError",
    "InputMutationError",
    "LeakedTensorError",
    "MetadataMismatchError",
    "MissingPackageError",
    "TooManyCapturesError",
    "TreeMismatchError",
    "is_internal",
    "is_own",
    "message",
    "traced_from",
    "user_frame",
    "user_place",
    "warn",
]


class FunctorchHopsError(Exception):
    """The root of all errors of this library."""


class TreeMismatchError(FunctorchHopsError, TypeError):
    """Two trees that must agree (of carries, of branches) differ."""


class MetadataMismatchError(FunctorchHopsError, TypeError):
    """Two leaves that must agree differ in shape, dtype or device."""


class ArgumentTypeError(FunctorchHopsError, TypeError):
    """An argument has the wrong type."""


class ArgumentValueError(FunctorchHopsError, ValueError):
    """An argument has the right type and a value that can't be used."""


class CaptureError(FunctorchHopsError, RuntimeError):
    """A function can't be captured as a graph."""


class DataDependentError(CaptureError, TypeError):
    """Python asked for the value of a tensor which is only known when the captured graph runs."""


class InputMutationError(FunctorchHopsError, RuntimeError):
    """A captured function mutates an input or a closed-over tensor."""


class LeakedTensorError(FunctorchHopsError, RuntimeError):
    """A tensor of a capture was used after that capture had ended."""


class InfiniteLoopError(FunctorchHopsError, RuntimeError):
    """The condition of a captured loop is constantly true, and nothing else bounds the loop."""


class TooManyCapturesError(FunctorchHopsError, AssertionError):
    """A jitted function was captured more often than ``assert_max_captures`` allows."""


class CheckError(FunctorchHopsError, AssertionError):
    """A condition of ``debug.check`` does not hold. ``iteration``: of the loop around it, counted from 0, a tuple in
    nested loops; ``lane``: of the vmap around it; None outside.
    """

    def __init__(
        self,
        text: str,
        iteration: int | tuple[int, ...] | None = None,
        lane: int | tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(text)
        self.iteration, self.lane = iteration, lane


class MissingPackageError(FunctorchHopsError, ImportError):
    """A package that a tool needs is not installed."""


class AnomalyError(FunctorchHopsError, RuntimeError):
    """In ``torch.autograd.detect_anomaly()`` a backward pass returned NaN. ``iteration``: the steps of the loops that
    it was made in, counted from 0 as the forward pass goes, from the outermost; empty outside of loops.
    """

    def __init__(self, text: str, iteration: tuple[int, ...] = ()) -> None:
        super().__init__(text)
        self.iteration = iteration


class ErrorContext(NamedTuple):
    """Whose function is at fault: the public operation that the user called, and the user's name for the function.

    Loops are built on one another (a ``map`` is a scan), so the one that was called hands its names down, and what is
    refused below, plain or captured, is refused in its name.
    """

    operation: str
    parameter: str
    output: str = "y"
    """What the operation's documentation calls the result that is stacked."""


def message(
    operation: str,
    problem: str,
    *,
    remedy: str,
    parameter: str | None = None,
    path: str | None = None,
    expected: object = None,
    got: object = None,
    cause: BaseException | None = None,
    at: tuple[str, int] | None = None,
) -> str:
    """Build the text of an error.

    Arguments:
        operation: name of the public function that complains, such as ``"scan"``.
        problem: what is wrong, in one sentence without a full stop.
        remedy: what to revise, as an imperative sentence.
        parameter: the user's name for the argument, such as ``"f"``.
        path: the place in that argument's tree, as ``pytree.leaf_paths`` prints it.
        expected: what would have been right.
        got: what came instead.
        cause: the error that this one stands for: the user's line is where that one was raised.
        at: file and line of the user's code, where it is not on the stack.

    >>> print(message("scan", "the lengths differ", path="xs['h']", expected=3, got=4, remedy="pad the shorter one"))
    ... # doctest: +ELLIPSIS
    scan: the lengths differ
      where: xs['h']
      expected: 3
      got: 4
      help: pad the shorter one
      at ...
    """
    lines = [f"{operation}: {problem}"]
    place = ", ".join(part for part in (parameter, path) if part)
    rows = (("where", place or None), ("expected", expected), ("got", got), ("help", remedy))
    lines += [f"  {label}: {value}" for label, value in rows if value is not None]
    # Dynamo can't look at frames, and names the user's line by itself.
    frame = None if torch.compiler.is_dynamo_compiling() else _frame_at(at) or user_frame(cause)
    if frame is not None:
        line = f": {frame.line}" if frame.line else ""
        lines.append(f"  at {frame.filename}:{frame.lineno}{line}")
    return "\n".join(lines)


def _frame_at(place: tuple[str, int] | None) -> traceback.FrameSummary | None:
    return None if place is None else traceback.FrameSummary(*place, "")


def warn(text: str, *, once: bool = False) -> None:
    """A warning at the user's line, however deep the call came from; `once`: not again at that line."""
    frame = user_frame()
    if frame is None or frame.lineno is None:
        warnings.warn(text, RuntimeWarning, stacklevel=3)
    else:
        registry = _warned if once else None
        warnings.warn_explicit(text, RuntimeWarning, frame.filename, frame.lineno, registry=registry)


_warned: dict[Any, Any] = {}


class _Traced(threading.local):
    stack: Callable[[], Iterable[traceback.FrameSummary]] | None = None


_traced = _Traced()


@contextlib.contextmanager
def traced_from(stack: Callable[[], Iterable[traceback.FrameSummary]]) -> Iterator[None]:
    """While another tracer reads the user's code instead of running it; ``stack()``: where it reads, innermost last."""
    outer, _traced.stack = _traced.stack, stack
    try:
        yield
    finally:
        _traced.stack = outer


def user_frame(error: BaseException | None = None) -> traceback.FrameSummary | None:
    """The innermost frame that is the user's code, or None if there is none: where ``error`` passed, else on the stack.

    Called when an error is raised and never before: it walks the whole stack and reads a source file.
    """
    internal = _internal_paths()
    if _traced.stack is not None:
        frames = [frame for frame in _traced.stack() if not frame.filename.startswith(internal)]
        return frames[-1] if frames else None
    for code, line in (*_frames_of(error), *_frames_of_stack()):
        if not code.co_filename.startswith(internal):
            return traceback.FrameSummary(code.co_filename, line, code.co_name)
    return None


def user_place(frame: FrameType | None = None, *, within: CodeType | None = None) -> tuple[str, int, str] | None:
    """File, line and function of the innermost frame that is the user's code, from ``frame`` outwards, and inside of
    any that runs ``within``. Reads no source file.
    """
    if _traced.stack is not None:
        traced = user_frame()
        return None if traced is None else (traced.filename, traced.lineno or 0, traced.name)
    internal = _internal_paths()
    for code, line in _frames_of_stack(frame):
        if code is within:
            return None
        if not code.co_filename.startswith(internal):
            return code.co_filename, line, code.co_name
    return None


def _frames_of(error: BaseException | None) -> list[tuple[CodeType, int]]:
    """The frames that an error has passed, innermost first."""
    frames = traceback.walk_tb(error.__traceback__) if error is not None else ()
    return [(frame.f_code, line) for frame, line in frames][::-1]


def _frames_of_stack(frame: FrameType | None = None) -> Iterator[tuple[CodeType, int]]:
    return ((frame.f_code, line) for frame, line in traceback.walk_stack(frame or sys._getframe(1)))


def is_internal(file: str) -> bool:
    """Whether code of this file is not the user's."""
    return file.startswith(_internal_paths())


def is_own(file: str, room: str = "") -> bool:
    """Whether code of this file is this library's, or that of one of its rooms."""
    return file.startswith(os.path.join(os.path.dirname(__file__), room, ""))


def _internal_paths() -> tuple[str, ...]:
    """Beginnings of the file names of code that is not the user's."""
    packages = [optree.__file__, torch.__file__, __file__]
    numpy = sys.modules.get("numpy")
    if numpy is not None and numpy.__file__ is not None:
        packages.append(numpy.__file__)
    folders = tuple(os.path.dirname(file) + os.sep for file in packages)
    # Code that FX generates, and code of the interpreter itself, has no file.
    files = (contextlib.__file__, copy.__file__, dataclasses.__file__, functools.__file__)
    return (*folders, *files, "<eval_with_key>", "<frozen ")
