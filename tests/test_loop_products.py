"""Matrix products in the kernels of loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import functorch_hops as fh
from functorch_hops.lowering.inductor import exact_code
from functorch_hops.lowering.loops.planning import planned
from functorch_hops.passes.products import batch_products
from loop_plans import Program, check, normal, taken
from modes import same


def repeat(step: Callable[[Any], Any], carry: Any) -> Any:
    return fh.fori_loop(0, 3, lambda _, c: step(c), carry)


def cell(w: Tensor, u: Tensor, xs: Tensor) -> Any:
    """A gated recurrent cell."""

    def step(c: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        gates, given = c @ w, x @ u
        z, r = torch.sigmoid(gates + given).chunk(3, 1)[:2]
        c = (1 - z) * c + z * torch.tanh(r * gates.chunk(3, 1)[2] + given.chunk(3, 1)[2])
        return c, c.mean()

    return fh.scan(step, torch.zeros(xs.shape[1], w.shape[0]), xs)[1].sum()


def rnn(w: Tensor, c: Tensor, xs: Tensor) -> Any:
    return fh.scan(lambda c, x: (torch.tanh(c @ w + x), (c @ w.t()).sum(0)), c, xs)


PRODUCTS: dict[str, Program] = {
    "sizes of no vector": (rnn, (normal(37, 37) / 7, normal(5, 37), normal(9, 5, 37))),
    "double": (rnn, (normal(19, 19).double() / 7, normal(11, 19).double(), normal(9, 11, 19).double())),
    "vectors": (
        lambda w, c, xs: fh.scan(lambda c, x: (torch.tanh(w @ c + x), c @ x), c, xs),
        (normal(37, 37) / 7, normal(37), normal(9, 37)),
    ),
    "many vectors of columns": (
        lambda w, c, xs: fh.scan(lambda c, x: (torch.tanh(w @ c + x), c @ w), c, xs),
        (normal(200, 200) / 15, normal(200), normal(3, 200)),
    ),
    "two rows": (
        lambda w, c, xs: fh.scan(lambda c, x: (torch.tanh(c @ w + x), c), c, xs),
        (normal(120, 120) / 11, normal(2, 120), normal(3, 2, 120)),
    ),
    "rows that change": (
        lambda a, c: fh.fori_loop(0, 3, lambda _, s: (s[0] * 0.9, torch.tanh(s[0] @ s[1]), s[1] @ s[0].t()), (a, c, c)),
        (normal(37, 37) / 6, normal(37)),
    ),
    **{
        f"rows that change, {dtype}": (
            lambda a, c: fh.fori_loop(0, 3, lambda _, s: ((s[0] + 1) % 5, (s[0] @ s[1]) % 5), (a, c)),
            ((normal(10, 10) * 3).to(dtype), (normal(10) * 3).to(dtype)),
        )
        for dtype in (torch.int64, torch.int32, torch.int8)
    },
    "rows that change, double": (
        lambda a, c: fh.fori_loop(0, 3, lambda _, s: (s[0] * 0.9, torch.tanh(s[0] @ s[1])), (a, c)),
        (normal(19, 19).double() / 6, normal(19).double()),
    ),
    "rows that change, in a batch": (
        lambda a, c: fh.fori_loop(
            0, 3, lambda _, s: (s[0] * 0.9, torch.tanh(torch.einsum("bij,bj->bi", s[0], s[1]))), (a, c)
        ),
        (normal(4, 20, 20) / 5, normal(4, 20)),
    ),
    "bias": (
        lambda w, b, c, xs: fh.scan(lambda c, x: (torch.tanh(torch.nn.functional.linear(c, w, b) + x), c), c, xs),
        (normal(12, 12) / 7, normal(12), normal(3, 12), normal(9, 3, 12)),
    ),
    "batch": (
        lambda w, c, xs: fh.scan(lambda c, x: (torch.tanh(torch.bmm(c, w) + x), torch.bmm(c, c)), c, xs),
        (normal(4, 5, 5) / 7, normal(4, 5, 5), normal(9, 4, 5, 5)),
    ),
    "while": (
        lambda w, c: fh.while_loop(lambda s: (s @ w.t()).abs().max() > 0.1, lambda s: s @ w.t(), c),
        (normal(12, 12) / 7, normal(3, 12)),
    ),
    "inner loop": (
        lambda w, c, xs: fh.scan(
            lambda c, x: (fh.fori_loop(0, 3, lambda _, c: torch.tanh(c @ w.t() + x), c), c), c, xs
        ),
        (normal(12, 12) / 7, normal(3, 12), normal(9, 3, 12)),
    ),
    "gradient of a cell": (
        lambda *args: fh.value_and_grad(cell, argnums=(0, 1, 2))(*args),
        (normal(16, 48) / 4, normal(16, 48) / 4, normal(9, 3, 16)),
    ),
}


def returned(w: Tensor, u: Tensor, xs: Tensor) -> Any:
    """Fission takes the product of the rows out of the loop, whose kernel takes it back."""
    c = torch.zeros(xs.shape[1], w.shape[0], dtype=xs.dtype)
    return fh.scan(lambda c, x: (torch.tanh(c @ w + x @ u), c[0]), c, xs)


RETURNED: dict[str, Program] = {
    "few columns": (returned, (normal(13, 13) / 7, normal(40, 13) / 7, normal(7, 9, 40))),
    "in panels": (returned, (normal(189, 189) / 15, normal(200, 189) / 15, normal(7, 10, 200))),
    "in panels, double": (
        returned,
        (normal(188, 188).double() / 15, normal(200, 188).double() / 15, normal(7, 10, 200).double()),
    ),
    "turned, in panels": (
        lambda w, u, xs: returned(w.t(), u.t(), xs),
        (normal(189, 189) / 15, normal(189, 200) / 15, normal(7, 10, 200)),
    ),
}


def parted(f: Callable[..., Any], args: tuple[Tensor, ...]) -> list[str]:
    """How the loop is lowered from which fission took a product; all is compared with eager."""
    body = batch_products(fh.jit(f).lower(*args)._body)
    assert any(node.target is torch.ops.aten.mm.default for node in body.module.graph.nodes)
    with exact_code():
        made = planned(body, {})
    same(list(made.body(*args)), list(f(*args)), rtol=1e-4, atol=1e-5)
    has_product = any(node.target is torch.ops.aten.mm.default for node in made.body.module.graph.nodes)
    return [*taken(list(made.loops)), *(["product"] if has_product else [])]


@pytest.mark.parametrize("name", RETURNED)
def test_products_return_to_a_loop_that_multiplies(name: str) -> None:
    assert parted(*RETURNED[name]) == ["steps"]


def test_a_product_of_rows_of_another_size_stays() -> None:
    """Each row of the product is a part of a row of the loop."""

    def halves(w: Tensor, u: Tensor, c: Tensor, xs: Tensor) -> Any:
        rows = (xs.reshape(-1, u.shape[0]) @ u).reshape(xs.shape)
        return fh.scan(lambda c, x: (torch.tanh(c @ w + x), c[0]), c, rows)

    assert parted(halves, (normal(16, 16) / 7, normal(8, 8) / 7, normal(8, 16), normal(5, 8, 16))) == [
        "steps",
        "product",
    ]


def test_a_loop_over_lanes_stays_one() -> None:
    gated = lambda u, xs: fh.scan(lambda c, x: (c * torch.sigmoid(x @ u), c), torch.ones(9, 13), xs)
    assert parted(gated, (normal(40, 13) / 7, normal(7, 9, 40))) == ["lanes", "product"]


def layers(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
    return fh.scan(lambda x, row: (x + torch.tanh(x @ row[0]) @ row[1], None), x, (w, v))[0].sum()


TURNED: dict[str, Program] = {
    "carry": (lambda w, c: repeat(lambda c: torch.tanh(w @ c.t()), c), (normal(5, 5), normal(5, 5))),
    "result": (lambda w, c: repeat(lambda c: (c @ w).t(), c), (normal(5, 5), normal(5, 5))),
    "batch": (lambda w, c: repeat(lambda c: torch.tanh(w.mT @ c.mT), c), (normal(4, 5, 5), normal(4, 5, 5))),
    "batch of constants": (lambda w, c: repeat(lambda c: c @ w.mT, c), (normal(4, 5, 5), normal(4, 5, 5))),
    "parts of constants": (
        lambda w, c: repeat(lambda c: c @ w[:, :5, 2:7].mT, c),
        (normal(4, 8, 8), normal(4, 5, 5)),
    ),
    "one factor of many": (
        lambda w, c: fh.vmap(lambda c: repeat(lambda c: torch.tanh(c @ w.t()), c))(c),
        (normal(5, 5), normal(6, 5, 5)),
    ),
    "bias of columns": (
        lambda w, b, c: repeat(lambda c: torch.tanh(torch.addmm(b[:, None], c, w.t())), c),
        (normal(5, 5), normal(5), normal(5, 5)),
    ),
    "biases": (
        lambda w, b, c: repeat(lambda c: torch.tanh(torch.baddbmm(b, c, w.mT)), c),
        (normal(4, 5, 5), normal(5), normal(4, 5, 5)),
    ),
    "vector": (lambda w, c: repeat(lambda c: torch.tanh(w @ c[:, None])[:, 0], c), (normal(37, 37), normal(37))),
    "carried and vector": (
        lambda w, c: repeat(lambda s: (s[0].t() * 0.9, torch.tanh(s[0].t() @ s[1][:, None])[:, 0]), (w, c)),
        (normal(37, 37), normal(37)),
    ),
    "branches": (
        lambda w, c: repeat(lambda c: fh.cond(c.sum() > 0, lambda c: c @ w.t(), lambda c: c @ w, c), c),
        (normal(5, 5), normal(5, 5)),
    ),
    "gradient of layers": (
        lambda *args: fh.value_and_grad(layers, argnums=(0, 1, 2))(*args),
        (normal(6, 37), normal(3, 37, 37) / 6, normal(3, 37, 37, seed=2) / 6),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TURNED)
def test_factors_laid_out_by_columns(name: str) -> None:
    f, args = TURNED[name]
    assert set(taken(check(f, *args, rtol=1e-4, atol=1e-5))) == {"steps"}


@pytest.mark.slow
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_in_a_body(name: str) -> None:
    f, args = PRODUCTS[name]
    tolerances = {} if args[0].dtype is torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    assert set(taken(check(f, *args, **tolerances))) == {"steps"}
