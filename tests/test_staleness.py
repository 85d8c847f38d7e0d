"""Whatever a jitted function reads: is a change of it noticed, or was it said at capture that it would not be?

A fixed part of the random programs of ``staleness``, which ``python tests/staleness --seeds 0:1000`` runs by the
thousand; the warnings of what runs once; and ordinary models, which must not warn.
"""

from __future__ import annotations

import collections
import contextvars
import ctypes
import dataclasses
import decimal
import enum
import functools
import logging
import math
import multiprocessing
import os
import pathlib
import random
import re
import sys
import threading
import time
import types
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from staleness.checking import failure_of
from staleness.generator import generate
from torch import nn

import functorch_hops as fh


def jit(f: Any) -> Any:
    return fh.jit(f, backend="eager")


@pytest.mark.parametrize("first", range(0, 60, 6))
def test_random_programs(first: int) -> None:
    for program in map(generate, range(first, first + 6)):
        failure = failure_of(program)
        assert failure is None, f"{failure}\n{program}"


def test_the_same_seed_gives_the_same_program() -> None:
    assert generate(7) == generate(7)


# Settings of the process.


@pytest.mark.parametrize(
    ("switch", "back"),
    [
        (lambda: torch.use_deterministic_algorithms(True), lambda: torch.use_deterministic_algorithms(False)),
        (lambda: torch.set_float32_matmul_precision("medium"), lambda: torch.set_float32_matmul_precision("highest")),
        (
            lambda: torch.set_autocast_dtype("cpu", torch.float16),
            lambda: torch.set_autocast_dtype("cpu", torch.bfloat16),
        ),
        (lambda: torch.autograd.set_detect_anomaly(True), lambda: torch.autograd.set_detect_anomaly(False)),
        (lambda: torch.backends.mha.set_fastpath_enabled(False), lambda: torch.backends.mha.set_fastpath_enabled(True)),
    ],
)
def test_a_setting_of_torch_belongs_to_the_signature(switch: Any, back: Any) -> None:
    back()
    g, x = jit(lambda x: x + 1), torch.ones(2)
    g(x)
    try:
        switch()
        g(x)
    finally:
        back()
    g(x)
    assert g.cache_info()[:2] == (1, 2)


def test_what_aot_autograd_sets_while_it_traces_is_no_setting() -> None:
    """Anomaly mode that looks for no NaN, for all threads: here in the middle of another one's capture."""
    g, x = jit(lambda x: x + 1 if torch.set_anomaly_enabled(True, False) is None else x), torch.ones(2)
    try:
        g(x)
    finally:
        torch.set_anomaly_enabled(False)
    g(x)
    assert g.cache_info()[:2] == (1, 1)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_a_capture_leaves_anomaly_mode_a_setting() -> None:
    """While it runs, backward passes look for no NaN."""
    inner = jit(lambda x: x + 1)
    outer, x = jit(lambda x: inner(x) * 2), torch.ones(2)
    with torch.autograd.detect_anomaly():
        outer(x), inner(x), outer(x), inner(x)
    assert inner.cache_info()[:2] == (2, 1)

    def switched(x):
        torch.autograd.set_detect_anomaly(False)
        return x

    with torch.autograd.detect_anomaly(), pytest.raises(fh.CaptureError, match="leaves a setting changed"):
        jit(switched)(x)


def test_compiled_code_belongs_to_the_settings_that_made_it() -> None:
    """The graph is the same, so only the backend sees a difference."""
    made = []

    def backend(module: Any, inputs: Any) -> Any:
        made.append(torch.are_deterministic_algorithms_enabled())
        return module

    g, x = fh.jit(lambda x: x + 1, backend=backend), torch.ones(2)
    g(x)
    try:
        torch.use_deterministic_algorithms(True)
        g(x)
    finally:
        torch.use_deterministic_algorithms(False)
    g(x)
    assert made == [False, True]


def test_hooks_of_all_modules_are_noticed() -> None:
    module, x = nn.Identity(), torch.ones(2)
    g = jit(lambda x: module(x))
    torch.testing.assert_close(g(x), x)
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: out * 3)
    try:
        torch.testing.assert_close(g(x), 3 * x)
    finally:
        handle.remove()
    torch.testing.assert_close(g(x), x)


