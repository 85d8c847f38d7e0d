"""Kernels of loops for open sizes and for empty tensors: one kernel for all lengths and lanes, and right for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from torch import Tensor

import functorch_hops as fh
from functorch_hops.lowering import inductor
from functorch_hops.lowering.inductor import exact_code
from functorch_hops.lowering.loops.operator import effectful_kernel, loop_kernel
from functorch_hops.lowering.loops.planning import planned
from functorch_hops.lowering.loops.plans import Plan
from functorch_hops.lowering.loops.sizes import OpenSize, aligned, largest, quotient, ratio, size_of
from loop_plans import check, normal, taken
from modes import same

SIZES = [(5, 7), (2, 3), (9, 200), (70, 65)]
"""Time and lanes."""


def decay(xs: Tensor, c: Tensor) -> Any:
    return fh.scan(lambda c, x: (torch.tanh(c * 0.5 + x), c.sin()), c, xs, reverse=True)


def total(xs: Tensor, c: Tensor) -> Tensor:
    last, ys = fh.scan(lambda c, x: (torch.tanh(c * 0.5 + x), c.sin()), c, xs)
    return last.sum() + ys.square().sum()


def recurrent(xs: Tensor, h: Tensor, w: Tensor) -> Any:
    """The rows of the product are open."""
    return fh.scan(lambda h, x: (torch.tanh(h @ w + x), h.sum(-1)), h, xs)


def between(xs: Tensor, c: Tensor) -> Any:
    """All three sizes of the product are open."""
    return fh.scan(lambda c, x: (torch.tanh(x[:, None] * c @ c.mT), x), c[:, None] + c[None], xs)


def doubled_until(x: Tensor) -> Tensor:
    return fh.while_loop(lambda v: v.sum() < 20, lambda v: v * 1.5 + 0.1 * x.shape[0], x.abs() + 0.1)


def smaller(x: Tensor) -> Tensor:
    """Every lane ends by itself."""
    return fh.vmap(lambda v: fh.while_loop(lambda v: v > 0.1, lambda v: v * 0.7, v))(x.abs())


def nested(xs: Tensor, c: Tensor) -> Any:
    def outer(c: Tensor, x: Tensor) -> Any:
        return fh.fori_loop(0, 3, lambda i, c: c * 0.9 + x.flip(0), c), c.cumsum(0)

    return fh.scan(outer, c, xs)


def chosen(xs: Tensor, c: Tensor) -> Any:
    return fh.scan(lambda c, x: (fh.cond(x.sum() > 0, lambda c: c + x, lambda c: c.softmax(0), c), c), c, xs)


def solved(xs: Tensor, c: Tensor) -> Any:
    """As many small systems as there are lanes."""
    system = torch.eye(3) * 4 + c[:, None, None].sin()
    return fh.scan(lambda b, x: (torch.linalg.solve(system, b + x[:, None]), b.sum(1)), system[:, 0], xs)


lanes = lambda t, n: (normal(t, n), normal(n, seed=2))
one = lambda t, n: (normal(n),)

PROGRAMS: dict[str, tuple[Callable[..., Any], Callable[[int, int], tuple[Tensor, ...]], list[str]]] = {
    "scan": (decay, lanes, ["lanes"]),
    "gradient": (fh.grad(total, (0, 1)), lanes, ["lanes", "lanes"]),
    "product": (
        recurrent,
        lambda t, n: (normal(t, n, 6), normal(n, 6, seed=2), normal(6, 5)[:, [0, 1, 2, 3, 4, 0]]),
        ["steps"],
    ),
    "product of open sizes": (between, lanes, ["steps"]),
    "lanes of two dimensions": (
        lambda xs, c, b: fh.scan(lambda c, x: (torch.tanh(c * b + x), c * 2), c, xs),
        lambda t, n: (normal(t, n, 3), normal(n, 3, seed=2), normal(3, seed=3)),
        ["lanes"],
    ),
    "carry read elsewhere": (lambda xs, c: fh.scan(lambda c, x: (c.roll(1, 0) + x, c), c, xs), lanes, ["steps"]),
    "reduction": (lambda xs, c: fh.scan(lambda c, x: (c - c.mean() + x, c.amax()), c, xs), lanes, ["steps"]),
    "half": (lambda xs, c: fh.scan(lambda c, x: (c * 0.5 + x, c), c.bfloat16(), xs.bfloat16()), lanes, ["lanes"]),
    "while_loop": (doubled_until, one, ["steps"]),
    "vmap(while_loop)": (smaller, one, ["lanes"]),
    "associative_scan": (lambda x: fh.associative_scan(torch.maximum, x), lambda t, n: (normal(t, n),), ["lanes"]),
    "map": (lambda xs: fh.map(lambda x: x.sin().sum(), xs), lambda t, n: (normal(t, n),), ["steps"]),
    "nested": (nested, lanes, ["steps", "lanes"]),
    "cond": (chosen, lanes, ["steps"]),
    "solve": (solved, lanes, ["steps"]),
}


def plan(f: Callable[..., Any], *args: Any) -> Plan:
    """With kernels, of which the trace learns nothing about its sizes."""
    body = fh.jit(f, dynamic=True).lower(*args)._body
    facts = list(body.shape_env.guards)
    with exact_code():
        made = planned(body, {})
    assert list(body.shape_env.guards) == facts
    return made


@pytest.mark.parametrize(
    "name", ["gradient", "product", pytest.param("nested", marks=pytest.mark.slow)]
    + [pytest.param(n, marks=pytest.mark.slow) for n in PROGRAMS if n not in ("gradient", "product", "nested")]
)  # fmt: skip
def test_one_kernel_for_all_sizes(name: str) -> None:
    f, arguments, expected = PROGRAMS[name]
    made = plan(f, *arguments(*SIZES[0]))
    assert [loop.taken for loop in made.loops][: len(expected)] == expected, made.loops
    assert not {loop_kernel, effectful_kernel}.isdisjoint(node.target for node in made.body.module.graph.nodes)
    for sizes in SIZES:
        given = arguments(*sizes)
        wanted = optree.tree_leaves(fh.jit(f, backend="eager")(*given))
        same(list(made.body(*given)), wanted, rtol=1e-4, atol=1e-4)


def test_sizes_of_zero_and_one() -> None:
    """A trace of open sizes is not used for these, but an exported program may be."""
    f, arguments, _ = PROGRAMS["scan"]
    made = plan(f, *arguments(5, 7))
    for sizes in [(0, 7), (1, 7), (5, 1), (5, 0), (1, 1), (0, 0)]:
        given = arguments(*sizes)
        same(list(made.body(*given)), optree.tree_leaves(f(*given)))


@pytest.mark.slow
def test_one_compilation_for_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    original: Any = inductor.compile_graph
    monkeypatch.setattr(inductor, "compile_graph", lambda *args: (compiled.append(args), original(*args))[1])
    f, arguments, _ = PROGRAMS["gradient"]
    jitted = fh.jit(f, dynamic=True)
    for sizes in SIZES:
        given = arguments(*sizes)
        same(jitted(*given), f(*given), rtol=1e-4, atol=1e-4)
    assert len(compiled) == 1
    assert {loop.lowering for loop in fh.explain(jitted)(*given).loops} == {"lanes"}


@pytest.mark.slow
def test_under_torch_compile() -> None:
    """The kernel's arguments are those sizes that Dynamo left open."""
    compiled = torch.compile(total, dynamic=True, fullgraph=True)
    for sizes in SIZES:
        given = [x.requires_grad_() for x in lanes(*sizes)]
        got = torch.autograd.grad(compiled(*given), given)
        same(got, torch.autograd.grad(total(*given), given), rtol=1e-4, atol=1e-4)


