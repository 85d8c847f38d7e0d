"""What the first call of a jitted loop takes, in a process that compiles it and in the next one, which finds it:
`python benchmarks/first_call.py`.

Each program runs in two processes, one after the other, with a number in it that no program had before: so the first
one compiles. The CPU time of a call includes that of the C++ compiler. A process that compiles imports Dynamo and
Inductor first, which is counted by itself; one that finds its kernel imports neither, and what else it imports is
counted with the call. What Inductor builds once per machine, its precompiled header and what tells the vectors that the
processor has, is not counted.

Target: 2 s where the kernel is compiled, besides the imports, and 0.5 s where it is found, in all.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from timing import print_table
from torch import Tensor

import functorch_hops as fh
from functorch_hops import _torch

ROUNDS = 3
new = 0.5
"""A number of this round."""


def step(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    b = (h * x).sin() + h
    return (b.tanh() * new + x).sigmoid() * b, b


def loss(h: Tensor, xs: Tensor) -> Tensor:
    h, ys = fh.scan(step, h, xs)
    return h.sum() + ys.square().mean()


def backward(h: Tensor, xs: Tensor) -> Any:
    h = h.clone().requires_grad_()
    fh.jit(loss)(h, xs).backward()
    return h.grad


def of_leaf(h: Tensor, xs: Tensor) -> Any:
    """As an optimizer's tensors are differentiated: the results require gradients."""
    return fh.jit(fh.value_and_grad(loss))(h.clone().requires_grad_(), xs)


def halved(h: Tensor, xs: Tensor) -> Tensor:
    return fh.while_loop(lambda c: c.abs().max() > 1e-3, lambda c: c * new, h)


def metropolis(x: Tensor, xs: Tensor) -> Tensor:
    """It draws random numbers."""

    def move(_: Tensor, x: Tensor) -> Tensor:
        y = x + torch.randn_like(x)
        return torch.where(torch.rand_like(x) < (new * (x * x - y * y)).exp(), y, x)

    return fh.fori_loop(0, 100, move, x)


PROGRAMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "scan": fh.jit(lambda h, xs: fh.scan(step, h, xs)),
    "scan, value_and_grad": fh.jit(fh.value_and_grad(loss)),
    "scan, value_and_grad of a leaf": of_leaf,
    "scan, backward()": backward,
    "while_loop": fh.jit(halved),
    "random numbers": fh.jit(metropolis),
}


def cpu_time() -> float:
    """Of this process and of those that it started and that have ended."""
    return sum(os.times()[:4])


def measure_here(name: str, is_found: bool) -> None:
    """The child process: prints seconds of the imports and of the call."""
    torch.set_num_threads(1)
    start = cpu_time()
    if not is_found:
        with _torch.collections_paused():  # as the library imports them
            import_module("torch._inductor.graph")
    imported = cpu_time()
    PROGRAMS[name](torch.rand(16), torch.rand(64, 16))
    called = cpu_time()
    if is_found and "torch._dynamo" in sys.modules:
        raise RuntimeError("the kernel was not found")
    print(json.dumps([imported - start, called - imported]))


def measure(name: str, number: float, is_found: bool) -> list[float]:
    command = [sys.executable, __file__, name, str(number), "found" if is_found else "compiled"]
    seconds: list[float] = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
    return seconds


def main() -> None:
    rows = []
    for name in PROGRAMS:
        numbers = [random.uniform(0.4, 0.6) for _ in range(ROUNDS)]
        runs = [[measure(name, number, is_found) for is_found in (False, True)] for number in numbers]
        for how, seconds in zip(("compiled", "found"), zip(*runs)):
            middle = map(statistics.median, zip(*seconds))
            rows.append([f"{name}, {how}", *(f"{x:.2f}" for x in middle)])
    print_table(
        "Seconds of CPU (target: 2 for a call that compiles its kernel, 0.5 for one that finds it)", HEADER, rows
    )


HEADER = ["first call", "import of the compilers", "the call"]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        new = float(sys.argv[2])
        measure_here(sys.argv[1], sys.argv[3] == "found")
    else:
        main()