def test_metadata_of_closed_over_tensors_is_noticed() -> None:
    w = torch.ones(2)

    def f(x: Any) -> Any:
        return x * (2 if w.requires_grad else 3) * (5 if w.dtype == torch.float32 else 7) + w.shape[0]

    g, x = jit(f), torch.ones(2)
    for change in (
        lambda: None,
        lambda: w.requires_grad_(),
        lambda: w.requires_grad_(False),
        lambda: w.resize_(3),
        lambda: setattr(w, "data", torch.ones(3, dtype=torch.float64)),
    ):
        change()
        torch.testing.assert_close(g(x), f(x))


def test_order_and_types_of_keys_belong_to_the_signature() -> None:
    def f(x: Any, table: dict[Any, Any]) -> Any:
        key = next(iter(table))
        return x * table[key] if type(key) is bool else x - table[key]

    g, x, y = jit(f), torch.ones(2), torch.full((2,), 5.0)
    for table in ({1: x, 2: y}, {2: y, 1: x}, {True: y, 2: x}, collections.OrderedDict({1: y, 2: x})):
        torch.testing.assert_close(g(x, table), f(x, table))


# What runs once is said once.

LOG: list[int] = []
STATE = {"calls": 0}
COUNT = 0
NUMPY_GENERATOR = np.random.default_rng(0)
GENERATOR = random.Random(0)


@functools.lru_cache
def power_of_two(n: int) -> int:
    return int(2**n)


NUMBERS = iter(range(100))
LOCK = threading.Lock()
HERE = pathlib.Path(__file__)
VARIABLE: contextvars.ContextVar[int] = contextvars.ContextVar("VARIABLE", default=0)


class Counting(nn.Module):
    calls = 0

    def forward(self, x: Any) -> Any:
        self.calls += 1
        return x


def counts_globally(x: Any) -> Any:
    global COUNT
    COUNT += 1
    return x


def appends(x: Any) -> Any:
    LOG.append(1)
    return x


def writes_to_a_dict(x: Any) -> Any:
    STATE["calls"] += 1
    return x


def counts_in_a_closure() -> Any:
    calls = 0

    def f(x: Any) -> Any:
        nonlocal calls
        calls += 1
        return x

    return f


def sets_by_name(x: Any) -> Any:
    setattr(counts_globally, "note", len(LOG) + random.randrange(9))  # noqa: B010
    return x


