"""One process of two: what `test_distributed.py` starts. Modules that `fully_shard` shards, and DTensors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ddp_worker import Model
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import functorch_hops as fh


def backends(**options: Any) -> dict[str, Any]:
    return {"backend": "aot_eager", **options}


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(**backends())
    return model


ORDERS: dict[str, Callable[[nn.Module, Callable[[nn.Module], nn.Module]], nn.Module]] = {
    "fully_shard": lambda m, shard: shard(m),
    "fully_shard of jit": lambda m, shard: shard(fh.jit(m, backend="eager")),
    "compile of fully_shard": lambda m, shard: torch.compile(shard(m), **backends()),
    "fully_shard of compile": lambda m, shard: shard(torch.compile(m, **backends(fullgraph=True))),
    "compile in place": lambda m, shard: compiled_in_place(shard(m)),
}


def orders(rank: int, mesh: DeviceMesh) -> None:
    """Gradients of two halves of a batch are those of the batch, wherever the compiler stands."""
    draw = torch.Generator().manual_seed(0)
    xs = torch.randn(5, 4, 3, dtype=torch.float64, generator=draw)

    def make() -> nn.Module:
        torch.manual_seed(0)
        return Model().double()

    def gradients(run: nn.Module, model: nn.Module, xs: Tensor) -> list[Tensor]:
        model.zero_grad()
        run(xs).square().mean().backward()
        found = [p.grad for p in model.parameters()]
        return [g.full_tensor() if isinstance(g, DTensor) else g for g in found]

    whole = make()
    expected = gradients(whole, whole, xs)

    def shard(module: nn.Module) -> nn.Module:
        return fully_shard(module, mesh=mesh)

    for name, order in ORDERS.items():
        model, made = make(), []
        run = order(model, lambda module, made=made: made.append(shard(module)) or made[0])
        for _ in range(2):
            got = gradients(run, model, xs[:, 2 * rank : 2 * rank + 2])
            torch.testing.assert_close(got, expected, msg=lambda text, name=name: f"{name}: {text}")
        made[0].set_requires_gradient_sync(False)  # gradients are accumulated
        gradients(run, model, xs[:, 2 * rank : 2 * rank + 2])
        made[0].set_requires_gradient_sync(True)
        run(xs[:, 2 * rank : 2 * rank + 2]).square().mean().backward()
        torch.testing.assert_close([p.grad.full_tensor() for p in model.parameters()], [2 * g for g in expected])
    sharded = shard(make())
    refused("capture modules before fully_shard", lambda: fh.jit(sharded, backend="eager")(xs))
    torch.testing.assert_close(gradients(sharded, sharded, xs), expected)  # which has left it as it was


def refused(words: str, call: Callable[[], Any], error: type[Exception] = fh.CaptureError) -> None:
    with pytest.raises(error, match=words):
        call()


def dtensors(rank: int, mesh: DeviceMesh) -> None:
    """Loops in plain eager keep the placement of their carry; captured ones refuse DTensors by name."""
    draw = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=draw)
    whole = normal(4, 3), normal(5, 4, 3), normal(3, 3)
    placed = lambda *placements: [distribute_tensor(x, mesh, [p]) for x, p in zip(whole, placements)]

    def loss(h: Tensor, xs: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        def step(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(h @ weight + x)
            return h, h

        h, ys = fh.scan(step, h, xs)
        return ys.square().sum(), h

    expected = torch.func.grad(lambda *args: loss(*args)[0], argnums=(0, 1, 2))(*whole)
    for placements in ((Shard(0), Shard(1), Replicate()), (Replicate(), Replicate(), Replicate())):
        leaves = [x.requires_grad_() for x in placed(*placements)]
        value, h = loss(*leaves)
        assert h.placements == (placements[0],)
        value.full_tensor().backward()
        torch.testing.assert_close([x.grad.full_tensor() for x in leaves], list(expected))
    h, xs, weight = placed(Shard(0), Shard(0), Replicate())
    refused("sharded on the dimension that is looped over", lambda: loss(h, xs, weight), fh.ArgumentValueError)
    refused("can't take a DTensor", lambda: fh.jit(loss, backend="eager")(h, xs, weight))
    compiled = torch.compile(lambda h, xs, weight: loss(h, xs, weight), **backends(fullgraph=True))
    refused("can't take a DTensor", lambda: compiled(h, xs, weight))
    rows = distribute_tensor(whole[1], mesh, [Shard(1)])
    for function in (lambda x: fh.map(torch.sin, x), lambda x: fh.fori_loop(0, 3, lambda i, c: c * 2 + i, x)):
        result = function(rows)
        assert result.placements == rows.placements
        torch.testing.assert_close(result.full_tensor(), function(whole[1]))
    for placement in (Shard(0), Shard(1), Replicate()):
        sums = fh.associative_scan(torch.add, distribute_tensor(whole[1], mesh, [placement]))
        torch.testing.assert_close(sums.full_tensor(), whole[1].cumsum(0))
    by_hand = fh.jit(fh.sharded_associative_scan, backend="eager")  # what a time-sharded DTensor is for
    local = distribute_tensor(whole[1][:4], mesh, [Shard(0)]).to_local()
    torch.testing.assert_close(by_hand(torch.add, local), whole[1].cumsum(0)[2 * rank : 2 * rank + 2])


def main(rank: int, size: int, store: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    for name in names:
        globals()[name](rank, init_device_mesh("cpu", (size,)))
        print(f"{name}: right", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
