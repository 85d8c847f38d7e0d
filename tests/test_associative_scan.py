"""``associative_scan``: any length, dimension and direction, operators that do not commute, and its derivatives."""

from __future__ import annotations

from typing import Any, NamedTuple

import optree
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import functorch_hops as fh
from modes import every_mode
from reference import Reference

F64 = torch.float64
prefixes = Reference.associative_scan


class Affine(NamedTuple):
    """``x -> a @ x + b``."""

    a: Tensor
    b: Tensor


def after(f: Affine, g: Affine) -> Affine:
    """First ``f``, then ``g``: associative, not commutative."""
    return Affine(g.a @ f.a, g.a @ f.b + g.b)


def linear_step(f: Any, g: Any) -> Any:
    """The same elementwise, for a diagonal ``a``."""
    return f[0] * g[0], f[1] * g[0] + g[1]


def affine_maps(n: int) -> Affine:
    generator = torch.Generator().manual_seed(n)
    draw = lambda *shape: torch.randn(shape, dtype=F64, generator=generator)
    return Affine(0.5 * draw(n, 2, 2), draw(n, 2))


def flipped(tree: Any) -> Any:
    return optree.tree_map(lambda t: t.flip(0), tree)


def loss(scan: Any) -> Any:
    return lambda elems: sum((leaf.cos() * leaf).sum() for leaf in scan(elems))


@every_mode
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 8])
def test_lengths_and_directions(run: Any, n: int, reverse: bool) -> None:
    """pytorch/pytorch 137943: reverse means flip, scan, flip; for operators that do not commute too."""
    elems = affine_maps(n)
    scan = lambda e: fh.associative_scan(after, e, reverse=reverse)
    oracle = lambda e: flipped(prefixes(after, flipped(e))) if reverse else prefixes(after, e)
    torch.testing.assert_close(tuple(run(scan, elems)), tuple(oracle(elems)))
    gradient, expected = run(fh.grad(loss(scan)), elems), torch.func.grad(loss(oracle))(elems)
    torch.testing.assert_close(tuple(gradient), tuple(expected))


ORDERS = {
    "jvp": lambda f: lambda e, t: fh.jvp(f, (e,), (t,))[1],
    "jvp(grad)": lambda f: lambda e, t: fh.jvp(fh.grad(loss(f)), (e,), (t,))[1],
    "grad(grad)": lambda f: lambda e, t: fh.grad(loss(fh.grad(loss(f))))(e),
    "vmap(grad)": lambda f: lambda e, t: fh.vmap(fh.grad(loss(f)))(_stacked(e, t)),
}


@every_mode
@pytest.mark.parametrize("order", ORDERS)
def test_derivatives(run: Any, order: str) -> None:
    scan, oracle = lambda e: fh.associative_scan(after, e), lambda e: prefixes(after, e)
    arguments = affine_maps(5), affine_maps(6)
    arguments = arguments[0], optree.tree_map(lambda t: t[:5], arguments[1])
    got, expected = run(ORDERS[order](scan), *arguments), ORDERS[order](oracle)(*arguments)
    torch.testing.assert_close(tuple(got), tuple(expected))


def _stacked(*trees: Affine) -> Affine:
    return optree.tree_map(lambda *leaves: torch.stack(leaves), *trees)


@every_mode
def test_any_dimension(run: Any) -> None:
    x = torch.randn(3, 5, 2, dtype=F64)
    for dim in (0, 1, 2, -1):
        torch.testing.assert_close(run(lambda x, dim=dim: fh.associative_scan(torch.add, x, dim=dim), x), x.cumsum(dim))


@every_mode
def test_closed_over_weights(run: Any) -> None:
    """The gradient of what ``fn`` closes over, here of a twisted addition that is associative for every weight."""
    x, w = torch.rand(6, dtype=F64), torch.tensor(0.7, dtype=F64)
    f = lambda scan: lambda w, x: (scan(lambda a, b: a + b + w * a * b, x) ** 2).sum()
    got = run(fh.grad(f(fh.associative_scan), argnums=(0, 1)), w, x)
    torch.testing.assert_close(got, torch.func.grad(f(prefixes), argnums=(0, 1))(w, x))


@every_mode
def test_complex_elements(run: Any) -> None:
    """A diagonal state-space model: h = a * h + x with complex a."""
    a = torch.polar(torch.full((6,), 0.9, dtype=F64), torch.linspace(0, 2, 6, dtype=F64))
    x = torch.randn(6, dtype=torch.complex128)
    f = lambda scan: lambda a, x: scan(linear_step, (a, x))[1].abs().sum()
    got = run(fh.grad(f(fh.associative_scan), argnums=(0, 1)), a, x)
    torch.testing.assert_close(got, torch.func.grad(f(prefixes), argnums=(0, 1))(a, x))


class _Largest(TorchDispatchMode):
    """The largest tensor that any operator makes, and the number of elements made in all."""

    largest = total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in optree.tree_leaves(out):
            if isinstance(t, Tensor):
                self.largest = max(self.largest, t.numel())
                self.total += t.numel()
        return out


def test_pt_172568_backward_takes_memory_like_the_inputs() -> None:
    """No Jacobian of an element: for elements of size d that would be n * d * d numbers."""
    n, d = 64, 256
    a, x = torch.rand(n, d, dtype=F64), torch.randn(n, d, dtype=F64)
    gradient = fh.grad(lambda a, x: fh.associative_scan(linear_step, (a, x))[1].sum())
    graph = fh.make_graph(gradient)(a, x)
    with _Largest() as made:
        graph(a, x)
    assert made.largest <= 2 * n * d
    assert made.total <= 150 * n * d  # all that was ever made, views included
