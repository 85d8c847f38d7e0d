"""Captures and compilations, told to those who listen: ``fh.log_captures``, ``fh.assert_max_captures``, the logger
``functorch_hops`` at level INFO (``TORCH_LOGS="functorch_hops"``), and torch's structured trace (``TORCH_TRACE``). At
level DEBUG (``TORCH_LOGS="+functorch_hops"``) the logger says what became of each loop, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .. import _torch
from ..errors import user_place

__all__ = ["CaptureEvent", "announce", "caller", "is_heard", "listening", "tell_loops", "timed"]


@dataclass(frozen=True)
class CaptureEvent:
    """A capture, or a compilation of what was captured.

    Attributes:
        what: "capture" or "compile".
        name: of the function that was captured; of an operation such as ``scan`` that captured its bodies by itself.
        place: where it is defined, as ``file:line``; of an operation where it was called.
        seconds: how long it took.
        reasons: why it was captured again: what changed since the time before. Empty at the first time.

    >>> import torch, functorch_hops as fh
    >>> with fh.log_captures(quiet=True) as events:
    ...     _ = fh.jit(torch.sin, backend="eager")(torch.ones(2))
    >>> [(event.what, event.name) for event in events]
    [('capture', 'sin')]
    """

    what: Literal["capture", "compile"]
    name: str
    place: str | None
    seconds: float
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        did = "captured" if self.what == "capture" else "compiled"
        place = f" ({self.place})" if self.place else ""
        why = f", again because {'; '.join(self.reasons)}" if self.reasons else ""
        return f"{did} {self.name}{place} in {self.seconds:.2f} s{why}"


_Listener = Callable[[CaptureEvent, Any], None]
_listeners: list[_Listener] = []
_log = logging.getLogger("functorch_hops")


def is_heard() -> bool:
    return bool(_listeners) or _log.isEnabledFor(logging.INFO) or _torch.is_traced()


def caller() -> str | None:
    """The user's line that called the library, if somebody listens."""
    place = user_place() if is_heard() else None
    return None if place is None else f"{place[0]}:{place[1]}"


def announce(event: CaptureEvent, subject: Any = None) -> None:
    """``subject``: the jitted function that was captured, if it is one."""
    for listener in list(_listeners):
        listener(event, subject)
    _log.info("%s", event)
    _torch.add_to_trace(f"functorch_hops_{event.what}", lambda: json.dumps(dataclasses.asdict(event)))


def tell_loops(reports: Callable[[], Iterable[object]]) -> None:
    """What became of the loops of a graph that is compiled. To know that may take a while."""
    if _log.isEnabledFor(logging.DEBUG):
        for report in reports():
            _log.debug("%s", report)


@contextlib.contextmanager
def listening(listener: _Listener) -> Iterator[None]:
    """Tell ``listener`` what is captured and compiled meanwhile, on all threads."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextlib.contextmanager
def timed(
    what: Literal["capture", "compile"],
    name: str,
    place: str | None,
    reasons: Sequence[str] = (),
    subject: Any = None,
) -> Iterator[None]:
    """Tell how long this takes, if it succeeds and somebody listens."""
    if not is_heard():
        yield
        return
    start = time.perf_counter()
    yield
    announce(CaptureEvent(what, name, place, time.perf_counter() - start, tuple(reasons)), subject)
