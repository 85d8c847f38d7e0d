"""What every test relies on: one thread, fixed seeds, deterministic examples."""

import os

# Before torch starts its threads: the tests run in several processes, and small loops gain nothing from more.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import gc
import importlib.util
import re
import zlib
from collections import Counter
from typing import Any

import hypothesis
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anybody imports Triton

# Compilation takes seconds, so no deadline; the same examples in every run, so that a failure is everybody's.
hypothesis.settings.register_profile(
    "deterministic",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=25,
    # Shrinking repeats captures for minutes: the thorough profile does it.
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.data_too_large,
        hypothesis.HealthCheck.function_scoped_fixture,
    ],
)
hypothesis.settings.register_profile(
    "thorough",
    hypothesis.settings.get_profile("deterministic"),
    derandomize=False,
    max_examples=500,
    phases=list(hypothesis.Phase),
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "deterministic"))


# Helpers that assert: their failures show the values too.
pytest.register_assert_rewrite("environments", "leftovers", "modes", "processes", "trees")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-case", action="store_true", help="run all cases of slow tests, not a quarter of them")
    parser.addoption("--device", help="the default device of tensors: cuda runs the suite on a GPU")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    if config.getoption("device"):
        torch.set_default_device(config.getoption("device"))
    if not torch.cuda.is_available():
        # torch 2.11 for CUDA gives what then guards devices to the first thread that makes fake tensors; when that
        # ends, the next one to make some reads freed memory.
        torch._C._ensureCUDADeviceGuardSet()
    # Captures make many objects and few cycles. Traces and compiled code stay: hardly any cycle is found by full
    # collections, which take seconds each in the end. Dynamo asks for one of two generations after each compilation.
    gc.set_threshold(50_000, 20, 1_000)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests on a GPU run where one is; those that run Triton's kernels without one, where Triton is and no GPU."""
    has_gpu = torch.cuda.is_available()
    can_run = {"cuda": has_gpu, "triton": not has_gpu and importlib.util.find_spec("triton") is not None}
    can_run["onnx"] = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript"))
    kept, left = list[pytest.Item](), list[pytest.Item]()
    for item in items:
        (kept if all(can_run.get(mark.name, True) for mark in item.iter_markers()) else left).append(item)
    if not config.getoption("every_case"):
        kept = _thinned(kept, left)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


def _thinned(items: list[pytest.Item], left: list[pytest.Item]) -> list[pytest.Item]:
    """Of a slow test with many cases a quarter, the same in every run: the others go to ``left``."""
    slow = [item for item in items if item.get_closest_marker("slow")]
    cases = Counter(item.nodeid.split("[")[0] for item in slow)
    many = {item for item in slow if cases[item.nodeid.split("[")[0]] > 4}
    out = {item for item in many if zlib.crc32(item.nodeid.encode()) % 4}
    left += out
    return [item for item in items if item not in out]


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is loaded now stays: to look through it for cycles, again and again, takes a sixth of all the time."""
    gc.collect()
    gc.freeze()


_CELL = re.compile(r"test_grid\.py::test_cell\[.*-(?P<mode>[^-]+)\]")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many cells of the matrix held, in each mode."""
    held, total = Counter[str](), Counter[str]()
    for outcome, reports in terminalreporter.stats.items():
        for report in reports:
            cell = _CELL.search(getattr(report, "nodeid", ""))
            if cell and (getattr(report, "when", None) == "call" or outcome in ("failed", "error")):
                total[cell["mode"]] += 1
                held[cell["mode"]] += outcome == "passed"
    if total:
        modes = ", ".join(f"{held[mode]} of {n} {mode}" for mode, n in sorted(total.items()))
        terminalreporter.write_line(f"matrix of operations and contexts: {modes}")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.default_generator.manual_seed(0)  # torch.manual_seed prints the stack, for each kind of device
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)


@pytest.fixture
def no_graph_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is compiled is one kernel."""

    def compile_graph(*args: Any) -> Any:
        raise AssertionError("Inductor was asked for a graph")

    monkeypatch.setattr("functorch_hops.lowering.inductor.compile_graph", compile_graph)
