"""Tensors of an accelerator, beside numbers on the CPU: no capture mixes the two where torch does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("on_accelerator.py")


@pytest.mark.parametrize("programs", ["quick", pytest.param("grid", marks=pytest.mark.slow)])
def test_captures_mix_no_devices(programs: str) -> None:
    run = subprocess.run([sys.executable, SCRIPT, programs], capture_output=True, text=True, cwd=SCRIPT.parent)
    assert run.returncode == 0, run.stderr
    *failures, count = run.stdout.splitlines()
    assert failures == []
    assert int(count.split()[0]) >= {"quick": 57, "grid": 180}[programs]
