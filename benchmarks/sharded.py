"""How does the time of a scan over a sequence divide, when each rank has a part of it? More ranks than there are, by
simulation: one process does what the last of so many ranks does, forward and backward, on a process group that sends
nothing (torch's "fake" backend). What the messages would take is added: for each round of them, a latency.

The associative scan is a linear recurrence, h = a * h + b. All ranks work at once, so a step takes what one rank takes,
and 1 + log2(ranks) rounds, forward and backward. In a chain the ranks work one after the other.

    python benchmarks/sharded.py [--steps 65536] [--width 64] [--latency 50] [--ranks 1 4 16]
"""

from __future__ import annotations

import argparse
import math

import torch
import torch.distributed as dist
from timing import interleaved, print_table
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

import functorch_hops as fh

RANKS = (1, 4, 16, 64, 256)


def combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return left[0] * right[0], right[0] * left[1] + right[1]


def associative(decays: Tensor, inputs: Tensor) -> Tensor:
    return fh.sharded_associative_scan(combine, (decays, inputs))[1].square().sum()


def chained(decays: Tensor, inputs: Tensor) -> Tensor:
    def step(h: Tensor, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h = x[0] * h + x[1]
        return h, h

    return fh.sharded_scan(step, torch.zeros_like(inputs[0]), (decays, inputs))[1].square().sum()


def seconds_on_a_rank(ranks: int, steps: int, width: int) -> list[float]:
    """For a gradient of each kind, on the last rank."""
    dist.init_process_group("fake", store=FakeStore(), rank=ranks - 1, world_size=ranks)
    parts = torch.rand(steps // ranks, width), torch.randn(steps // ranks, width)
    functions = [fh.jit(fh.grad(function, argnums=(0, 1))) for function in (associative, chained)]
    calls = [lambda function=function: function(*parts) for function in functions]
    times = [timing.best for timing in interleaved(*calls, seconds=0.5)]
    dist.destroy_process_group()
    return times


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=65536)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--latency", type=float, default=50, help="of a message, in microseconds")
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    latency = options.latency * 1e-6
    rows, alone = [], []
    for ranks in options.ranks:
        associative_rank, chained_rank = seconds_on_a_rank(ranks, options.steps, options.width)
        rounds = 0 if ranks == 1 else 1 + max(0, math.ceil(math.log2(ranks - 1)))
        totals = associative_rank + 2 * rounds * latency, ranks * chained_rank + 2 * (ranks - 1) * latency
        alone = alone or totals
        shares = [f"{one / total:.1f}" for one, total in zip(alone, totals)]
        cells = [f"{t * 1e3:.2f}" for t in (associative_rank, totals[0], chained_rank, totals[1])]
        rows.append([str(ranks), str(rounds), *cells[:2], shares[0], *cells[2:], shares[1]])
    head = ["ranks", "rounds", "prefixes: on a rank, ms", "total", "faster", "chain: on a rank, ms", "total", "faster"]
    print_table(f"gradient of a scan of {options.steps} x {options.width} over ranks", head, rows)


if __name__ == "__main__":
    main()
