"""What passes make of backward loops: looked at as graphs, and compared with plain loops."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from torch import Tensor, fx

import functorch_hops as fh
from functorch_hops.ir.subgraph import Subgraph, params_of
from functorch_hops.lowering.inductor import exact_code
from functorch_hops.lowering.loops.operator import loop_kernel
from functorch_hops.lowering.loops.planning import planned
from functorch_hops.lowering.loops.plans import Plan
from functorch_hops.passes.hoisting import hoist_loops
from functorch_hops.passes.products import batch_products
from modes import same

N, STEPS = 5, 6

aten = torch.ops.aten


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


C, XS = normal(N), normal(STEPS, N, seed=1)


def squares(f: Callable[..., Any]) -> Callable[..., Tensor]:
    return lambda *args: sum((y.square() * (i + 1)).sum() for i, y in enumerate(optree.tree_leaves(f(*args))))


def gradient(f: Callable[..., Any], n: int) -> Callable[..., Any]:
    return fh.value_and_grad(squares(f), argnums=tuple(range(n)))


def graph(f: Callable[..., Any], *args: Tensor) -> Subgraph:
    """The graph that is compiled, before its loops become kernels."""
    return batch_products(hoist_loops(fh.jit(f).lower(*args)._body))


def loops(body: Subgraph) -> list[Any]:
    found = [params_of(node, body.module) for node in body.module.graph.nodes]
    return [params for params in found if params is not None]


def plan(f: Callable[..., Any], *args: Tensor) -> Plan:
    with exact_code():
        return planned(graph(f, *args), {})


def calls(body: Subgraph, target: Any) -> list[fx.Node]:
    return [node for node in body.module.graph.nodes if node.target is target]


def targets(body: Subgraph) -> set[Any]:
    return {node.target for node in body.module.graph.nodes}


def python_scan(step: Callable[[Any, Any], Any], c: Any, xs: Any, reverse: bool = False) -> Any:
    ys = []
    for t in range(STEPS)[:: -1 if reverse else 1]:
        c, y = step(c, optree.tree_map(lambda x, t=t: x[t], xs))
        ys.append(y)
    return c, optree.tree_map(lambda *rows: torch.stack(rows[:: -1 if reverse else 1]), *ys)


def check(f: Callable[..., Any], *args: Tensor) -> Plan:
    """Value and gradients of ``f(scan, *args)`` as kernels and by Inductor, against plain loops under autograd."""
    leaves = [x.clone().requires_grad_() for x in args]
    value = squares(lambda *xs: f(python_scan, *xs))(*leaves)
    expected = value.detach(), torch.autograd.grad(value, leaves)
    g = gradient(lambda *xs: f(fh.scan, *xs), len(args))
    made = plan(g, *args)
    tolerances = {"rtol": 1e-4, "atol": 1e-5}
    same(list(made.body(*args)), optree.tree_leaves(expected), **tolerances)
    same(fh.jit(g)(*args), expected, **tolerances)
    leaves = [x.clone().requires_grad_() for x in args]
    value = squares(fh.jit(lambda *xs: f(fh.scan, *xs)))(*leaves)
    same((value.detach(), torch.autograd.grad(value, leaves)), expected, **tolerances)
    return made


# ---------------------------------------------------------------------------------------------------------------------
# sums that are reduced after the loop


def decayed(scan: Any, c: Tensor, a: Tensor, xs: Tensor) -> Any:
    return scan(lambda c, x: (torch.tanh(c * a + x), c * a), c, xs)


def biased(scan: Any, c: Tensor, w: Tensor, b: Tensor, xs: Tensor) -> Any:
    return scan(lambda c, x: (torch.tanh(c @ w + x + b), c), c, xs)[0]


def test_the_gradient_of_a_number_is_summed_lane_by_lane() -> None:
    body = graph(gradient(lambda *args: decayed(fh.scan, *args), 2), C, torch.tensor(0.9), XS)
    _, backward = loops(body)
    assert {meta.shape for meta in backward.body.outputs} == {(N,)}
    assert aten.sum.default not in targets(backward.body) and aten.sum.default in targets(body)


def test_the_gradient_of_a_bias_is_the_sum_of_a_stack() -> None:
    args = normal(3, 8), normal(8, 8) / 4, normal(8), normal(STEPS, 3, 8)
    body = graph(gradient(lambda *args: biased(fh.scan, *args), 4), *args)
    _, backward = loops(body)
    assert backward.n_carry == 1
    assert aten.sum.dim_IntList not in targets(backward.body) and aten.sum.dim_IntList in targets(body)


def test_a_bias_of_rows_that_nobody_stacks_is_summed_where_it_is() -> None:
    """Where a product reads the other lanes anyway, a wider carry would be of no use."""
    args = normal(8, 8) / 4, normal(8), normal(STEPS, 3, 8)
    f = lambda w, b, xs: fh.scan(lambda c, x: ((c @ w).sin() * b + x, None), xs[0] * 2, xs)[0]
    _, backward = loops(graph(fh.grad(squares(f), argnums=1), *args))
    assert backward.body.outputs[-1].shape == (8,)


SUMS: dict[str, tuple[Callable[..., Any], list[Tensor]]] = {
    "a number": (decayed, [C, torch.tensor(0.9), XS]),
    "a number twice": (
        lambda scan, c, a, xs: scan(lambda c, x: (torch.sin(c * a) * a + x, None), c, xs)[0],
        [C, torch.tensor(0.9), XS],
    ),
    "numbers of another shape": (
        lambda scan, c, a, b, xs: scan(lambda c, x: (torch.sin(c * a) + x * b, c), c, xs),
        [normal(3, N), normal(N), normal(3, 1), normal(STEPS, 3, N)],
    ),
    "a bias": (biased, [normal(3, 8), normal(8, 8) / 4, normal(8), normal(STEPS, 3, 8)]),
    "a sum in the program": (
        lambda scan, c, xs: scan(lambda c, x: ((torch.sin(c[0] + x), c[1] + (c[0] * x).sum()), c[0]), (c, c.sum()), xs),
        [C, XS],
    ),
    "a sum that is read": (
        lambda scan, c, xs: scan(lambda c, x: ((torch.sin(c[0] + x), c[1] + c[0].sum()), c[1]), (c, c.sum()), xs),
        [C, XS],
    ),
}


@pytest.mark.parametrize("name", SUMS)
def test_late_sums_mean_the_same(name: str) -> None:
    f, args = SUMS[name]
    g = gradient(lambda *xs: f(fh.scan, *xs), len(args))
    leaves = [x.double().requires_grad_() for x in args]
    value = squares(lambda *xs: f(python_scan, *xs))(*leaves)
    same(fh.jit(g, backend="eager")(*(x.double() for x in args)), (value.detach(), torch.autograd.grad(value, leaves)))


# ---------------------------------------------------------------------------------------------------------------------
# one stack for a carry before and after each step


def recurrent(scan: Any, c: Tensor, w: Tensor, xs: Tensor) -> Any:
    return scan(lambda c, x: (torch.tanh(c @ w + x), None), c, xs)[0]


def test_what_a_step_carries_on_is_not_computed_again() -> None:
    """The next step's stack holds ``tanh``: backward reads it there, and no x."""
    f = fh.grad(lambda c, a, xs: decayed(fh.scan, c, a, xs)[1].sum(), argnums=(0, 1))
    forward, backward = loops(graph(f, C, torch.tensor(0.9), XS))
    assert aten.tanh.default in targets(forward.body) and aten.tanh.default not in targets(backward.body)
    assert backward.n_xs == 3  # the carries before and after each step, the cotangents


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [False, True])
def test_the_carry_before_and_after_each_step_is_one_stack(reverse: bool) -> None:
    def f(c: Tensor, xs: Tensor) -> Tensor:
        step = lambda c, x: (torch.tanh(c + x), (c, torch.tanh(c + x)))
        before, after = fh.scan(step, c, xs, reverse=reverse)[1]
        return before + after

    made = plan(f, C, XS)
    (kernel,) = calls(made.body, loop_kernel)
    assert [tuple(x.shape) for x in kernel.meta["val"]] == [(N,), (STEPS + 1, N)]
    same(made.body(C, XS)[0], fh.jit(f, backend="eager")(C, XS))


