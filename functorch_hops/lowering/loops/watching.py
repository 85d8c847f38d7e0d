"""Who watches the steps of the loops that run on this thread (``fh.progress``).

NOTE [Watched steps] A loop says where it is to the watch of its thread, if there is one: loops that run as Python after
each step, kernels every 50 ms, when they look for signals, and when they end: of each loop that ended. A kernel learns
by a flag, found through this module once a library, whether anybody watches: that is a load in each call. Nothing is
compiled anew. What a watch raises stops a kernel of the main thread, as a signal does. On another thread nobody but the
kernel would learn of it, so it is raised where the watch ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Watch", "address", "report", "state", "watched", "watching"]


class Watch(Protocol):
    def begin(self, loop: object, length: int | None) -> None:
        """A loop begins, inside of those that have not ended."""

    def at(self, loop: object, step: int) -> None:
        """So many of its steps are done."""

    def end(self, loop: object) -> None: ...

    def kernel_at(self, levels: Sequence[tuple[int, int]], has_ended: bool) -> None:
        """Steps done and length (-1: unknown) of the loops of a kernel that run, from the outermost."""


@dataclass(frozen=True)
class _Both:
    """A watch and the one around it, which is told of the same loops."""

    outer: Watch
    inner: Watch

    def begin(self, loop: object, length: int | None) -> None:
        self.outer.begin(loop, length)
        self.inner.begin(loop, length)

    def at(self, loop: object, step: int) -> None:
        self.outer.at(loop, step)
        self.inner.at(loop, step)

    def end(self, loop: object) -> None:
        self.outer.end(loop)
        self.inner.end(loop)

    def kernel_at(self, levels: Sequence[tuple[int, int]], has_ended: bool) -> None:
        self.outer.kernel_at(levels, has_ended)
        self.inner.kernel_at(levels, has_ended)


class _State(threading.local):
    watch: Watch | None = None
    failed: BaseException | None = None
    """What the watch raised."""


state = _State()
_n_watches = ctypes.c_int64(0)
address = ctypes.addressof(_n_watches)
"""Of a number that is not 0 while anybody watches, for kernels."""
_lock = threading.Lock()


@contextlib.contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Tell the watch of the loops that run meanwhile, on this thread."""
    outer = state.watch
    state.watch = watch if outer is None else _Both(outer, watch)
    with _lock:
        _n_watches.value += 1
    try:
        yield
    finally:
        with _lock:
            _n_watches.value -= 1
        state.watch = outer
        failed, state.failed = state.failed, None
    if failed is not None:
        raise failed


def watched(steps: range) -> Iterable[int]:
    """The steps of a loop, told to the watch."""
    return steps if state.watch is None else _watched(steps, state.watch)


def _watched(steps: range, watch: Watch) -> Iterator[int]:
    watch.begin(steps, len(steps))
    for done, step in enumerate(steps, 1):
        yield step
        watch.at(steps, done)
    watch.end(steps)


def report(levels: Sequence[tuple[int, int]], has_ended: bool) -> None:
    """Called by kernels."""
    watch = state.watch
    if watch is None:
        return
    if threading.current_thread() is threading.main_thread():
        watch.kernel_at(levels, has_ended)  # catching nothing: the handler of a signal may raise in it
        return
    try:
        watch.kernel_at(levels, has_ended)
    except BaseException as error:  # noqa: BLE001 - whatever it raises
        state.watch, state.failed = None, error
