"""Does compilation keep what ``fh.checkpoint`` saves? Peak memory of the gradient of a chain of checkpointed blocks.

Under ``jit(grad(f))`` the forward pass and the recomputation are in one graph, where a compiler may merge or interleave
them. Three kinds of block: products, which Inductor calls one by one; layer norms and softmaxes, which it fuses.
Contenders: no checkpoint; a checkpoint; and, under Inductor, a checkpoint without the barrier that keeps the
recomputation late (``lowering/barrier.py``). Bytes are those of torch's CPU allocator.

    python benchmarks/checkpoint_memory.py [--backend inductor]
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from scan_memory import MIB, allocated
from timing import print_table
from torch import Tensor

import functorch_hops as fh
from functorch_hops.lowering import inductor

BLOCKS, ROWS, COLUMNS = 16, 1024, 256
TARGET = 1 / 2


def products(w: Tensor, x: Tensor) -> Tensor:
    for _ in range(4):
        x = torch.tanh(x @ w) * 1.1 + torch.sin(x)
    return x


def norms(w: Tensor, x: Tensor) -> Tensor:
    for _ in range(4):
        x = torch.nn.functional.layer_norm(torch.sin(x) * w[0] + x, (COLUMNS,))
    return x


def softmaxes(w: Tensor, x: Tensor) -> Tensor:
    for _ in range(4):
        x = torch.softmax(torch.sin(x) * w[0] + x, 0) * torch.softmax(x.cos(), 1)
    return x


def gradient(block: Callable[..., Tensor], backend: str) -> Callable[..., Any]:
    def loss(ws: Tensor, x: Tensor) -> Tensor:
        for w in ws.unbind(0):
            x = block(w, x)
        return x.square().sum()

    return fh.jit(fh.grad(loss), backend=backend)


@contextlib.contextmanager
def no_barrier() -> Iterator[None]:
    barriers, inductor.barriers = inductor.barriers, contextlib.nullcontext
    try:
        yield
    finally:
        inductor.barriers = barriers


def peak_and_time(block: Callable[..., Tensor], backend: str, ws: Tensor, x: Tensor) -> tuple[float, float]:
    gc.collect()  # equal graphs share what was compiled for them as long as they live
    compiled = gradient(block, backend)
    compiled(ws, x)
    peak = allocated(lambda: compiled(ws, x))[1] / MIB
    start = time.process_time()
    compiled(ws, x)
    return peak, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="inductor")
    backend = parser.parse_args().backend
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ws, x = torch.randn(BLOCKS, COLUMNS, COLUMNS) * 0.05, torch.randn(ROWS, COLUMNS)
    rows = []
    for block in (products, norms, softmaxes):
        measured = {"none": peak_and_time(block, backend, ws, x)}
        measured["checkpoint"] = peak_and_time(fh.checkpoint(block), backend, ws, x)
        if backend == "inductor":
            with no_barrier():
                measured["without barrier"] = peak_and_time(fh.checkpoint(block), backend, ws, x)
        for name, (peak, seconds) in measured.items():
            ratio = peak / measured["none"][0]
            rows.append([f"{block.__name__}, {name}", f"{peak:.1f}", f"{ratio:.2f}", f"{seconds * 1e3:.0f}"])
    title = (
        f"Peak memory of the gradient of {BLOCKS} blocks, {backend} (target: ratio at most {TARGET} with checkpoint)"
    )
    print_table(title, ["block", "peak, MiB", "ratio", "CPU, ms"], rows)


if __name__ == "__main__":
    main()
