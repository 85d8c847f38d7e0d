"""Gradients of while loops on CUDA: the loop is counted, then stacks; in Triton's interpreter, and compiled."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from torch import Tensor
from triton_plans import check, compiled, kernels, moved, on_cuda

import functorch_hops as fh
from functorch_hops._torch import new_fake_mode
from functorch_hops.lowering.inductor import compile_graph
from loop_plans import Program, normal, taken
from modes import same

N = 40


def gradient(f: Callable[..., Any], at: int = 0) -> Callable[..., Any]:
    return fh.value_and_grad(lambda *args: sum(y.square().sum() for y in optree.tree_leaves(f(*args))), argnums=at)


def grown(c: Tensor) -> Tensor:
    """It stacks nothing but that its steps happened."""
    return fh.while_loop(lambda c: c < 9, lambda c: c * 1.5 + 0.1, c)


def counted(n: Tensor, c: Tensor) -> Tensor:
    return fh.while_loop(lambda s: s[0] < 5, lambda s: (s[0] + 1, torch.sin(s[1]) * 1.1), (n, c))[1]


def adaptive(y: Tensor) -> Tensor:
    """Steps of a size that depends on an error."""

    def step(s: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        t, h, y = s
        change = h * torch.stack([y[1], -y[0].sin()])
        return t + h, torch.where(change.norm() < 0.05, h * 1.2, h * 0.8), y + change

    return fh.while_loop(lambda s: s[0] < 1, step, (y.new_zeros(()), y.new_full((), 0.1), y))[2]


def with_loop(n: Tensor, c: Tensor) -> Tensor:
    """With a loop in its steps."""

    def step(s: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return s[0] + 1, fh.fori_loop(0, 3, lambda i, c: torch.tanh(c + 0.1 * i), s[1])

    return fh.while_loop(lambda s: s[0] < 4, step, (n, c))[1]


ZERO = torch.tensor(0)

PROGRAMS: dict[str, Program] = {
    "one number": (gradient(grown), (torch.tensor(1.0),)),
    "no step": (gradient(grown), (torch.tensor(10.0),)),
    "lanes": (gradient(counted, 1), (ZERO, normal(N))),
    "no step of lanes": (gradient(counted, 1), (ZERO + 9, normal(N))),
    "double": (gradient(counted, 1), (ZERO, normal(N).double())),
    "adaptive": (gradient(adaptive), (normal(2),)),
    "a loop in its steps": (gradient(with_loop, 1), (ZERO, normal(N))),
    "in a larger graph": (
        fh.grad(lambda n, c: (counted(n, c.exp()) * counted(n, c.cos())).sum(), argnums=1),
        (ZERO, normal(N)),
    ),
}


@pytest.mark.triton
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_gradient_is_that_of_eager(name: str) -> None:
    import triton_libdevice

    triton_libdevice.provide()
    f, args = PROGRAMS[name]
    assert set(taken(check(f, *args))) == {"lanes"}


def test_the_host_waits_once_for_each_loop() -> None:
    nodes = on_cuda(*_program("lanes")).body.module.graph.nodes
    assert sum(node.target is torch.ops.aten._local_scalar_dense.default for node in nodes) == 1


def _program(name: str) -> tuple[Any, ...]:
    f, args = PROGRAMS[name]
    return f, *args


@pytest.mark.slow
@pytest.mark.triton
def test_each_kernel_compiles_to_a_binary_that_spills_nothing() -> None:
    nodes = [node for name in ("lanes", "adaptive", "one number") for node in kernels(on_cuda(*_program(name)))]
    registers, spilled = compiled(nodes)
    assert len(registers) == len(nodes)
    assert set(spilled) == {0}


@pytest.mark.slow
@pytest.mark.triton
def test_inductor_runs_the_three_kernels() -> None:
    import triton_libdevice

    triton_libdevice.provide()
    f, args = PROGRAMS["lanes"]
    body = moved(on_cuda(f, *args).body, "cpu")
    mode = new_fake_mode()
    run = compile_graph(body.module, [meta.fake(mode) for meta in body.inputs], {})
    for start in (0, 2, 9):
        given = torch.tensor(start), args[1]
        same(list(run(list(given))), optree.tree_leaves(fh.jit(f, backend="eager")(*given)))


def test_lanes_that_end_by_themselves_stay_torch_s_own() -> None:
    f = gradient(lambda c: fh.vmap(grown)(c))
    reports = on_cuda(f, normal(N)).loops
    assert any("a reduction reads many lanes" in str(report.reason) for report in reports), reports


@pytest.mark.triton
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 10))])
def test_random_programs(seed: int) -> None:
    import triton_libdevice

    triton_libdevice.provide()
    draw = random.Random(seed)
    moves = [draw.choice([torch.sin, torch.tanh, lambda v: v * 1.1 + 0.1, torch.sigmoid]) for _ in range(3)]
    steps, size = draw.randint(0, 4), draw.choice([(1,), (3,), (33,), (20, 2)])

    def step(s: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        n, c, w = s
        for move in moves:
            c = move(c) * w + c * 0.5
        return n + 1, c, w

    f = lambda n, c, w: fh.while_loop(lambda s: s[0] < steps, step, (n, c, w))[1].square().sum()
    args = ZERO, normal(*size, seed=seed).double(), normal(*size, seed=seed + 1).double()
    assert set(taken(check(fh.grad(f, argnums=(1, 2)), *args))) == {"lanes"}


@pytest.mark.cuda
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_gradient_on_a_gpu(name: str) -> None:
    f, args = PROGRAMS[name]
    operands: Any = [x if x.dtype is torch.int64 else x.cuda() for x in args]
    expected = optree.tree_leaves(fh.jit(f, backend="eager")(*operands))
    same(optree.tree_leaves(fh.jit(f)(*operands)), expected)
    assert {loop.lowering for loop in fh.explain(f)(*operands).loops} - {"inside"} == {"lanes"}