def test_what_needs_a_number_has_no_kernel() -> None:
    """The rows of a system decide on the code."""
    f = lambda xs, c: fh.scan(lambda c, x: (torch.linalg.solve(xs.mT @ xs + torch.eye(c.shape[0]), c), x), c, xs)
    (loop,) = plan(f, *lanes(5, 7)).loops
    assert loop.taken == "native" and "open" in str(loop.reason)


def pairs(x: Tensor) -> Tensor:
    """So many steps as there are pairs: half of an open size."""
    return x.unflatten(0, (x.shape[0] // 2, 2))


def paired(x: Tensor) -> Any:
    return fh.scan(lambda c, row: (c + row, c * row), torch.zeros(2), pairs(x))


def shaken(x: Tensor) -> Any:
    return fh.scan(lambda c, row: (c + torch.rand(()) * 0 + row, c * row), torch.zeros(2), pairs(x))


@pytest.mark.parametrize("f", [paired, shaken])
def test_a_length_that_is_made_of_an_open_size_has_no_kernel(f: Callable[..., Any]) -> None:
    made = plan(f, normal(8))
    assert made.loops[0].taken == "native" and "(s" in str(made.loops[0].reason)
    made.body.module.graph.lint()


@pytest.mark.parametrize("f", [paired, pytest.param(shaken, marks=pytest.mark.slow)])
def test_stacks_of_such_a_length(f: Callable[..., Any]) -> None:
    jitted = fh.jit(f, dynamic=True)
    for n in (8, 6, 12):
        same(jitted(normal(n)), paired(normal(n)))
    assert jitted.cache_info().misses == 1


EMPTY = {
    "no lanes": (decay, lanes(3, 0)),
    "an empty carry beside another": (
        lambda xs, c: fh.scan(lambda c, x: ((c[0] + x, c[1] * 2), c[1]), (c, c[:0]), xs),
        lanes(3, 4),
    ),
    "an empty row": (lambda xs, c: fh.scan(lambda c, x: (c + 1, x), c, xs[:, :0]), lanes(3, 4)),
    "a sum of nothing": (lambda xs, c: fh.scan(lambda c, x: (c + x.sum(), c), c, xs[:, :0]), lanes(3, 4)),
    "a loop of no step in a loop": (
        lambda xs, c: fh.scan(lambda c, x: (fh.scan(lambda c, x: (c * x, None), c, x[:0])[0] + x, c), c, xs),
        lanes(3, 4),
    ),
    "an empty operand of a while": (
        lambda x: fh.while_loop(lambda s: s[0].sum() < 9, lambda s: (s[0] * 2 + 1, s[1].sin()), (x.abs(), x[:0])),
        one(3, 4),
    ),
}


@pytest.mark.parametrize("name", EMPTY)
def test_empty_tensors(name: str) -> None:
    f, arguments = EMPTY[name]
    assert "native" not in taken(check(f, *arguments))


def test_expressions_of_sizes() -> None:
    from sympy import Symbol

    n = size_of(Symbol("n", integer=True, positive=True), 10)
    assert isinstance(n, OpenSize)
    at = lambda size, value: int(size.expression.subs(n.expression, value)) if isinstance(size, OpenSize) else size
    for value in (2, 15, 16, 17, 100):
        assert at(aligned(n * 4 + 1, 64), value) == -(-(value * 4 + 1) // 64) * 64
        assert at(quotient(n + 3, 4), value) == (value + 3) // 4
        assert at(largest([n, 20, n - 1]), value) == max(value, 20)
    assert ratio(n * n * 6, n * 2) == n * 3
    assert ratio(n, 2) is None and ratio(6, 4) is None
    assert n + 1 - n == 1 and n * 2 != n * 3
    assert (str(n), str(n - 1)[0], aligned(65, 64)) == ("n", "(", 128)
