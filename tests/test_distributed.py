"""Loops in models that are trained by two processes."""

import subprocess
import sys
from pathlib import Path

import pytest
from ddp_worker import WRAPPED


@pytest.mark.slow
def test_gradients_of_two_processes_are_those_of_the_joined_batch(tmp_path: Path) -> None:
    worker = str(Path(__file__).with_name("ddp_worker.py"))
    command = [sys.executable, "-W", "ignore", worker]
    started = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    try:
        printed = [process.communicate(timeout=240)[0].splitlines() for process in started]
    finally:
        for process in started:
            process.kill()
    assert printed == [[f"{name}: right" for name in WRAPPED]] * 2
