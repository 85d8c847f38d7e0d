"""Time several functions against one another on a machine that others use as well.

The contenders take turns in many short repetitions, so that a busy moment hits all of them, and what is
counted is the CPU time of this process, which does not run while another one has the core. The best time
of each is the one least disturbed, but for a tenth that is lower: on virtual machines the clock stands still
now and then. The median of the ratios within a round tells whether the ratio of the best times was luck. Use
one thread.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

__all__ = ["Timing", "interleaved", "print_table"]

# Seconds: long against the clock's resolution, short against a scheduler's time slice.
SHORTEST_REPETITION = 1e-3


class Timing(NamedTuple):
    """Seconds per call; the ratio to the first contender, of the best times and median of all rounds."""

    best: float
    ratio: float
    median_ratio: float

    @property
    def micros(self) -> float:
        return self.best * 1e6

    @property
    def millis(self) -> float:
        return self.best * 1e3


def interleaved(*contenders: Callable[[], object], seconds: float = 1.0, least: int = 5) -> list[Timing]:
    """Alternate the contenders for so many seconds; the first is the reference. At least so many rounds."""
    calls = [_calls_per_repetition(f) for f in contenders]
    rounds: list[list[float]] = []
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        while len(rounds) < least or time.perf_counter() < end:
            rounds.append([_repetition(f, n) for f, n in zip(contenders, calls)])
    finally:
        gc.enable()
    best = [sorted(column)[len(column) // 10] for column in zip(*rounds)]
    medians = [statistics.median(t[i] / t[0] for t in rounds) for i in range(len(contenders))]
    return [Timing(b, b / best[0], m) for b, m in zip(best, medians)]


def _calls_per_repetition(f: Callable[[], object]) -> int:
    """The first calls warm up; the median of them says how many fill the shortest repetition."""
    usual = statistics.median(_repetition(f, 1) for _ in range(5))
    return max(1, round(SHORTEST_REPETITION / usual))


def _repetition(f: Callable[[], object], calls: int) -> float:
    start = time.process_time()
    for _ in range(calls):
        f()
    return (time.process_time() - start) / calls


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The first column flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    print(f"\n{title}")
    for row in (header, ["-" * w for w in widths], *rows):
        cells = (f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths)))
        print("  ".join(cells).rstrip(), flush=True)
