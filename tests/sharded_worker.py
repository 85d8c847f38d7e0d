"""One process of several, each with a part of a sequence: what `test_sharded.py` starts.

What it computes must be what a plain loop over the whole sequence computes. The oracle differentiates the sum over the
ranks of what each of them differentiates; of a tensor that all ranks have, each has a share of the gradient.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import functorch_hops as fh

Function = Callable[..., Any]
STEPS, BATCH, HIDDEN = 8, 2, 3


def loop(f: Function, init: Any, xs: Any, reverse: bool = False) -> tuple[Any, Any]:
    carry, ys = init, []
    for x in xs.flip(0) if reverse else xs:
        carry, y = f(carry, x)
        ys.append(y)
    ys = torch.stack(ys)
    return carry, ys.flip(0) if reverse else ys


def prefixes(fn: Function, elems: tuple[Tensor, ...], reverse: bool = False) -> tuple[Tensor, ...]:
    rows = [*zip(*elems)]
    rows = rows[::-1] if reverse else rows
    results = [rows[0]]
    for row in rows[1:]:
        results.append(fn(results[-1], row))
    return tuple(torch.stack(list(column[::-1] if reverse else column)) for column in zip(*results))


def recurrence(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return left[0] * right[0], right[0] * left[1] + right[1]


class Ranks:
    """What each rank has of the data, and what it computes with it."""

    def __init__(self, rank: int, size: int) -> None:
        self.size = size
        draw = torch.Generator().manual_seed(0)
        normal = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=draw)
        n = STEPS // size  # the last part is the longest
        self.part = slice(rank * n, None if rank == size - 1 else (rank + 1) * n)
        self.whole = normal(STEPS + 1, BATCH, HIDDEN), normal(HIDDEN, HIDDEN), normal(BATCH, HIDDEN)
        self.decays = normal(STEPS + 1, BATCH, HIDDEN).sigmoid()

    def local(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(x[self.part].clone() for x in tensors)

    def step(self, weight: Tensor) -> Function:
        def step(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(h @ weight + x)
            return h, h * 2

        return step

    def loss(self, scan: Function, shares: int, reverse: bool = False) -> Function:
        """A function of the sequence, the weight and the initial carry; the final carry counts on each rank."""

        def loss(xs: Tensor, weight: Tensor, init: Tensor) -> Tensor:
            h, ys = scan(self.step(weight), init, xs, reverse=reverse)
            return shares * h.sin().sum() + ys.square().sum()

        return loss

    def sharded(self, **options: Any) -> Function:
        return self.loss(fh.sharded_scan, 1, **options)

    def check(self, gradients: tuple[Tensor, ...], function: Function) -> None:
        """Those of a local call, against those of `function` of the whole."""
        expected = torch.func.grad(function, argnums=(0, 1, 2))(*self.whole)
        shares = [x.detach().clone() for x in gradients[1:]]
        for x in shares:
            dist.all_reduce(x)
        torch.testing.assert_close((gradients[0], *shares), (expected[0][self.part], *expected[1:]))

    def operands(self) -> tuple[Tensor, ...]:
        xs, *rest = self.whole
        return (*self.local(xs), *(x.clone() for x in rest))


def backward(function: Function, operands: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in operands]
    function(*leaves).backward()
    return tuple(x.grad for x in leaves)


def values(ranks: Ranks) -> None:
    (xs, _, init), step = ranks.whole, ranks.step(ranks.whole[1])
    for reverse in (False, True):
        h, ys = loop(step, init, xs, reverse)
        torch.testing.assert_close(
            fh.sharded_scan(step, init, *ranks.local(xs), reverse=reverse), (h, *ranks.local(ys))
        )
        elems = ranks.decays, xs
        expected = ranks.local(*prefixes(recurrence, elems, reverse))
        got = fh.sharded_associative_scan(recurrence, ranks.local(*elems), reverse=reverse)
        torch.testing.assert_close(got, expected)


def numbers_and_trees(ranks: Ranks) -> None:
    """A number in the carry, integers, a y that is None, another dimension."""
    xs = torch.arange(STEPS + 1)

    def step(carry: Any, x: Tensor) -> tuple[Any, None]:
        return {"sum": carry["sum"] + x * 0.5, "count": carry["count"] + 1, "last": x}, None

    init = {"sum": 0, "count": 0, "last": torch.tensor(-1)}
    carry, ys = fh.sharded_scan(step, init, *ranks.local(xs))
    assert ys is None
    expected = {"sum": xs.sum() * 0.5, "count": torch.tensor(STEPS + 1), "last": xs[-1]}
    torch.testing.assert_close(carry, expected)
    table = torch.stack((xs, -xs))
    running = fh.sharded_associative_scan(torch.maximum, table[:, ranks.part], dim=1)
    torch.testing.assert_close(running, torch.cummax(table, 1).values[:, ranks.part])


def gradients_of_scan(ranks: Ranks) -> None:
    oracle = ranks.loss(loop, ranks.size)
    for function in (ranks.sharded(), fh.jit(ranks.sharded(), backend="eager")):
        ranks.check(backward(function, ranks.operands()), oracle)
        ranks.check(fh.grad(function, argnums=(0, 1, 2))(*ranks.operands()), oracle)
    ranks.check(
        fh.jit(fh.grad(ranks.sharded(reverse=True), argnums=(0, 1, 2)), backend="eager")(*ranks.operands()),
        ranks.loss(loop, ranks.size, reverse=True),
    )


def gradients_of_some(ranks: Ranks) -> None:
    """A gradient goes to other ranks even where the initial carry, or the local part, has none."""
    expected = torch.func.grad(ranks.loss(loop, ranks.size), argnums=(0, 1, 2))(*ranks.whole)
    xs, weight, init = ranks.operands()
    (got,) = torch.autograd.grad(ranks.sharded()(xs, weight.requires_grad_(), init), [weight])
    dist.all_reduce(got)
    torch.testing.assert_close(got, expected[1])
    got = fh.jit(fh.grad(ranks.sharded()), backend="eager")(*ranks.operands())
    torch.testing.assert_close(got, expected[0][ranks.part])
    only_ys = lambda scan: lambda x, w, h: scan(ranks.step(w), h, x)[1].square().sum()
    ranks.check(backward(only_ys(fh.sharded_scan), ranks.operands()), only_ys(loop))


def gradients_of_prefixes(ranks: Ranks) -> None:
    """A step that does not commute, and has no finite derivative at the zeros that come where nothing is sent."""

    def parallel(left: Any, right: Any) -> Any:
        (r, *left), (s, *right) = left, right
        return 1 / (1 / r + 1 / s), *recurrence(left, right)

    def loss(scan: Function) -> Function:
        return lambda r, a, b: sum(x.sin().sum() for x in scan(parallel, (r, a, b)))

    elems = ranks.decays + 0.5, ranks.decays, ranks.whole[0]
    expected = ranks.local(*torch.func.grad(loss(prefixes), argnums=(0, 1, 2))(*elems))
    local = loss(fh.sharded_associative_scan)
    for function in (local, fh.jit(local, backend="eager")):
        torch.testing.assert_close(backward(function, ranks.local(*elems)), expected)
        torch.testing.assert_close(fh.grad(function, argnums=(0, 1, 2))(*ranks.local(*elems)), expected)


def higher_orders(ranks: Ranks) -> None:
    """In forward mode, of second order both ways round, and of many at once."""
    xs, weight, init = ranks.operands()
    direction = weight.flip(0)
    of_weight = lambda function, xs: lambda w: function(xs, w, init)
    oracle, local = of_weight(ranks.loss(loop, ranks.size), ranks.whole[0]), of_weight(ranks.sharded(), xs)
    total = lambda x: (dist.all_reduce(x := x.detach().clone()), x)[1]
    tangent = lambda f: torch.func.jvp(f, (weight,), (direction,))[1]
    torch.testing.assert_close(total(fh.jvp(local, (weight,), (direction,))[1]), tangent(oracle))
    expected = torch.func.jvp(torch.func.grad(oracle), (weight,), (direction,))[1]
    torch.testing.assert_close(total(fh.jvp(fh.grad(local), (weight,), (direction,))[1]), expected)
    twice = fh.grad(lambda w: (fh.grad(local)(w) * direction).sum())
    torch.testing.assert_close(total(twice(weight)), expected)
    many = torch.stack((weight, direction, weight / 2))
    expected = torch.stack([torch.func.grad(oracle)(w) for w in many])
    torch.testing.assert_close(total(fh.vmap(fh.grad(local))(many)), expected)
    elems = ranks.local(ranks.decays, ranks.whole[0])
    scanned = fh.vmap(lambda a, b: fh.sharded_associative_scan(recurrence, (a, b))[1], 1, 1)
    whole = prefixes(recurrence, (ranks.decays, ranks.whole[0]))[1]
    torch.testing.assert_close(scanned(*elems), *ranks.local(whole))


def compiled(ranks: Ranks) -> None:
    """With messages in compiled code, by `fh.jit` and by `torch.compile`."""
    oracle, sharded = ranks.loss(loop, ranks.size), ranks.sharded()
    ranks.check(fh.jit(fh.grad(sharded, argnums=(0, 1, 2)))(*ranks.operands()), oracle)
    ranks.check(backward(torch.compile(sharded, fullgraph=True), ranks.operands()), oracle)
    xs, weight, init = ranks.operands()
    torch.compile(sharded, backend="aot_eager", fullgraph=True)(xs, weight.requires_grad_(), init).backward()
    share = weight.grad.clone()  # the initial carry has no gradient: its message is sent all the same
    dist.all_reduce(share)
    torch.testing.assert_close(share, torch.func.grad(oracle, argnums=1)(*ranks.whole))
    loss = lambda scan: lambda a, b: scan(recurrence, (a, b))[1].square().sum()
    elems = ranks.decays, ranks.whole[0]
    expected = ranks.local(*torch.func.grad(loss(prefixes), argnums=(0, 1))(*elems))
    local = fh.jit(fh.grad(loss(fh.sharded_associative_scan), argnums=(0, 1)))
    torch.testing.assert_close(local(*ranks.local(*elems)), expected)


def training(ranks: Ranks) -> None:
    """Two layers, of which one runs backwards, in a module whose gradients are summed as DDP does."""

    class Model(torch.nn.Module):
        def __init__(self, scan: Function) -> None:
            super().__init__()
            self.scan, self.cells = scan, torch.nn.ModuleList(torch.nn.GRUCell(HIDDEN, HIDDEN) for _ in range(2))

        def forward(self, xs: Tensor) -> Tensor:
            for cell, reverse in zip(self.cells, (False, True)):
                step = lambda h, x, cell=cell: ((h := cell(x, h)), h)
                _, xs = self.scan(step, xs.new_zeros(BATCH, HIDDEN), xs, reverse=reverse)
            return xs.square().sum()

    torch.manual_seed(0)
    whole = Model(loop).double()
    whole(ranks.whole[0]).backward()
    model = Model(fh.sharded_scan).double()
    model.load_state_dict(whole.state_dict())
    run = torch.nn.parallel.DistributedDataParallel(model)
    run(*ranks.local(ranks.whole[0])).backward()
    for mine, expected in zip(model.parameters(), whole.parameters()):
        torch.testing.assert_close(mine.grad * ranks.size, expected.grad)


def outputs_alone(ranks: Ranks) -> None:
    """The final carry has no cotangent: its message backwards depends on nothing that a compiler knows of."""

    def loss(scan: Function) -> Function:
        return lambda xs, weight, init: scan(ranks.step(weight), init, xs)[1].square().sum()

    oracle, sharded = loss(loop), loss(fh.sharded_scan)
    for compiled in (fh.jit(sharded, backend="eager"), torch.compile(sharded, backend="aot_eager", fullgraph=True)):
        ranks.check(backward(compiled, ranks.operands()), oracle)


QUICK = [values, numbers_and_trees, gradients_of_scan, gradients_of_some, gradients_of_prefixes]
SLOW = [higher_orders, training, compiled, outputs_alone]


def main(rank: int, size: int, store: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=240)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=limit)
    for name in names:
        globals()[name](Ranks(rank, size))
        print(f"{name}: right", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
