"""Ctrl-C while a capture runs.

A signal's exception may come between any two steps of Python. Inside a mode that C++ has called
(``__torch_dispatch__``) torch (2.13) may abort the process; where a mode or a transform is being left, it stays. So
meanwhile Ctrl-C is held back until the captured function calls torch next, or the capture ends. Python code of the
user's own is interrupted at once, and so is everything by a second Ctrl-C.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

__all__ = ["interrupts_held", "raise_held_interrupt"]

_LIBRARIES = frozenset({"torch", "functorch_hops", "contextlib", "weakref", "optree", "sympy"})
_MODES = frozenset({"__torch_dispatch__", "__torch_function__"})


class _Held:
    """``outer``: the handler that was there before; ``came``: how often Ctrl-C came since."""

    outer: Callable[[int, FrameType | None], Any] | None = None
    came = 0


_held = _Held()


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Around the outermost capture."""
    outer: Any = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not callable(outer) or outer is _hold:
        yield
        return
    try:
        _held.came, _held.outer = 0, outer
        signal.signal(signal.SIGINT, _hold)
        yield
    finally:
        signal.signal(signal.SIGINT, outer)
        raise_held_interrupt()


def raise_held_interrupt() -> None:
    """Where it does no harm: handle the interrupt that was held back."""
    if _held.came and threading.current_thread() is threading.main_thread():
        _held.came = 0
        assert _held.outer is not None
        _held.outer(signal.SIGINT, None)


def _hold(number: int, frame: FrameType | None) -> None:
    _held.came += 1
    if _held.came > 1 or not _is_amid_torch(frame):
        raise_held_interrupt()


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
