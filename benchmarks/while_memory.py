"""What reverse mode through a while loop keeps, and what that costs: `python benchmarks/while_memory.py`.

The body is a layer of an RNN (batch 32, width 256; a carry of 32 KiB), and the trip count is known to the run only. The
contenders: the Python loop under autograd (in plain eager, `fh.while_loop` is just that), and `fh.jit(backend="eager")`
of the library's loop, with everything saved and with `checkpoints=k`; and the same compiled by Inductor, where a loop
saves everything on a tape. "kept" is what autograd holds between forward and backward, the operands left out; "peak" is
how much the resident memory grows over a run of 8 steps, in a process of its own.

Target: with checkpoints, what is kept does not depend on the trip count.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from timing import print_table
from torch import Tensor

import functorch_hops as fh

TRIPS = (64, 256, 1024)
CHOICES = ("Python", "all", "64", "16", "4", "compiled all", "compiled 16")
NAMES = {
    "Python": "Python loop",
    "all": "`while_loop`",
    **{k: f"`checkpoints={k}`" for k in ("64", "16", "4")},
    "compiled all": "compiled, on a tape",
    "compiled 16": "compiled, `checkpoints=16`",
}
X = torch.randn(32, 256, generator=torch.Generator().manual_seed(0))
WEIGHT = 0.06 * torch.randn(256, 256, generator=torch.Generator().manual_seed(1))


def python_loop(x: Tensor, w: Tensor, trips: Tensor) -> Tensor:
    for _ in range(int(trips)):
        x = torch.tanh(x @ w) + x * 0.5
    return x.sum()


def library_loop(choice: str) -> Callable[..., Tensor]:
    how, _, saved = choice.rpartition(" ")
    checkpoints = None if saved == "all" else int(saved)

    def loop(x: Tensor, w: Tensor, trips: Tensor) -> Tensor:
        body = lambda s: (s[0] + 1, torch.tanh(s[1] @ w) + s[1] * 0.5)
        out: Tensor = fh.while_loop(lambda s: s[0] < trips, body, (0, x), checkpoints=checkpoints)[1].sum()
        return out

    return fh.jit(loop, backend="inductor" if how else "eager")


def run(loop: Callable[..., Tensor], trips: int) -> tuple[float, float]:
    """CPU seconds of forward, and of forward and backward."""
    x, w = X.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    start = time.process_time()
    out = loop(x, w, torch.tensor(trips))
    middle = time.process_time()
    out.backward()
    return middle - start, time.process_time() - start


def kept(loop: Callable[..., Tensor], trips: int) -> int:
    x, w = X.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    operands = {x.untyped_storage().data_ptr(), w.untyped_storage().data_ptr()}
    storages: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = loop(x, w, torch.tensor(trips))
    del out
    return sum(size for place, size in storages.items() if place not in operands)


def measure(choice: str, trips: int) -> dict[str, float]:
    torch.set_num_threads(1)
    loop = python_loop if choice == "Python" else library_loop(choice)
    for _ in range(2):
        run(loop, 8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    first = run(loop, trips)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    forward, both = map(min, zip(first, run(loop, trips), run(loop, trips)))
    return {"kept": kept(loop, trips) / 2**20, "peak": peak / 2**10, "forward": forward * 1e3, "both": both * 1e3}


def in_a_process_of_its_own(choice: str, trips: int) -> Any:
    command = [sys.executable, __file__, choice, str(trips)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    rows = []
    for trips in TRIPS:
        python: dict[str, float] = {}
        for choice in CHOICES:
            found = in_a_process_of_its_own(choice, trips)
            python = python or found
            figures = [f"{found[column]:.1f}" for column in ("kept", "peak", "forward", "both")]
            rows.append([f"{trips} steps, {NAMES[choice]}", *figures, f"{found['both'] / python['both']:.1f}"])
    header = ["loop", "kept, MiB", "peak, MiB", "forward, ms", "forward and backward, ms", "ratio to Python"]
    print_table("Reverse mode of a while loop", header, rows)


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
    else:
        main()
