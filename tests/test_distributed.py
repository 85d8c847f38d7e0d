"""Loops in models that are trained by two processes, and over DTensors."""

from pathlib import Path

import pytest
from ddp_worker import WRAPPED
from ranks import run_ranks


@pytest.mark.slow
def test_gradients_of_two_processes_are_those_of_the_joined_batch(tmp_path: Path) -> None:
    run_ranks("ddp_worker.py", 2, tmp_path / "store", [*WRAPPED])


@pytest.mark.slow
def test_fully_sharded_modules_and_distributed_tensors(tmp_path: Path) -> None:
    run_ranks("fsdp_worker.py", 2, tmp_path / "store", ["orders", "dtensors"])