@pytest.mark.parametrize(
    ("f", "what"),
    [
        (appends, "changes global 'LOG'"),
        (writes_to_a_dict, "changes global 'STATE"),
        (counts_globally, "changes global 'COUNT'"),
        (counts_in_a_closure(), "changes closure 'calls'"),
        (Counting(), "changes 'self.calls'"),
        (sets_by_name, "changes global 'counts_globally.note'"),
        (lambda x: x * random.random(), "calls random.random"),
        (lambda x: x * random.choice([1, 2]), "calls random.Random.choice"),
        (lambda x: x * GENERATOR.random(), "calls random.random"),
        (lambda x: x * power_of_two(3) * power_of_two.cache_info().currsize, "calls functools.cache_info"),
        (lambda x: x * torch.is_inference_mode_enabled(), "calls torch.is_inference_mode_enabled"),
        (lambda x: x * torch.is_warn_always_enabled(), "calls torch.is_warn_always_enabled"),
        (lambda x: x * torch.is_anomaly_check_nan_enabled(), "calls torch.is_anomaly_check_nan_enabled"),
        (lambda x: x * float(np.random.rand()), "changes module 'numpy.random.rand'"),  # noqa: NPY002
        (lambda x: x * float(NUMPY_GENERATOR.normal()), "changes global 'NUMPY_GENERATOR'"),
        (lambda x: x * random.SystemRandom().random(), "calls random.SystemRandom.random"),
        (lambda x: x * random.Random().random(), "calls random.Random without a seed"),
        (lambda x: x * LOCK.locked(), "calls _thread.locked"),
        (lambda x: x * float(np.random.default_rng().normal()), "calls random.SystemRandom.getrandbits"),
        (lambda x: x * time.time(), "calls time.time"),
        (lambda x: x * HERE.exists(), "calls pathlib.Path.exists"),
        (lambda x: x * len(HERE.resolve().parts), "calls pathlib.Path.resolve"),
        (lambda x: x * len(list(HERE.parent.rglob("test_st*.py"))), "calls pathlib.Path.rglob"),
        (lambda x: x * len(pathlib.Path(__file__).read_bytes()[:1]), "calls pathlib.Path.read_bytes"),
        (lambda x: x * decimal.getcontext().prec, "calls decimal.getcontext"),
        (lambda x: x * sys.getrecursionlimit(), "calls sys.getrecursionlimit"),
        (lambda x: x * len(threading.current_thread().name), "calls threading.current_thread"),
        (lambda x: x * len(os.path.abspath("a")), "path.abspath"),
        (lambda x: x * len(np.geterr()), "geterr"),
        (lambda x: x * (logging.getLogger("told").info("once") is None), "calls logging.getLogger"),
        (lambda x: x * (print() is None), "calls print"),
        (lambda x: x * (VARIABLE.set(1) is not None), "VARIABLE"),
        (lambda x: x * eval("len(LOG) + 1"), "calls eval"),
        (lambda x: x * next(NUMBERS), "global 'NUMBERS' is a range_iterator"),
    ],
)
def test_what_runs_once_is_named_with_its_line_in_one_warning(f: Any, what: str, capsys: Any) -> None:
    code = type(f).forward.__code__ if isinstance(f, nn.Module) else f.__code__
    lines = [line for *_, line in code.co_lines() if line]
    g, x = jit(f), torch.ones(2)
    with pytest.warns(RuntimeWarning) as said:
        g(x)
    (warning,) = said
    text = str(warning.message)
    assert what in text
    named = [int(line) for line in re.findall(re.escape(__file__) + r":(\d+)", text)]
    assert named
    assert min(lines) <= named[0] <= max(lines)
    g(x)
    assert g.cache_info()[:2] == (1, 1)


def test_what_is_changed_at_one_capture_is_watched_and_at_two_is_not() -> None:
    table: dict[str, float] = {}
    calls = [0]

    def f(x: Any) -> Any:
        calls[0] += 1
        table.setdefault("scale", 2.0)
        return x * table["scale"]

    g, x = jit(f), torch.ones(2)
    with pytest.warns(RuntimeWarning, match="changes closure 'table'"):
        torch.testing.assert_close(g(x), 2 * x)
    table["scale"] = 3.0
    with pytest.warns(RuntimeWarning, match="changes closure 'calls"):
        torch.testing.assert_close(g(x), 3 * x)
    calls[0] = 0
    torch.testing.assert_close(g(x), 3 * x)
    assert calls == [0]
    table["scale"] = 4.0
    torch.testing.assert_close(g(x), 4 * x)
    assert calls == [1]


def test_what_can_not_be_watched_is_named() -> None:
    secret = types.CellType(lambda: 1)
    made = eval("lambda: 2", {})
    hidden = {"f": made}
    g = jit(lambda x: x * hidden["f"]() * secret.cell_contents())
    g(torch.ones(2))

    pointer = ctypes.pointer(ctypes.c_double(2.0))
    with pytest.warns(RuntimeWarning, match="'pointer' is a pointer, behind which nobody looks"):
        jit(lambda x: x * pointer[0])(torch.ones(2))

    shared = multiprocessing.Value("d", 2.0)
    with pytest.warns(RuntimeWarning, match="'shared' is a Synchronized, whose state can't be watched"):
        jit(lambda x: x * shared.value)(torch.ones(2))

    with pytest.warns(RuntimeWarning, match="calls pathlib.Path.exists"):
        jit(lambda x, path: x * path.exists())(torch.ones(2), HERE)

    many = [[n] for n in range(fh.environment.found.MOST + 1)]
    with pytest.warns(RuntimeWarning, match="'many' is list, too large to be watched"):
        jit(lambda x: x * many[0][0])(torch.ones(2))


# Ordinary code does not warn.


class Kind(enum.Enum):
    GELU = "gelu"


