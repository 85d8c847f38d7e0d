"""A line on the terminal while a compiler takes long: ``compiling f ... 12 s``."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

__all__ = ["told_to_wait"]

PATIENCE = 2.0
"""Seconds after which the line appears."""
_PERIOD = 1.0


@contextlib.contextmanager
def told_to_wait(name: str) -> Iterator[None]:
    """Say on stderr what one waits for, if it is a terminal; the line is gone in the end."""
    stream = sys.stderr
    if stream is None or not stream.isatty():
        yield
        return
    done, start = threading.Event(), time.perf_counter()
    longest = 0

    def tell() -> None:
        nonlocal longest
        left = PATIENCE
        while not done.wait(left):
            line = f"compiling {name} ... {time.perf_counter() - start:.0f} s"
            stream.write(f"\r{line}")
            stream.flush()
            longest, left = max(longest, len(line)), _PERIOD

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if longest:
            stream.write(f"\r{' ' * longest}\r")
            stream.flush()
