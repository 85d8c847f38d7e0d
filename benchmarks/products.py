"""What taking products for all steps at once gains: `python benchmarks/products.py`.

Value and gradient of a gated recurrent unit over 64 steps, compiled by Inductor, with the library's fission of loops
and without it.
"""

from __future__ import annotations

import warnings

import torch
from timing import Timing, interleaved, print_table
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


def measure(size: int, batch: int) -> list[Timing]:
    """The products in the loop, and for all steps at once."""
    weights = {k: {g: torch.randn(size, size) / size for g in GATES} for k in ("input", "hidden")}
    xs = torch.rand(STEPS, batch, size)
    # Options that change nothing tell one compilation of the same graph from the other.
    inside, split = fh.jit(fh.value_and_grad(loss), options={"cpp_wrapper": True}), fh.jit(fh.value_and_grad(loss))
    batch_products = backends.batch_products
    backends.batch_products = lambda body: body  # type: ignore[attr-defined]
    inside(weights, xs)
    backends.batch_products = batch_products  # type: ignore[attr-defined]
    split(weights, xs)
    return interleaved(lambda: inside(weights, xs), lambda: split(weights, xs), seconds=4)


def main() -> None:
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    torch.set_num_threads(1)
    rows = []
    for size, batch in SIZES:
        inside, split = measure(size, batch)
        figures = f"{inside.millis:.1f}", f"{split.millis:.1f}", f"{split.ratio:.2f}", f"{split.median_ratio:.2f}"
        rows.append([f"{size} units, {batch} sequences", *figures])
    header = ["loop", "in the loop, ms", "split, ms", "ratio", "median ratio"]
    print_table("Value and gradient of a recurrent loop", header, rows)


if __name__ == "__main__":
    main()
