"""One process of two: what `test_distributed.py` starts. Its gradients must be those of the joined batch."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import functorch_hops as fh


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.scale = nn.GRUCell(3, 4), nn.Parameter(torch.linspace(0.5, 1, 4))

    def forward(self, xs: Tensor) -> Tensor:
        h, _ = fh.scan(lambda h, row: (self.cell(row, h), None), xs.new_zeros(xs.shape[1], 4), xs)
        h = fh.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, torch.tanh(c[1] * self.scale)), (0, h))[1]
        return fh.map(lambda row: fh.cond(row.sum() > 0, torch.sin, lambda r: r * self.scale, row), h)


def gradients(run: nn.Module, model: Model, xs: Tensor) -> list[Tensor]:
    model.zero_grad()
    run(xs).square().mean().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


WRAPPED = {
    "ddp": DistributedDataParallel,
    "ddp of jit": lambda m: DistributedDataParallel(fh.jit(m, backend="eager")),
    "jit of ddp": lambda m: fh.jit(DistributedDataParallel(m), backend="eager"),
    "compiled ddp": lambda m: torch.compile(DistributedDataParallel(m), backend="aot_eager"),
    "ddp of compiled": lambda m: DistributedDataParallel(torch.compile(m, backend="aot_eager", fullgraph=True)),
}


def main(rank: int, size: int, store: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    torch.manual_seed(0)
    model, xs = Model().double(), torch.randn(5, 4, 3, dtype=torch.float64)
    expected = gradients(model, model, xs)
    for name in names:
        run = WRAPPED[name](model)
        for _ in range(2):
            got = gradients(run, model, xs[:, 2 * rank : 2 * rank + 2])
            torch.testing.assert_close(got, expected)
        print(f"{name}: right")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
