"""Operators of a library in the steps of compiled loops: composed of others they are the same, in kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import functorch_hops as fh
from functorch_hops.lowering.loops.composed import composed
from loop_plans import check, normal, plan, taken
from modes import same

aten = torch.ops.aten
FLASH = aten._scaled_dot_product_flash_attention_for_cpu.default
FLASH_BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def as_library(operator: Any, *args: Any, **kwargs: Any) -> None:
    expected = operator(*args, **kwargs)
    got = composed()[operator](*args, **kwargs)
    assert [x.dtype for x in as_tuple(got)] == [x.dtype for x in as_tuple(expected)]
    same(got, expected, equal_nan=True)


def as_tuple(x: Any) -> tuple[Tensor, ...]:
    return (x,) if isinstance(x, Tensor) else tuple(x)


def masks(rows: int, columns: int) -> list[Tensor | None]:
    hiding = torch.zeros(rows, columns)
    hiding[0, :-1] = hiding[-1, 0] = -math.inf
    return [None, normal(2, 1, rows, columns, seed=3), hiding]


@pytest.mark.parametrize("sizes", [(5, 5), (1, 7), (6, 3)], ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
def test_attention(sizes: tuple[int, int], is_causal: bool) -> None:
    rows, columns = sizes
    query, key, value = normal(2, 3, rows, 8), normal(2, 3, columns, 8, seed=1), normal(2, 3, columns, 8, seed=2)
    for mask in masks(rows, columns)[: 1 if is_causal else 3]:
        settings = {"attn_mask": mask, "scale": 0.3}
        as_library(FLASH, query, key, value, 0.0, is_causal, **settings)
        out, logsumexp = FLASH(query, key, value, 0.0, is_causal, **settings)
        given = normal(*out.shape, seed=4)
        as_library(FLASH_BACKWARD, given, query, key, value, out, logsumexp, 0.0, is_causal, **settings)


def test_what_attends_to_nothing() -> None:
    query = normal(1, 1, 3, 4)
    mask = torch.tensor([[0.0, 0.0, 0.0], [-math.inf] * 3, [0.0, -math.inf, 0.0]])
    same(composed()[FLASH](query, query, query, attn_mask=mask)[0], FLASH(query, query, query, attn_mask=mask)[0])


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_distances(p: float) -> None:
    for x, y in ((normal(4, 5), normal(3, 5, seed=1)), (normal(2, 4, 5), normal(2, 3, 5, seed=1)), (normal(4, 5),) * 2):
        as_library(aten._cdist_forward.default, x, y, p, None)
        distances = aten._cdist_forward(x, y, p, None)
        as_library(aten._cdist_backward.default, normal(*distances.shape, seed=2), x, y, p, distances)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_order(dim: int) -> None:
    x, gaps = normal(4, 7), normal(4, 7)
    gaps[1, 3], gaps[2], gaps[3, 0] = math.nan, math.nan, math.inf
    for keepdim in (False, True):
        as_library(aten.kthvalue.default, x, 2, dim, keepdim)
        for values in (x, gaps):
            as_library(aten.median.dim, values, dim, keepdim)
    as_library(aten.median.default, gaps if dim else x)


def test_inverses_of_factors() -> None:
    factor = torch.linalg.cholesky(torch.eye(4) * 5 + 1)
    as_library(aten.cholesky_inverse.default, factor)
    as_library(aten.cholesky_inverse.default, factor.mT.contiguous(), True)


def attending(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], is_causal=True)[:, 0]


BODIES: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "attention": (attending, normal(2, 5, 8)),
    "distances": (lambda x: torch.cdist(x, x) + x, normal(4, 4)),
    "median": (lambda x: x - x.median(-1, keepdim=True)[0] * 0.5, normal(3, 5)),
    "interpolation": (lambda x: F.interpolate(x, size=(6, 6), mode="bilinear") * 0.9, normal(1, 2, 6, 6)),
}


def looped(name: str) -> tuple[Callable[[Tensor], Any], Tensor]:
    body, x = BODIES[name]
    return lambda x: fh.scan(lambda c, _: (0.5 * body(c), c.sum()), x, None, length=3), x


@pytest.mark.parametrize("name", BODIES)
def test_loops_are_kernels(name: str) -> None:
    assert taken(list(plan(*looped(name)).loops)) == ["steps"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["attention", "distances"])
def test_their_gradients_are_kernels(name: str) -> None:
    f, x = looped(name)
    assert set(taken(check(fh.grad(lambda x: f(x)[1].sum()), x))) == {"steps"}