@pytest.mark.slow
def test_a_stack_of_the_graph_is_read_a_step_apart() -> None:
    def f(c: Tensor, ys: Tensor) -> Any:
        before = torch.cat([c.unsqueeze(0), ys])[:-1]
        after = torch.cat([ys, c.unsqueeze(0)])[1:]
        return fh.scan(lambda c, x: (c * x[0] + x[1], c), torch.ones(N), (before, after))

    made = plan(f, C, XS)
    assert not {aten.cat.default, aten.slice.Tensor} & targets(made.body)
    same(list(made.body(C, XS)), optree.tree_leaves(fh.jit(f, backend="eager")(C, XS)))


@pytest.mark.slow
def test_both_stacks_as_results_are_two() -> None:
    f = lambda c, xs: fh.scan(lambda c, x: (torch.tanh(c + x), (c, torch.tanh(c + x))), c, xs)[1]
    made = plan(f, C, XS)
    first, second = made.body(C, XS)
    assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()
    same((first, second), fh.jit(f, backend="eager")(C, XS))


STACKS: dict[str, tuple[Callable[..., Any], list[Tensor]]] = {
    "lanes": (lambda scan, c, xs: scan(lambda c, x: (torch.tanh(c * 0.9 + x), c), c, xs), [C, XS]),
    "lanes, reverse": (
        lambda scan, c, xs: scan(lambda c, x: (torch.tanh(c * 0.9 + x), c), c, xs, reverse=True),
        [C, XS],
    ),
    "one lane": (
        lambda scan, c, xs: scan(lambda c, x: (torch.tanh(c * 0.9 + x), c), c, xs),
        [torch.tensor(0.3), normal(STEPS)],
    ),
    "many lanes": (
        lambda scan, c, xs: scan(lambda c, x: (torch.tanh(c * 0.9 + x), c), c, xs),
        [normal(1500), normal(STEPS, 1500)],
    ),
    "product": (recurrent, [normal(3, 8), normal(8, 8) / 4, normal(STEPS, 3, 8)]),
    "product, reverse": (
        lambda scan, c, w, xs: scan(lambda c, x: (torch.tanh(c @ w + x), c), c, xs, reverse=True),
        [normal(3, 8), normal(8, 8) / 4, normal(STEPS, 3, 8)],
    ),
    "carries that change places": (
        lambda scan, c, d, xs: scan(lambda c, x: ((c[1], torch.tanh(c[0] * c[1] + x)), c), (c, d), xs),
        [C, C.cos(), XS],
    ),
    "carries of one next value": (
        lambda scan, c, d, xs: scan(lambda c, x: ((torch.tanh(c[0] * c[1] + x),) * 2, c), (c, d), xs),
        [C, C.cos(), XS],
    ),
    "a carry that is the x": (
        lambda scan, c, xs: scan(lambda c, x: ((x, torch.sin(c[0] * c[1])), c[1]), (c, c), xs),
        [C, XS],
    ),
    "rows made before": (
        lambda scan, c, xs: scan(lambda c, x: (torch.tanh(c * x), c), c, xs.sin() * 2 + xs[:, :1]),
        [C, XS],
    ),
    "a loop in a loop": (
        lambda scan, c, xs: scan(
            lambda c, x: (scan(lambda d, y: (torch.tanh(d * y + x), d), c, xs * x)[0], c.sin()), c, xs
        ),
        [C, XS],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STACKS)
def test_gradients_by_kernels(name: str) -> None:
    f, args = STACKS[name]
    made = check(f, *args)
    assert made.loops and "native" not in [report.taken for report in made.loops]


@pytest.mark.slow
@pytest.mark.parametrize("name", SUMS)
def test_late_sums_by_kernels(name: str) -> None:
    f, args = SUMS[name]
    made = check(f, *args)
    assert "native" not in [report.taken for report in made.loops]


def test_a_gradient_by_kernels() -> None:
    f, args = SUMS["a number"]
    assert [report.taken for report in check(f, *args).loops] == ["lanes", "lanes"]


# ---------------------------------------------------------------------------------------------------------------------
# producers of rows


def rows_of(f: Callable[[Tensor, Tensor], Tensor]) -> Plan:
    """The plan of a loop over rows that ``f`` makes of ``(STEPS, N)`` and a number."""
    g = lambda c, xs, a: fh.scan(lambda c, x: (torch.sin(c + x), c), c, f(xs, a))
    args = C, XS, torch.tensor(0.5)
    made = plan(g, *args)
    same(list(made.body(*args)), optree.tree_leaves(fh.jit(g, backend="eager")(*args)))
    return made


SUNK: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pointwise": lambda xs, a: (xs * 2 + a).sin() * xs,
    "expanded": lambda xs, a: a.expand(STEPS, N) * xs,
    "of one value": lambda xs, a: torch.full((STEPS, N), 2.0) * a,
    "reshaped": lambda xs, a: (xs.reshape(STEPS, 1, N) * 2).reshape(STEPS, N),
    "converted": lambda xs, a: (xs.double() * a).float(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SUNK)
def test_producers_of_rows_are_sunk(name: str) -> None:
    made = rows_of(SUNK[name])
    assert targets(made.body) <= {loop_kernel, operator.getitem, *(n.target for n in made.body.input_nodes()), "output"}


STAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "another row": lambda xs, a: xs.flip(0) * 1,
    "a row for all steps": lambda xs, a: xs + xs[0],
    "an element for all lanes": lambda xs, a: xs * xs[:, :1],
    "what others read": lambda xs, a: (xs * 2).add(0 * (xs * 2).sum()),
    "random numbers": lambda xs, a: torch.rand_like(xs) * 0 + xs.cumsum(0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STAYS)
def test_what_reads_other_rows_is_not_sunk(name: str) -> None:
    others = targets(rows_of(STAYS[name]).body) - {loop_kernel, operator.getitem, "output"}
    assert any("aten" in str(target) for target in others)


@pytest.mark.slow
def test_rows_that_are_numbers() -> None:
    """A row is a 0-d tensor then, which promotes other than a vector does."""
    g = lambda xs, a: fh.scan(lambda c, x: (c * 0.5 + x, c), torch.zeros(()), xs * a)
    args = normal(STEPS), torch.tensor(1 / 3, dtype=torch.float64)
    made = plan(g, *args)
    same(list(made.body(*args)), optree.tree_leaves(fh.jit(g, backend="eager")(*args)))
