"""What is captured and compiled, in the logs that torch's environment variables ask for."""

import json
import logging
import os
import subprocess
import sys

import torch
from torch._logging._internal import LazyTraceHandler, trace_log

import functorch_hops as fh
from functorch_hops.calls.listening import is_heard

PROGRAM = """
import torch, functorch_hops as fh

def total(xs):
    return fh.scan(lambda c, x: (c + x, None), xs[0], xs)[0]

jitted = fh.jit(total, backend="eager")
jitted(torch.ones(3)), jitted(torch.ones(4))
torch.compile(lambda x: fh.map(torch.sin, x), backend="eager", fullgraph=True)(torch.ones(3))
"""


def run(**environment: str) -> str:
    given = {name: value for name, value in os.environ.items() if name not in ("TORCH_LOGS", "TORCH_TRACE")}
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(command, env=given | environment, capture_output=True, text=True, check=True).stderr


def test_what_torchs_variables_ask_for(tmp_path) -> None:
    printed = run(TORCH_LOGS="functorch_hops", TORCH_TRACE=str(tmp_path))
    first, again = [line for line in printed.splitlines() if "captured total" in line]
    assert "again" not in first
    assert "captured map (<string>:9) in" in printed  # by torch.compile
    assert "again because arguments changed from (float32[3]@cpu) to (float32[4]@cpu)" in again
    (trace,) = tmp_path.iterdir()
    entries = trace.read_text().splitlines()
    places = [i for i, line in enumerate(entries) if '"name": "functorch_hops_capture"' in line]
    events = [json.loads(entries[i + 1].strip()) for i in places]
    assert [event["name"] for event in events] == ["total", "total", "map"]
    assert events[1]["reasons"] == ["arguments changed from (float32[3]@cpu) to (float32[4]@cpu)"]


def test_a_plus_asks_for_what_became_of_loops(caplog) -> None:
    total = lambda xs: fh.scan(lambda c, x: (c + x, None), xs[0], xs)[0]
    line = f"scan ({__file__}:{total.__code__.co_firstlineno}) is a kernel"
    for level, told in ((logging.INFO, False), (logging.DEBUG, True)):
        torch.compiler.reset()
        with caplog.at_level(level, logger="functorch_hops"):
            fh.jit(total)(torch.ones(3 + told))
            torch.compile(total, fullgraph=True)(torch.ones(3 + told))
        messages = [record.getMessage() for record in caplog.records]
        assert (messages.count(line) == 2) is told
        assert any(message.startswith("compiled <lambda>") for message in messages)
        caplog.clear()


def test_without_them_nobody_listens(monkeypatch) -> None:
    monkeypatch.setattr(trace_log, "handlers", [LazyTraceHandler(None)])
    assert not is_heard()
    monkeypatch.setattr(trace_log, "handlers", [LazyTraceHandler("somewhere")])
    assert is_heard()
