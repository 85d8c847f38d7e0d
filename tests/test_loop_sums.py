"""Stacks of which only sums are asked for: NOTE [Sums of stacks]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import functorch_hops as fh
from functorch_hops.lowering.loops.operator import loop_kernel
from loop_plans import Program, check, normal, plan, taken
from modes import same


def stacks(c: Tensor, xs: Tensor, **options: bool) -> Any:
    def step(c: Tensor, x: Tensor) -> Any:
        c = torch.tanh(0.9 * c + x)
        return c, (c * x, c.sin())

    return fh.scan(step, c, xs, **options)


def summed(reduce: Callable[[Any], Any], **options: bool) -> Callable[[Tensor, Tensor], Any]:
    return lambda c, xs: reduce(stacks(c, xs, **options))


def lanes(steps: int, *shape: int) -> tuple[Tensor, Tensor]:
    return normal(*shape), normal(steps, *shape, seed=1)


SUMMED: dict[str, tuple[Program, int]] = {
    "a sum": ((summed(lambda r: (r[1][0].sum(), r[0])), lanes(7, 20)), 1),
    "means": ((summed(lambda r: (r[1][0].mean(), r[1][1].mean())), lanes(70, 20)), 2),
    "over time": ((summed(lambda r: (r[1][0].sum(0), r[1][1].mean(0))), lanes(33, 4, 5)), 2),
    "over time and lanes": ((summed(lambda r: (r[1][0].sum((0, 2)), r[1][1].mean((-3, 1)))), lanes(64, 4, 5)), 2),
    "twice": ((summed(lambda r: (r[1][0].sum(), r[1][0].mean(0))), lanes(9, 20)), 1),
    "one of two stacks": ((summed(lambda r: (r[1][0].sum(), r[1][1])), lanes(9, 20)), 1),
    "backwards in time": ((summed(lambda r: r[1][0].sum(0), reverse=True), lanes(40, 20)), 1),
    "one step": ((summed(lambda r: r[1][0].sum()), lanes(1, 20)), 1),
    "one lane": ((summed(lambda r: r[1][0].sum()), (torch.tensor(0.3), normal(100))), 1),
    "blocks of lanes": ((summed(lambda r: (r[1][0].sum(0), r[0])), lanes(100, 5001)), 1),
    "double": ((summed(lambda r: r[1][0].mean()), (normal(20).double(), normal(50, 20).double())), 1),
    "infinite rows": (
        (
            summed(lambda r: r[1][0].sum(0)),
            (normal(20), torch.where(lanes(50, 20)[1] > 2, torch.inf, lanes(50, 20)[1])),
        ),
        1,
    ),
    "of a map": ((lambda c, xs: fh.map(lambda x: (x * c).exp(), xs).mean(), lanes(30, 20)), 1),
    "vmapped": ((fh.vmap(summed(lambda r: r[1][0].mean()), in_dims=(0, 1)), lanes(30, 20)), 1),
    "a loss and its gradient": (
        (fh.value_and_grad(summed(lambda r: r[1][0].mean()), argnums=(0, 1)), lanes(30, 20)),
        1,
    ),
}


def returned(f: Callable[..., Any], args: Any) -> list[torch.Size]:
    """The shapes of what the kernels of its loops return."""
    graph = plan(f, *args).body.module.graph
    return [value.shape for node in graph.nodes if node.target is loop_kernel for value in node.meta["val"]]


@pytest.mark.parametrize("name", SUMMED)
def test_a_loop_returns_sums_where_nobody_reads_its_stacks(name: str) -> None:
    (f, args), n_sums = SUMMED[name]
    assert set(taken(check(f, *args))) == {"lanes"}
    rows, all_rows = args[0].shape, args[1].shape
    kept = {"one of two stacks": 1, "a loss and its gradient": 2}
    shapes = returned(f, args)
    assert shapes.count(all_rows) <= kept.get(name, 0) or rows == all_rows[1:] == torch.Size([])
    assert len(shapes) >= n_sums


NOT_SUMMED: dict[str, Program] = {
    "returned, too": (summed(lambda r: (r[1][0].sum(), r[1][0])), lanes(7, 20)),
    "not over time": (summed(lambda r: r[1][0].sum(1)), lanes(7, 20)),
    "dimensions are kept": (summed(lambda r: r[1][0].sum(0, keepdim=True)), lanes(7, 20)),
    "another dtype": (summed(lambda r: r[1][0].sum(dtype=torch.float64)), lanes(7, 20)),
    "half": (summed(lambda r: r[1][0].sum()), (normal(20).half(), normal(7, 20).half())),
    "integers": (
        lambda c, xs: fh.scan(lambda c, x: (c + 1, c * x), c, xs)[1].sum(),
        (torch.arange(5), torch.ones(7, 5).long()),
    ),
    "a maximum": (summed(lambda r: r[1][0].amax(0)), lanes(7, 20)),
    "lanes of several numbers": (
        lambda c, xs: fh.scan(lambda c, x: (c @ x, (c @ x).sin()), c, xs)[1].sum(),
        (normal(9, 3, 3), 0.5 * normal(7, 9, 3, 3)),
    ),
    "steps": (
        lambda c, xs: fh.scan(lambda c, x: (c.flip(0) + x, c * x), c, xs)[1].sum(),
        lanes(7, 20),
    ),
}


@pytest.mark.parametrize("name", NOT_SUMMED)
def test_other_stacks_are_stored(name: str) -> None:
    f, args = NOT_SUMMED[name]
    tolerances = {"rtol": 1e-2, "atol": 1e-2} if name == "half" else {}
    assert "native" not in taken(check(f, *args, **tolerances))
    assert args[1].shape in returned(f, args)


@pytest.mark.parametrize("n_lanes", [3, 4500])
def test_sums_of_many_steps_are_precise(n_lanes: int) -> None:
    rows = torch.rand(20_000 if n_lanes == 3 else 1000, n_lanes, generator=torch.Generator().manual_seed(0))
    f = fh.jit(lambda c, xs: fh.scan(lambda c, x: (c, x + c), c, xs)[1].sum(0))
    same(f(torch.zeros(n_lanes), rows), rows.double().sum(0).float(), rtol=3e-7, atol=0)
