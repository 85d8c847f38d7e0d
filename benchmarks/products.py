"""What taking products for all steps at once gains: `python benchmarks/products.py`.

Value and gradient of a gated recurrent unit over 64 steps, compiled by Inductor, with the library's fission of loops
and without it. Each measurement is a fresh process that counts its own CPU time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings

import torch
from timing import print_table
from torch import Tensor

import functorch_hops as fh
from functorch_hops.lowering import backends

STEPS = 64
SIZES = ((32, 1), (256, 1), (256, 32), (64, 256))
GATES = ("reset", "update", "new")


def loss(weights: dict[str, dict[str, Tensor]], xs: Tensor) -> Tensor:
    w, u = weights["input"], weights["hidden"]

    def step(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        reset = torch.sigmoid(x @ w["reset"] + h @ u["reset"])
        update = torch.sigmoid(x @ w["update"] + h @ u["update"])
        new = torch.tanh(x @ w["new"] + (reset * h) @ u["new"])
        h = (1 - update) * new + update * h
        return h, h

    _, ys = fh.scan(step, torch.zeros(xs.shape[1:]), xs)
    return ys.square().mean()


def measure_here(size: int, batch: int, is_split: bool) -> None:
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    torch.set_num_threads(1)
    if not is_split:
        backends.batch_products = lambda body: body  # type: ignore[attr-defined]
    weights = {k: {g: torch.randn(size, size) / size for g in GATES} for k in ("input", "hidden")}
    xs = torch.rand(STEPS, batch, size)
    function = fh.jit(fh.value_and_grad(loss))
    function(weights, xs)
    best = float("inf")
    for _ in range(40):
        start = time.process_time()
        function(weights, xs)
        best = min(best, time.process_time() - start)
    print(best * 1e3)


def measure(size: int, batch: int, is_split: bool) -> float:
    command = [sys.executable, __file__, str(size), str(batch), str(int(is_split))]
    output = subprocess.check_output(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True)
    return float(output.splitlines()[-1])


def main() -> None:
    rows = []
    for size, batch in SIZES:
        inside, split = measure(size, batch, False), measure(size, batch, True)
        rows.append([f"{size} units, {batch} sequences", f"{inside:.1f}", f"{split:.1f}", f"{split / inside:.2f}"])
    print_table("Value and gradient of a recurrent loop", ["loop", "in the loop, ms", "split, ms", "ratio"], rows)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure_here(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1")
    else:
        main()
