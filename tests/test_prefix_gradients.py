"""Gradients of ``associative_scan`` are those of the loop in its docstring, for operators of every kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optree
import pytest
import torch
from torch import Tensor

import functorch_hops as fh
from loop_plans import check, plan, taken
from modes import captured, jitted, same, same_derivatives, while_capturing
from reference import Reference

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Operator:
    """``combine`` of two elements; ``make``: the elements from one tensor of three numbers each, and a weight."""

    combine: Callable[[Any, Any, Tensor], Any]
    make: Callable[[Tensor], Any]


def affine(f: Any, g: Any, w: Tensor) -> Any:
    return {"a": g["a"] @ f["a"], "b": g["a"] @ f["b"] + g["b"]}


def diagonal(f: Any, g: Any, w: Tensor | None = None) -> Any:
    return f[0] * g[0], f[1] * g[0] + g[1]


def segmented(f: Any, g: Any, w: Tensor) -> Any:
    """Sums that begin anew where a flag is set, and the number of elements in each."""
    (begins, total, count), (new_begins, added, more) = f, g
    joined = torch.where(new_begins, added, total + added)
    return begins | new_begins, joined, torch.where(new_begins, more, count + more)


def moments(f: Any, g: Any, w: Tensor) -> Any:
    """Mean and sum of squares of what was seen, whose number is an integer (Chan, Golub and LeVeque 1979)."""
    n, d = f["n"] + g["n"], g["mean"] - f["mean"]
    part = g["n"].to(F64) / n
    return {"n": n, "mean": f["mean"] + d * part, "squares": f["squares"] + g["squares"] + d * d * part * f["n"]}


def counted(x: Tensor) -> Any:
    return {"n": torch.ones(len(x), dtype=torch.int64), "mean": x, "squares": torch.zeros_like(x)}


def matrices(x: Tensor) -> Tensor:
    return x[:, :, None] * torch.linspace(0.5, -0.3, 3, dtype=F64) + 0.8 * torch.eye(3, dtype=F64)


def information(f: Any, g: Any, w: Tensor) -> Any:
    """Two pieces of a Kalman filter whose state is observed: matrices are solved for in each combination."""
    (a, c, j), (a2, c2, j2) = f, g
    left = torch.linalg.solve(torch.eye(3, dtype=F64) + c @ j2, torch.cat((a, c), 1))
    right = torch.linalg.solve(torch.eye(3, dtype=F64) + j2 @ c, j2 @ a)
    return a2 @ left[:, :3], a2 @ left[:, 3:] @ a2.mT + c2, a.mT @ right + j


def filters(x: Tensor) -> Any:
    m = matrices(x)
    return m, m @ m.mT, torch.eye(3, dtype=F64) + x[:, :, None] * x[:, None, :]


OPERATORS = {
    "affine maps": Operator(affine, lambda x: {"a": matrices(x), "b": x}),
    "diagonal": Operator(diagonal, lambda x: (x.tanh(), x.cos())),
    "products": Operator(lambda a, b, w: a @ b, matrices),
    "max-plus": Operator(lambda a, b, w: (a[:, :, None] + b[None]).amax(1), lambda x: matrices(x).sin()),
    "log-sum-exp": Operator(lambda a, b, w: torch.logaddexp(a, b), lambda x: x),
    "log-sum-exp of matrices": Operator(lambda a, b, w: (a[:, :, None] + b[None]).logsumexp(1), matrices),
    "segments": Operator(segmented, lambda x: (x[:, 0] > 0, x, torch.ones(len(x), dtype=torch.int64))),
    "moments": Operator(moments, counted),
    "a weight": Operator(lambda a, b, w: a + b + w[:3] * a * b, lambda x: x / 2),
    "the weight alone": Operator(lambda a, b, w: a + b + w[:3] * a * b, lambda x: x.detach() / 2),
    "complex": Operator(lambda a, b, w: a * b, lambda x: torch.complex(x, x.cos())),
    "filters": Operator(information, filters),
    "keeps the last": Operator(lambda a, b, w: b, lambda x: x),
    "keeps the first": Operator(lambda a, b, w: a, lambda x: x),
    "a loop inside": Operator(lambda a, b, w: fh.fori_loop(0, 2, lambda i, c: c + b / 2, a), lambda x: x),
    "a branch inside": Operator(lambda a, b, w: fh.cond(b.sum() > a.sum(), lambda: b, lambda: a), lambda x: x),
}
SMOOTH = ("affine maps", "diagonal", "moments", "a weight", "segments", "log-sum-exp of matrices", "filters")


def reduced(tree: Any) -> Tensor:
    """A number to which every leaf contributes in its own way."""
    leaves = [torch.view_as_real(x) if x.is_complex() else x for x in optree.tree_leaves(tree)]
    return sum((x.sin() * torch.linspace(0.5, 1.5, x.numel(), dtype=F64).reshape(x.shape)).sum() for x in leaves)


def program(name: str, scan: Callable[..., Any], **options: Any) -> Callable[[Tensor, Tensor], Tensor]:
    operator = OPERATORS[name]

    def f(x: Tensor, w: Tensor) -> Tensor:
        return reduced(scan(lambda a, b: operator.combine(a, b, w), operator.make(x), **options))

    return f


def reversed_loop(combine: Any, elems: Any) -> Any:
    flipped = lambda tree: optree.tree_map(lambda x: x.flip(0), tree)
    return flipped(Reference.associative_scan(combine, flipped(elems)))


WEIGHT = torch.tensor([0.7, -0.2, 0.4], dtype=F64)
BOTH = (0, 1)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_gradient_is_that_of_the_loop(name: str) -> None:
    for run, n in ((captured, 1), (captured, 2), (jitted, 3), (captured, 7)):
        x = draw(n, 3, seed=n)
        got = run(fh.grad(program(name, fh.associative_scan), argnums=BOTH), x, WEIGHT)
        same(got, torch.func.grad(program(name, Reference.associative_scan), argnums=BOTH)(x, WEIGHT))


@pytest.mark.parametrize("name", ["affine maps", "diagonal", "segments"])
def test_from_the_end(name: str) -> None:
    x = draw(7, 3)
    got = captured(fh.grad(program(name, fh.associative_scan, reverse=True), argnums=BOTH), x, WEIGHT)
    same(got, torch.func.grad(program(name, reversed_loop), argnums=BOTH)(x, WEIGHT))


@pytest.mark.parametrize("dim", [1, -2])
def test_along_another_dimension(dim: int) -> None:
    total = lambda outs: sum(y.sin().sum() for y in outs)
    a, x = draw(2, 5, 3).tanh(), draw(2, 5, 3, seed=1)
    got = captured(fh.grad(lambda *e: total(fh.associative_scan(diagonal, e, dim=dim)), argnums=BOTH), a, x)
    moved = lambda *e: total(Reference.associative_scan(diagonal, tuple(y.movedim(dim, 0) for y in e)))
    same(got, torch.func.grad(moved, argnums=BOTH)(a, x))


def test_many_elements() -> None:
    x = draw(64, 3)
    got = captured(fh.grad(program("affine maps", fh.associative_scan)), x, WEIGHT)
    same(got, torch.func.grad(program("affine maps", Reference.associative_scan))(x, WEIGHT))


@while_capturing
def test_no_elements(run: Any) -> None:
    gradient = run(fh.grad(program("a weight", fh.associative_scan), argnums=BOTH), draw(0, 3), WEIGHT)
    same(gradient, (torch.zeros(0, 3, dtype=F64), torch.zeros(3, dtype=F64)))


@pytest.mark.parametrize("name", SMOOTH)
def test_every_order(name: str) -> None:
    f, oracle = program(name, fh.associative_scan), program(name, Reference.associative_scan)
    same_derivatives(captured, f, oracle, draw(5, 3), WEIGHT)


TRANSFORMED = {
    "vmap(grad)": lambda t, f: t.vmap(t.grad(f, argnums=BOTH)),
    "vmap(grad), one weight": lambda t, f: lambda xs, ws: t.vmap(t.grad(f), in_dims=(0, None))(xs, ws[0]),
    "grad of vmap": lambda t, f: t.grad(lambda xs, ws: t.vmap(f)(xs, ws).square().sum(), argnums=BOTH),
    "vmap(jvp(grad))": lambda t, f: t.vmap(lambda x, w: t.jvp(t.grad(f), (x, w), (x, w))[1]),
    "hessian": lambda t, f: lambda xs, ws: t.hessian(f)(xs[0], ws[0]),
    "jacrev of jacfwd": lambda t, f: lambda xs, ws: t.jacrev(t.jacfwd(f))(xs[0], ws[0]),
}


@pytest.mark.parametrize("name", ["diagonal", "segments"])
@pytest.mark.parametrize("transform", TRANSFORMED)
def test_transforms(transform: str, name: str) -> None:
    xs, ws = draw(2, 4, 3), torch.stack([WEIGHT, 2 * WEIGHT])
    apply = TRANSFORMED[transform]
    got = captured(apply(fh, program(name, fh.associative_scan)), xs, ws)
    same(got, apply(torch.func, program(name, Reference.associative_scan))(xs, ws))


def test_second_derivatives_by_autograd() -> None:
    """Saved prefixes have derivatives: ``create_graph`` finds them."""

    def twice(run: Any, scan: Any) -> Any:
        x, w = (t.clone().requires_grad_() for t in (draw(5, 3), WEIGHT))
        first = torch.autograd.grad(run(program("affine maps", scan), x, w), x, create_graph=True)[0]
        return first, torch.autograd.grad(first.sin().sum(), x)

    expected = twice(lambda f, *args: f(*args), Reference.associative_scan)
    for run in (captured, jitted):
        same(twice(run, fh.associative_scan), expected)


def test_results_may_be_written_to() -> None:
    """What reverse mode saves is not what the user gets."""
    x = draw(5, 3).requires_grad_()

    def f(x: Tensor) -> Tensor:
        y = fh.associative_scan(torch.mul, x)
        return y.mul_(2).sum()

    same(*(torch.autograd.grad(run(f, x), x) for run in (captured, lambda f, x: 2 * x.cumprod(0).sum())))


@pytest.mark.parametrize("used", [(True, False), (False, True)])
def test_cotangents_of_some_leaves(used: tuple[bool, bool]) -> None:
    """A leaf without a cotangent gets one on the way where others are computed from it, and only there."""

    def f(a: Tensor, x: Tensor, tools: Any = fh) -> Tensor:
        outs = tools.associative_scan(diagonal, (a, x))
        return sum(y.sin().sum() for y, u in zip(outs, used) if u)

    a, x = draw(6).tanh(), draw(6, seed=1)
    same(captured(fh.grad(f, argnums=BOTH), a, x), torch.func.grad(f, argnums=BOTH)(a, x, Reference))
    body = fh.make_graph(fh.grad(f, argnums=BOTH))(a, x)
    (backward,) = [line for line in str(body).splitlines() if "= scan[" in line]
    assert "n_carry=1" in backward


def test_where_the_function_is_associative_on_a_part_only() -> None:
    """The factors of a symmetric product: for others it depends on the order, and the loop is what counts."""
    symmetric = lambda a, b: (a @ b + (a @ b).mT) / 2 + a * 0
    elems = torch.diag_embed(draw(4, 3))
    f = lambda tools: lambda e: reduced(tools.associative_scan(symmetric, e))
    got = captured(fh.grad(f(fh)), elems)
    same(got, torch.func.grad(f(Reference))(elems))
    along = torch.diagonal(got, dim1=1, dim2=2)
    same(along, torch.diagonal(fh.grad(f(fh))(elems), dim1=1, dim2=2))  # plain eager's tree


def test_the_graph_does_not_grow_with_the_length() -> None:
    gradient = fh.grad(program("affine maps", fh.associative_scan), argnums=BOTH)
    sizes = [len(str(fh.make_graph(gradient)(draw(n, 3), WEIGHT)).splitlines()) for n in (4, 64)]
    assert sizes[0] == sizes[1]


def test_an_open_length() -> None:
    """One capture for all lengths."""
    f = lambda scan: lambda x: scan(diagonal, (x.tanh(), x.cos()))[1].sin().sum()
    run = fh.jit(fh.grad(f(fh.associative_scan)), dynamic=True, backend="eager")
    for n in (4, 7, 3, 2):
        same(run(draw(n, 3)), torch.func.grad(f(Reference.associative_scan))(draw(n, 3)))
    assert run.cache_info().misses == 1


def test_a_checkpoint_around_it() -> None:
    f = program("affine maps", fh.associative_scan)
    x = draw(5, 3)
    same(jitted(fh.grad(fh.checkpoint(f)), x, WEIGHT), jitted(fh.grad(f), x, WEIGHT))


def test_half_precision_is_summed_as_a_tree() -> None:
    """In a loop a sum of ones would end at 256, where the next one is rounded off."""
    x = torch.ones(1024, dtype=torch.bfloat16)
    (first, *_) = captured(fh.grad(lambda x: fh.associative_scan(torch.add, x).sum()), x)
    assert first == 1024
    made = plan(lambda x: fh.associative_scan(torch.add, x), x)
    assert taken(list(made.loops)) == ["native"]


KERNELS = {"affine maps": "steps", "diagonal": "lanes", "filters": "steps", "log-sum-exp": "lanes", "complex": "lanes"}


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_forward_and_backward_are_kernels(name: str) -> None:
    gradient = fh.value_and_grad(program(name, fh.associative_scan), argnums=BOTH)
    assert set(taken(check(gradient, draw(7, 3), WEIGHT))) == {KERNELS[name]}


@pytest.mark.slow
def test_backward_of_a_jitted_call() -> None:
    f, oracle = program("diagonal", fh.associative_scan), program("diagonal", Reference.associative_scan)
    x, w = draw(7, 3).requires_grad_(), WEIGHT.clone().requires_grad_()
    same(*(torch.autograd.grad(loss(x, w), x) for loss in (fh.jit(f), oracle)))
    compiled = torch.compile(f, fullgraph=True)
    same(*(torch.autograd.grad(loss(x, w), x) for loss in (compiled, oracle)))