@dataclasses.dataclass
class Config:
    width: int = 8
    heads: int = 2
    kind: Kind = Kind.GELU
    cached: bool = False


@dataclasses.dataclass
class Output:
    last: torch.Tensor
    hidden: tuple[torch.Tensor, ...] = ()
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)


@functools.lru_cache
def sizes(n: int) -> tuple[int, ...]:
    return tuple(range(n))


class Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.project = nn.ModuleDict({name: nn.Linear(config.width, config.width) for name in "qkv"})
        self.norm = nn.LayerNorm(config.width)
        self.act = {"gelu": F.gelu}[config.kind.value]
        self.register_buffer("mask", torch.ones(16, 16).tril().bool(), persistent=False)

    @functools.cached_property
    def scale(self) -> float:
        return 1 / math.sqrt(self.config.width // self.config.heads)

    def split(self, x: Any) -> Any:
        batch, length, width = x.shape
        return x.view(batch, length, self.config.heads, width // self.config.heads).transpose(1, 2)

    def forward(self, x: Any, **options: Any) -> Any:
        q, k, v = (self.split(self.project[name](self.norm(x))) for name in "qkv")
        weights = (q @ k.transpose(-1, -2) * self.scale).masked_fill(~self.mask[: x.shape[1], : x.shape[1]], -1e9)
        weights = F.dropout(weights.softmax(-1), 0.0, self.training)
        out = (self.act((weights @ v).transpose(1, 2).reshape(x.shape)),)
        return (*out, weights) if options.get("attentions") else out


class Model(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList([Block(config) for _ in range(2)])
        self.shared = nn.ParameterList([nn.Parameter(torch.ones(config.width))])

    def forward(self, x: Any, labels: Any = None, attentions: bool | None = None) -> Any:
        attentions = attentions if attentions is not None else self.config.cached
        if x.ndim != 3:
            raise ValueError(f"{x.shape} for {self.config}")
        if x.shape[0] > 1000:
            print("large", time.time(), random.random())
        seen: list[Any] = []
        groups: dict[int, list[Any]] = collections.defaultdict(list)
        for at, layer in enumerate(self.layers):
            seen.append(x)
            x, *rest = layer(x, attentions=True)
            groups[at % 2].append(rest)
        steps = iter(sizes(2))
        count = next(steps) + next(steps)

        def bump() -> None:
            nonlocal count
            count += 1

        bump()
        output = Output(x * self.shared[0], tuple(seen))
        output.extra = {f"layer{at}": h.mean() for at, h in enumerate(output.hidden)}
        output.extra.update(count=count)
        return output.last * output.extra["count"]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTM(4, 4, 2, batch_first=True), nn.GRU(4, 4)
        self.norm, self.conv = nn.BatchNorm1d(4), nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 3, padding=1))
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

    def forward(self, x: Any) -> Any:
        x = self.gru(self.lstm(x)[0])[0].transpose(1, 2)
        return self.encoder(self.conv(self.norm(x)).transpose(1, 2))


def update(params: Any, grads: Any, state: Any) -> Any:
    new = {name: value - 0.1 * grads[name] for name, value in params.items()}
    return new, {**state, "step": state["step"] + 1}


def log_prob(x: Any) -> Any:
    normal = torch.distributions.Normal(x, torch.ones_like(x))
    return normal.log_prob(x).sum() + torch.distributions.kl_divergence(normal, normal).sum()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("f", "args"),
    [
        (Model(Config()), (torch.ones(1, 3, 8),)),
        (Recurrent(), (torch.ones(2, 3, 4),)),
        (update, ({"w": torch.ones(2)}, {"w": torch.ones(2)}, {"step": 0})),
        (log_prob, (torch.ones(2),)),
        (fh.grad(lambda params, x: (params["w"] * x).sum()), ({"w": torch.ones(2)}, torch.ones(2))),
        (lambda x: fh.scan(lambda c, _: (c * 2, c.sum()), x, length=3), (torch.ones(2),)),
    ],
)
def test_ordinary_code_does_not_warn(f: Any, args: Any, training: bool) -> None:
    if isinstance(f, nn.Module):
        f.train(training)
    g = jit(f)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        g(*args)
        g(*args)
    assert g.cache_info()[:2] == (1, 1)
