"""Signals while a capture runs: Ctrl-C, an alarm.

A signal's exception may come between any two steps of Python. Inside a mode that C++ has called
(``__torch_dispatch__``) torch (2.13) may abort the process; where a mode or a transform is being left, it stays. So
meanwhile a signal is held back until the captured function calls torch next, or the capture ends. Python code of the
user's own is interrupted at once, and so is everything by a second signal of the kind.
"""

from __future__ import annotations

import contextlib
import inspect
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

__all__ = ["interrupts_held", "raise_held_interrupts"]

_LIBRARIES = frozenset({"torch", "functorch_hops", "contextlib", "weakref", "optree", "sympy"})
_MODES = frozenset({"__torch_dispatch__", "__torch_function__"})
_OF_FAULTS = {"SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTRAP", "SIGSYS"}
_SIGNALS: tuple[int, ...] = tuple(number for number in signal.Signals if number.name not in _OF_FAULTS)


class _Held:
    """``outer``: the handlers that were there before; ``came``: the signals since."""

    outer: dict[int, Callable[[int, FrameType | None], Any]]
    came: list[int]

    def __init__(self) -> None:
        self.outer, self.came = {}, []


_held = _Held()


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Around the outermost capture."""
    if threading.current_thread() is not threading.main_thread() or _held.outer:
        yield
        return
    try:
        for number in _SIGNALS:
            handler: Any = signal.getsignal(number)
            if callable(handler):  # one of Python, which may raise
                _held.outer[number] = handler
                signal.signal(number, _hold)
        yield
    finally:
        for number, outer in _held.outer.items():
            if signal.getsignal(number) is _hold:  # not one that the captured function set
                signal.signal(number, outer)
        try:
            raise_held_interrupts()
        finally:
            _held.outer.clear()


def raise_held_interrupts() -> None:
    """Where it does no harm: handle the signals that were held back."""
    if not _held.came or threading.current_thread() is not threading.main_thread():
        return
    number = _held.came.pop(0)
    try:
        _held.outer[number](number, inspect.currentframe())
    finally:
        raise_held_interrupts()


def _hold(number: int, frame: FrameType | None) -> None:
    is_again = number in _held.came
    _held.came.append(number)
    if is_again or not _is_amid_torch(frame):
        raise_held_interrupts()


def _is_amid_torch(frame: FrameType | None) -> bool:
    if frame is None or _is_of_library(frame):
        return True
    around: FrameType | None = frame
    while around is not None:
        if around.f_code.co_name in _MODES:
            return True
        around = around.f_back
    return False


def _is_of_library(frame: FrameType) -> bool:
    package = frame.f_globals.get("__name__", "").partition(".")[0]
    return package in _LIBRARIES or frame.f_code.co_filename.startswith("<eval_with_key>")
