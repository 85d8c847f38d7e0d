"""Whether compiling a loop takes longer the longer the loop is: `python benchmarks/compile_time.py`.

A jitted scan of ten operators, a Kalman filter by ``associative_scan`` (Särkkä and García-Fernández, "Temporal
parallelization of Bayesian smoothers", 2021), and their values and gradients, are captured and compiled by Inductor for
64 and for 4096 steps. Each measurement is a fresh process with an empty cache folder; the lengths alternate.
A trivial function is compiled first, so that what Inductor sets up once is not counted. The CPU time
includes that of the C++ compiler.

Target: the compile time for 4096 steps is at most 1.2 times that for 64; the graphs have as many nodes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from timing import print_table
from torch import Tensor, fx

import functorch_hops as fh

LENGTHS = (64, 4096)
REPETITIONS = 2
TARGET = 1.2


class Cost(NamedTuple):
    """Seconds of CPU time and on the wall; the nodes of the captured graph, nested bodies included."""

    cpu: float
    wall: float
    nodes: int


def step(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    a = h * x
    b = a.sin() + h
    c = b.tanh() * 0.5
    d = (c + x).sigmoid() * b
    e = (d - c).cos()
    return e * a + b, e


def loss(h: Tensor, xs: Tensor) -> Tensor:
    h, ys = fh.scan(step, h, xs)
    return h.sum() + ys.square().mean()


def combined(first: tuple[Tensor, ...], then: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Of two pieces of a Kalman filter."""
    (a, b, c, eta, j), (a2, b2, c2, eta2, j2) = first, then
    n, one = len(b), torch.eye(len(b))
    left = torch.linalg.solve(one + c @ j2, torch.cat((a, (b + c @ eta2)[:, None], c), 1))
    right = torch.linalg.solve(one + j2 @ c, torch.cat(((eta2 - j2 @ b)[:, None], j2 @ a), 1))
    mean, covariance = a2 @ left[:, n] + b2, a2 @ left[:, n + 1 :] @ a2.mT + c2
    return a2 @ left[:, :n], mean, covariance, a.mT @ right[:, 0] + eta, a.mT @ right[:, 1:] + j


def filtered(h: Tensor, xs: Tensor) -> Tensor:
    """Means and covariances of five states, each observed with unit noise."""
    ys, one = xs[:, :5], torch.eye(5)
    f = one - 0.1 * h[:5].outer(h[5:10])
    a = f / 2
    pieces = a, ys / 2, one / 2, ys @ a, f.mT @ a
    elems = [x if x is pieces[1] or x is pieces[3] else x.expand(len(ys), 5, 5) for x in pieces]
    _, means, covariances, _, _ = fh.associative_scan(combined, tuple(elems))
    return means.square().mean() + covariances.square().mean()


def cost_of(function: Any, length: int) -> Cost:
    """Capture and compile, by a first call."""
    arguments = torch.rand(16), torch.rand(length, 16)
    jitted = fh.jit(function)
    wall, cpu = time.perf_counter(), cpu_time()
    jitted.lower(*arguments).compile()
    jitted(*arguments)
    wall, cpu = time.perf_counter() - wall, cpu_time() - cpu
    return Cost(cpu, wall, count_nodes(jitted.lower(*arguments).graph))


def cpu_time() -> float:
    """Of this process and of those that it started and that have ended."""
    return sum(os.times()[:4])


def count_nodes(graph: fx.GraphModule) -> int:
    return sum(len(m.graph.nodes) for m in graph.modules() if isinstance(m, fx.GraphModule))


FUNCTIONS = {
    "scan": loss,
    "scan, value_and_grad": fh.value_and_grad(loss),
    "associative_scan": filtered,
    "associative_scan, value_and_grad": fh.value_and_grad(filtered, argnums=(0, 1)),
}


def measure_here(length: int) -> None:
    """The child process: prints the costs as JSON."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    torch.set_num_threads(1)
    warm = fh.jit(lambda x: x.sin() + 1)
    warm(torch.ones(3))
    print(json.dumps({name: cost_of(f, length) for name, f in FUNCTIONS.items()}))


def measure(length: int) -> dict[str, Cost]:
    """In a fresh process, without any cache of earlier compilations."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "TORCHINDUCTOR_CACHE_DIR": folder,
            "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, __file__, str(length)]
        output = subprocess.check_output(command, env=os.environ | settings, text=True)
    return {name: Cost(*cost) for name, cost in json.loads(output.splitlines()[-1]).items()}


def best(costs: Sequence[Cost]) -> Cost:
    return Cost(*(min(column) for column in zip(*costs)))


def main() -> None:
    measured = [{length: measure(length) for length in LENGTHS} for _ in range(REPETITIONS)]
    rows = []
    for name in FUNCTIONS:
        short, long = (best([m[length][name] for m in measured]) for length in LENGTHS)
        for length, cost in zip(LENGTHS, (short, long)):
            figures = [f"{cost.cpu:.2f}", f"{cost.wall:.2f}", str(cost.nodes), f"{cost.cpu / short.cpu:.2f}"]
            rows.append([f"{name}, {length} steps", *figures])
        if short.nodes != long.nodes:
            raise RuntimeError(f"the graphs of {name} differ: {short.nodes} and {long.nodes} nodes")
    header = ["compiled by Inductor", "CPU, s", "wall, s", "nodes", "CPU ratio"]
    print_table(f"Capture and compilation (target: ratio <= {TARGET})", header, rows)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure_here(int(sys.argv[1]))
    else:
        main()
