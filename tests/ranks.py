"""Processes that compute together."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["run_ranks"]


def run_ranks(worker: str, size: int, store: Path, names: Sequence[str]) -> None:
    """So many processes of a worker, a file of this folder; the names are what each of them has to call right."""
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name(worker))]
    started = [
        subprocess.Popen([*command, str(rank), str(size), str(store), *names], stdout=subprocess.PIPE, text=True)
        for rank in range(size)
    ]
    try:
        printed = [process.communicate(timeout=280)[0].splitlines() for process in started]
    finally:
        for process in started:
            process.kill()
    assert printed == [[f"{name}: right" for name in names]] * size
