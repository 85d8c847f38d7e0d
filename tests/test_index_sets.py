"""Neighbours, borders and pieces inside compiled loops: masks for the indices that need them, none for the others.

The oracle is the same loop in plain eager.
"""

import itertools
import operator
from functools import reduce
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import functorch_hops as fh


def rolled(u: Tensor) -> Tensor:
    return u + 0.1 * (torch.roll(u, 1, 0) - torch.roll(u, -2, -1) + torch.roll(u, (1, -1), (0, 1)))


def padded(u: Tensor) -> Tensor:
    p = F.pad(u, (1, 1, 2, 1))
    return u + 0.1 * (p[2:-1, 2:] + p[3:, 1:-1] - p[:-3, :-2])


def inside(u: Tensor) -> Tensor:
    v = u.clone()
    v[1:-1, 1:-1] += 0.1 * (u[2:, 1:-1] - 2 * u[1:-1, 1:-1] + u[:-2, 2:])
    v[0] = u[1]
    v[:, -1] *= 0.5
    return v


def strided(u: Tensor) -> Tensor:
    v = u.clone()
    v[::2, 1::3] = u[::2, 1::3] * 0.5 + 1
    return torch.where(torch.arange(u.shape[1]) % 2 == 0, v, v.flip(1) * 0.9)


def pieced(u: Tensor) -> Tensor:
    n = u.shape[1] // 3
    u = torch.cat([u[:, n:] * 0.9, u[:, :n] + 0.1], 1)
    return torch.cat([u[-1:], u[:-1]], 0)


def triangular(u: Tensor) -> Tensor:
    return u + 0.1 * u.tril(2) - 0.2 * u.triu(-1) + 0.1 * u.flip(0).diff(dim=1, prepend=u[:, :1])


def of_rows(u: Tensor) -> Tensor:
    """All rows but one are alike, up to the end of the memory; each ends within a vector."""
    v = u * 0.9
    v[0] = u[1] + 1
    return v


def of_columns(u: Tensor) -> Tensor:
    return of_rows(u.T.clone()).T.clone()


STEPS = [of_rows, of_columns, rolled, padded, inside, strided, pieced, triangular]
SIZES = [(5, 3), (20, 41), (33, 64)]


def loop(step: Any, dtype: torch.dtype) -> Any:
    def f(u: Tensor) -> Tensor:
        return fh.fori_loop(0, 3, lambda i, u: step(u).to(dtype), u)

    return f


def all_loops(us: list[Tensor]) -> list[Tensor]:
    return [loop(step, u.dtype)(u) for step, u in itertools.product(STEPS, us)]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_masks_of_most_indices(dtype: torch.dtype) -> None:
    sizes = SIZES if dtype is torch.float32 else SIZES[1:2]
    us = [torch.linspace(-1, 2, m * n).sin().reshape(m, n).to(dtype) for m, n in sizes]
    tolerance = {"rtol": 5e-2, "atol": 5e-2} if dtype is torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(fh.jit(all_loops)(us), all_loops(us), **tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES[1:])
def test_gradients_of_masks(size: tuple[int, int]) -> None:
    m, n = size
    us = [torch.linspace(-1, 2, m * n).sin().reshape(m, n)]
    total = lambda us: reduce(operator.add, [out.square().sum() for out in all_loops(us)])
    torch.testing.assert_close(fh.jit(fh.grad(total))(us), fh.grad(total)(us), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_counts_of_neighbours() -> None:
    """Integers and truth values: the game of life on a torus, and in a box."""

    def step(_: Any, worlds: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        torus, box = worlds
        around = sum(torch.roll(torus.int(), (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j)
        p = F.pad(box, (1, 1, 1, 1))
        m, n = box.shape
        beside = sum(p[i : i + m, j : j + n] for i in range(3) for j in range(3) if (i, j) != (1, 1))
        return (around == 3) | (torus & (around == 2)), ((beside == 3) | ((box == 1) & (beside == 2))).int()

    live = lambda a, b: fh.fori_loop(0, 5, step, (a, b))
    worlds = torch.arange(40 * 37).reshape(40, 37).mul(7919) % 5 < 2
    torch.testing.assert_close(fh.jit(live)(worlds, worlds.int()), live(worlds, worlds.int()))


@pytest.mark.slow
def test_a_padded_mask_is_known(caplog: pytest.LogCaptureFixture) -> None:
    """A comparison inside a masked body, which holds wherever it is computed."""

    def f(u: Tensor) -> Tensor:
        n = u.shape[1]
        return fh.fori_loop(0, 3, lambda i, u: u * F.pad(torch.arange(n) < 100, (1, 1))[1:-1] + 0.1, u)

    u = torch.linspace(-1, 1, 18).reshape(2, 9)
    torch.testing.assert_close(fh.jit(f)(u), f(u))
    assert "Error in codegen" not in caplog.text


@pytest.mark.slow
def test_comparisons_of_indices_that_wrap() -> None:
    """An index of 8 bits is no place: it begins anew where a byte ends."""

    def f(u: Tensor) -> Tensor:
        index = torch.arange(u.shape[0])
        narrow = [index.to(torch.int8) < 50, (index - 5).to(torch.uint8) < 100]
        step = lambda i, u: torch.where(narrow[0] & (index.to(torch.int8) < 40), u + 1, torch.where(narrow[1], u, -u))
        return fh.fori_loop(0, 3, lambda i, u: torch.where(index.to(torch.int8) < 50, step(i, u), u * 0.5), u)

    u = torch.linspace(-1, 2, 300)
    torch.testing.assert_close(fh.jit(f)(u), f(u))
