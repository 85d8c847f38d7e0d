"""What ``torch.compile`` takes for model code that calls the library: captured, compiled, run, and in eager.

The training step of a two-layer GRU (256 steps, 128 units, 16 sequences): the CPU time of Dynamo's capture once
everything is imported, of a first step under Inductor with all of its compilation, and of later steps, against
``fh.jit`` and against the same loop in Python. The compilation of a step with 50 calls against the same operators
without them. The time of a call in a function that is not compiled as one graph, against the call in eager.

Run: python benchmarks/dynamo.py [capture] [steps] [calls] [eager]
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from typing import Any

import torch
from timing import interleaved, print_table
from torch import Tensor, nn

import functorch_hops as fh

STEPS, UNITS, BATCH = 256, 128, 16


class Gru(nn.Module):
    def __init__(self, loop: Callable[..., Any] = fh.scan, steps: int = STEPS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.GRUCell(UNITS, UNITS), nn.GRUCell(UNITS, UNITS)
        self.loop, self.xs = loop, torch.randn(steps, BATCH, UNITS)

    def forward(self) -> Tensor:
        def step(carry: tuple[Tensor, Tensor], x: Tensor) -> Any:
            a = self.first(x, carry[0])
            b = self.second(a, carry[1])
            return (a, b), b

        zero = self.xs.new_zeros(BATCH, UNITS)
        return self.loop(step, (zero, zero), self.xs)[1].square().mean()


def python_loop(step: Callable[..., Any], carry: Any, xs: Tensor) -> Any:
    ys = []
    for x in xs:
        carry, y = step(carry, x)
        ys.append(y)
    return carry, torch.stack(ys)


def cpu_time() -> float:
    """Of this process and of the compilers that it ran."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def took(function: Callable[[], object]) -> float:
    start = cpu_time()
    function()
    return cpu_time() - start


def train(model: nn.Module, run: Callable[[], Tensor]) -> Callable[[], object]:
    def step() -> None:
        model.zero_grad(set_to_none=True)
        run().backward()

    return step


def capture() -> list[tuple[str, ...]]:
    """Of Dynamo alone: its backend returns the graph as it is."""
    seconds = []
    for _ in range(4):
        torch.compiler.reset()
        seconds.append(took(torch.compile(Gru(), fullgraph=True, backend="eager")))
    return [("capture of a training step, s", *(f"{s:.2f}" for s in (seconds[0], min(seconds[1:]))))]


def steps() -> list[tuple[str, ...]]:
    models = [Gru(), Gru(), Gru(python_loop, steps=STEPS // 8)]  # the Python loop takes minutes at its full length
    runs = [torch.compile(models[0], fullgraph=True), fh.jit(models[1]), torch.compile(models[2], fullgraph=True)]
    trained = [train(model, run) for model, run in zip(models, runs)]
    first = [took(step) for step in trained]
    times = interleaved(trained[1], trained[0], seconds=10.0)
    part = interleaved(trained[2], seconds=3.0)[0]
    return [
        ("fh.jit", f"{first[1]:.1f}", f"{times[0].millis:.1f}", ""),
        ("torch.compile", f"{first[0]:.1f}", f"{times[1].millis:.1f}", f"{times[1].median_ratio:.2f}"),
        (f"Python loop of {STEPS // 8} steps", f"{first[2]:.1f}", f"{part.millis:.1f}", ""),
    ]


def calls() -> list[tuple[str, ...]]:
    """50 calls of a jitted function, each of three operators, and the operators."""
    layer = lambda x, w: torch.tanh(x @ w) * 0.5 + x
    jitted, w = fh.jit(layer), torch.randn(16, 16)

    def run(call: Callable[..., Tensor]) -> Callable[[], object]:
        def chain(x: Tensor) -> Tensor:
            for _ in range(50):
                x = call(x, w)
            return x

        def compiled() -> object:
            torch.compiler.reset()
            return torch.compile(chain, fullgraph=True)(torch.ones(8, 16))

        return compiled

    torch._inductor.config.force_disable_caches = True
    plain, called = run(layer), run(jitted)
    plain(), called()
    pairs = [(took(plain), took(called)) for _ in range(3)]
    best = [min(column) for column in zip(*pairs)]
    return [("50 calls, s", *(f"{s:.2f}" for s in best), f"{best[1] / best[0]:.2f}")]


def eager() -> list[tuple[str, ...]]:
    """Calls with a body that Dynamo can't capture, since it appends to a list: each is a break of the graph."""
    x, xs = torch.ones(4), torch.ones(8, 4)
    seen: list[None] = []

    def step(c: Tensor, r: Tensor) -> Any:
        seen.clear()
        seen.append(None)
        return c + r, None

    programs: dict[str, Callable[[], object]] = {
        "scan of 8 steps": lambda: fh.scan(step, x, xs),
        "cond": lambda: fh.cond(True, lambda x: step(x, x)[0], torch.cos, x),
    }
    rows = []
    for name, program in programs.items():
        torch.compiler.reset()
        compiled = torch.compile(program, backend="eager")
        plain, broken = interleaved(program, compiled, seconds=2.0)
        added = broken.micros - plain.micros
        rows.append((name, f"{plain.micros:.0f}", f"{broken.micros:.0f}", f"{added:.0f}"))
    return rows


TABLES: dict[str, tuple[Callable[[], list[tuple[str, ...]]], list[str]]] = {
    "capture": (capture, ["", "first", "warm"]),
    "steps": (steps, ["training step", "first step, s", "later steps, ms", "ratio"]),
    "calls": (calls, ["compile time", "operators", "calls", "ratio"]),
    "eager": (eager, ["call", "eager, us", "in broken graphs, us", "added, us"]),
}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or TABLES:
        make, header = TABLES[name]
        print_table(name, header, make())
