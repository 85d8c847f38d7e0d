"""Loops as Triton kernels for open sizes: one kernel for all lengths and lanes, and right for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import optree
import pytest
import torch
from torch import Tensor
from triton_plans import moved, on_cuda

import functorch_hops as fh
from functorch_hops._torch import new_fake_mode
from functorch_hops.lowering.inductor import compile_graph, exact_code
from functorch_hops.lowering.loops.planning import planned
from loop_plans import normal, taken
from modes import same

SIZES = [(5, 7), (2, 3), (9, 200), (1, 1), (3, 0), (0, 4)]
"""Time and lanes."""


def total(xs: Tensor, c: Tensor) -> Tensor:
    last, ys = fh.scan(lambda c, x: (torch.tanh(c * 0.5 + x), c.sin()), c, xs)
    return last.sum() + ys.square().sum()


def apart(xs: Tensor, c: Tensor, reverse: bool = False) -> Any:
    """Rows a step apart, at either end."""
    before, after = torch.cat([c[None], xs])[:-1], torch.cat([xs, c[None]])[1:]
    return fh.scan(lambda c, x: (c * x[0] + x[1], c), c, (before, after), reverse=reverse)


def timed(xs: Tensor, c: Tensor) -> Any:
    """With a time that all lanes share."""
    step = lambda s, x: ((s[0] * 0.9 + 0.1, torch.sin(s[1]) * s[0] + x), s)
    return fh.scan(step, (c.new_ones(()), c), xs)


lanes = lambda t, n: (normal(t, n), normal(n, seed=2))
one = lambda t, n: (normal(n),)

PROGRAMS: dict[str, tuple[Callable[..., Any], Callable[[int, int], tuple[Tensor, ...]]]] = {
    "reversed": (lambda xs, c: fh.scan(lambda c, x: (torch.tanh(c + x), c.sin()), c, xs, reverse=True), lanes),
    "gradient": (fh.grad(total, (0, 1)), lanes),
    "a step apart": (apart, lanes),
    "a step apart, reversed": (lambda xs, c: apart(xs, c, reverse=True), lanes),
    "time that lanes share": (timed, lanes),
    "lanes of two dimensions": (
        lambda xs, c, b: fh.scan(lambda c, x: (torch.tanh(c * b + x), c * 2), c, xs),
        lambda t, n: (normal(t, n, 3), normal(n, 3, seed=2), normal(3, seed=3)),
    ),
    "a row of each lane": (
        lambda xs, c, b: fh.scan(lambda c, x: (torch.tanh(c * b[:, None] + x), c * 0.1 * c.shape[0]), c, xs),
        lambda t, n: (normal(t, n, 3), normal(n, 3, seed=2), normal(n, seed=3)),
    ),
    "half": (lambda xs, c: fh.scan(lambda c, x: (c * 0.5 + x, c), c.half(), xs.half()), lanes),
    "while under vmap": (
        # No lane of no dimensions is multiplied: torch's vmap can't where there are no lanes.
        lambda x: fh.vmap(lambda v: fh.while_loop(lambda v: v > 0.3, torch.tanh, v))(x.abs()),
        one,
    ),
    "map": (lambda xs: fh.map(lambda x: x.sin() * 2, xs), lambda t, n: (normal(t, n),)),
}


@pytest.mark.triton
@pytest.mark.parametrize("name", PROGRAMS)
def test_one_kernel_for_all_sizes(name: str) -> None:
    import triton_libdevice

    triton_libdevice.provide()
    f, arguments = PROGRAMS[name]
    made = on_cuda(f, *arguments(*SIZES[0]), dynamic=True)
    assert set(taken(list(made.loops))) == {"lanes"}
    run = moved(made.body, "cpu")
    for sizes in SIZES:
        given = arguments(*sizes)
        with np.errstate(all="ignore"):
            found = list(run(*given))
        same(found, optree.tree_leaves(fh.jit(f, backend="eager")(*given)))


def test_planning_teaches_the_trace_nothing() -> None:
    body = fh.jit(fh.grad(total, (0, 1)), dynamic=True).lower(*lanes(5, 7))._body
    body = moved(body, "cuda:0")
    facts = list(body.shape_env.guards)
    with exact_code():
        made = planned(body, {})
    assert list(body.shape_env.guards) == facts
    assert set(taken(list(made.loops))) == {"lanes"}


@pytest.mark.slow
@pytest.mark.triton
def test_inductor_calls_it_with_the_sizes() -> None:
    f = fh.grad(lambda xs, c: fh.scan(lambda c, x: (c * x, c), c, xs)[1].square().sum(), (0, 1))
    body = moved(on_cuda(f, *lanes(5, 7), dynamic=True).body, "cpu")
    mode = new_fake_mode(body.shape_env)
    run = compile_graph(body.module, [meta.fake(mode) for meta in body.inputs], {})
    for sizes in SIZES[:3]:
        given = lanes(*sizes)
        same(list(run(list(given))), list(f(*given)))


@pytest.mark.cuda
@pytest.mark.parametrize("name", PROGRAMS)
def test_one_kernel_for_all_sizes_on_a_gpu(name: str) -> None:
    f, arguments = PROGRAMS[name]
    jitted = fh.jit(f, dynamic=True)
    tolerances = {"rtol": 1e-2, "atol": 1e-2} if name == "half" else {"rtol": 1e-4, "atol": 1e-4}
    for sizes in SIZES:
        given = [x.cuda() for x in arguments(*sizes)]
        expected = optree.tree_leaves(fh.jit(f, backend="eager")(*given))
        same(optree.tree_leaves(jitted(*given)), expected, **tolerances)
