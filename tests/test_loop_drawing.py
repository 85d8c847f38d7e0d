"""Random numbers in kernels of loops: are they random, new at each place, and the same for the gradient?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import functorch_hops as fh
from loop_plans import normal, plan, taken
from modes import same

N, STEPS = 300, 400


def uniform(x: Tensor, n: int = STEPS) -> Any:
    return fh.scan(lambda c, _: (c, (torch.rand_like(c), torch.randn_like(c))), x, length=n)[1]


def seeded(f: Callable[..., Any], *args: Any, seed: int = 3) -> Any:
    """As a graph with kernels computes it."""
    made = plan(f, *args)
    assert "native" not in taken(list(made.loops)), made.loops
    torch.manual_seed(seed)
    return list(made.body(*args))


def philox(key: int, count: int) -> list[int]:
    """Philox-4x32-10 (Salmon et al. 2011)."""
    word = 2**32 - 1
    c, k = [count & word, count >> 32, 0, 0], [key & word, key >> 32]
    for _ in range(10):
        first, second = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [second >> 32 ^ c[1] ^ k[0], second & word, first >> 32 ^ c[3] ^ k[1], first & word]
        k = [(k[0] + 0x9E3779B9) & word, (k[1] + 0xBB67AE85) & word]
    return c


def test_the_numbers_are_those_of_philox() -> None:
    """The key is the seed, the step and the place in the body; the counter is the element."""
    (drawn, _) = seeded(lambda x: uniform(x, 5), torch.zeros(20))
    torch.manual_seed(3)
    seed = int(torch.randint(2**63 - 1, ()))
    expected = [[(philox(seed + 2 * step, i)[0] >> 8) / 2**24 for i in range(20)] for step in range(5)]
    assert torch.equal(drawn, torch.tensor(expected))


def test_moments_and_correlations() -> None:
    u, z = (x.double() for x in seeded(uniform, torch.zeros(N)))
    n = u.numel() ** 0.5
    for value, expected, deviation in [
        (u.mean(), 1 / 2, 0.29),
        (u.square().mean(), 1 / 3, 0.3),
        (z.mean(), 0, 1),
        (z.square().mean(), 1, 1.5),
        (z.pow(3).mean(), 0, 4),
        (z.pow(4).mean(), 3, 10),
    ]:
        assert abs(value - expected) < 5 * deviation / n
    u, z = u * 12**0.5 - 3**0.5, z
    pairs = [(u[1:], u[:-1]), (u[:, 1:], u[:, :-1]), (u[1:, 1:], u[:-1, :-1]), (u[1:, :-1], u[:-1, 1:]), (u, z)]
    for a, b in [*pairs, (z[1:], z[:-1]), (z[:, 1:], z[:, :-1])]:
        assert abs((a * b).mean()) < 5 / n
    assert len(torch.unique(u)) > 0.99 * u.numel()


def drawing(c: Tensor) -> tuple[Tensor, ...]:
    return (
        torch.rand(c.shape, dtype=torch.float64),
        torch.randn(c.shape),
        torch.randint(3, 9, c.shape),
        torch.randint_like(c, 5),
        torch.bernoulli(c.sigmoid()),
        F.dropout(torch.ones_like(c), 0.25),
        torch.normal(c + 2, 3.0),
        torch.empty_like(c).uniform_(1, 3),
        torch.empty_like(c).exponential_(2.0),
        torch.empty_like(c).normal_(1, 2),
    )


def test_each_distribution() -> None:
    """Mean and spread are those of eager."""
    f = lambda x: fh.scan(lambda c, _: (c, drawing(c)), x, length=STEPS)[1]
    x = torch.zeros(N)
    for got, expected in zip(seeded(f, x), f(x)):
        assert got.dtype == expected.dtype and got.shape == expected.shape
        a, b = got.double(), expected.double()
        assert abs(a.mean() - b.mean()) < 8 * b.std() / b.numel() ** 0.5
        assert abs(a.std() / b.std() - 1) < 0.02
        assert a.min() >= b.min() - b.std() and a.max() <= b.max() + b.std()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_uniform_numbers_have_the_digits_of_their_dtype(dtype: torch.dtype) -> None:
    u = seeded(lambda x: uniform(x, 2000), torch.zeros(N, dtype=dtype))[0]
    assert u.dtype == dtype and u.min() >= 0 and u.max() < 1, "as torch.rand promises; rounding would give 1"
    u = u.double()
    deviation = 0.29 / u.numel() ** 0.5
    grid = torch.finfo(dtype).eps / 2
    assert abs(u.mean() + grid / 2 - 0.5) < 5 * deviation
    assert torch.equal(u, torch.floor(u / grid) * grid)
    assert (torch.remainder(u / grid, 2) == 1).any()


def test_calls_and_loops_draw_anew_and_the_seed_draws_again() -> None:
    f = lambda x: (*uniform(x, 3), *uniform(x, 3))
    x = torch.zeros(40)
    made = plan(f, x)
    torch.manual_seed(0)
    first, second = made.body(x), made.body(x)
    torch.manual_seed(0)
    same(list(made.body(x)), list(first))
    assert not set(first[0].flatten().tolist()) & {*second[0].flatten().tolist(), *first[2].flatten().tolist()}


def dropped(x: Tensor) -> Tensor:
    """Linear in x."""
    return fh.scan(lambda c, _: (F.dropout(c, 0.3) * (1 + torch.rand_like(c)), None), x, length=6)[0].sum()


def dropped_while(x: Tensor) -> Tensor:
    step = lambda s: (s[0] + 1, F.dropout(s[1], 0.2) * (1 + torch.rand_like(s[1])))
    return fh.while_loop(lambda s: s[0] < 5, step, (torch.zeros(()), x))[1].sum()


def drawn_end(x: Tensor) -> Tensor:
    """How many steps it takes is drawn."""
    return fh.while_loop(lambda v: torch.rand(()) < 0.8, lambda v: v * (1 + torch.rand_like(v)), x).sum()


@pytest.mark.parametrize("f", [dropped, dropped_while], ids=["scan", "while_loop"])
def test_the_gradient_sees_the_numbers_of_the_value(f: Callable[..., Tensor]) -> None:
    x = normal(33).abs() + 0.1
    value, slope = seeded(fh.value_and_grad(f), x)
    same((slope * x).sum(), value, rtol=1e-4, atol=1e-4)
    assert (slope == 0).any()


@pytest.mark.slow
@pytest.mark.parametrize("f", [dropped, dropped_while, drawn_end], ids=["scan", "while_loop", "a drawn end"])
def test_plain_backward(f: Callable[..., Tensor]) -> None:
    """The forward and the backward pass are two programs."""
    x = (normal(33).abs() + 0.1).requires_grad_()
    compiled = fh.jit(f)
    for _ in range(2):
        value = compiled(x)
        same((torch.autograd.grad(value, x)[0] * x).sum(), value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_lanes(randomness: str) -> None:
    f = fh.vmap(lambda x: fh.scan(lambda c, _: (c, torch.rand(4)), x, length=5)[1], randomness=randomness)
    (got,) = seeded(f, torch.zeros(3))
    assert got.shape == (3, 5, 4)
    assert torch.equal(got[0], got[1]) == (randomness == "same")
    assert len(torch.unique(got)) == (20 if randomness == "same" else 60)


def test_lanes_that_end_by_themselves_repeat_nothing() -> None:
    """A lane counts its steps, and adds up what it drew."""

    def steps(limit: Tensor) -> Any:
        step = lambda s: (s[0] + torch.rand(()), s[1] + 1)
        return fh.while_loop(lambda s: s[0] < limit, step, (torch.zeros(()), torch.zeros(())))

    limits = torch.linspace(0.5, 60, 50)
    total, count = seeded(fh.vmap(steps, randomness="different"), limits)
    assert (total >= limits).all() and (total < limits + 1).all()
    assert len(torch.unique(total)) == 50
    assert abs(total.sum() / count.sum() - 0.5) < 0.05


def nested(w: Tensor) -> tuple[Tensor, Tensor]:
    """Loops and branches that draw, in a loop that draws: a sum that is linear in ``w``, and all numbers in it."""

    def step(c: Tensor, i: Tensor) -> tuple[Tensor, Tensor]:
        first = torch.rand_like(c)
        _, inner = fh.scan(lambda d, _: (d, torch.rand_like(d)), c, length=3)
        branch = fh.cond(i % 2 == 0, torch.rand_like, lambda c: -torch.rand_like(c), c)
        count = lambda s: (s[0] + 1, torch.cat([s[1][1:], torch.rand(1, len(w))]))
        _, counted = fh.while_loop(lambda s: s[0] < 2, count, (torch.zeros(()), torch.zeros(2, len(w))))
        drawn = torch.cat([first[None], inner, branch[None], counted])
        return c + (w * drawn).sum(0), drawn

    total, drawn = fh.scan(step, torch.zeros_like(w), torch.arange(5))
    return total.sum(), drawn.flatten(0, 1)


def test_loops_in_loops_draw_anew() -> None:
    w = normal(8)
    value, drawn = seeded(nested, w)
    assert torch.unique(drawn).numel() == drawn.numel() == 5 * 7 * 8
    same(value, (w * drawn).sum(), rtol=1e-4, atol=1e-5)
    assert (drawn.view(5, 7, 8)[:, 4] < 0).all(1).tolist() == [False, True] * 2 + [False]


def test_the_gradient_sees_the_numbers_of_loops_in_loops() -> None:
    slope, drawn = seeded(fh.grad(nested, has_aux=True), normal(8))
    same(slope, drawn.sum(0), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_graph_that_draws_is_one_kernel() -> None:
    """Around its loop, too: each call has numbers of its own, and a seed has the same."""

    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        start = torch.rand_like(x)
        return start, fh.scan(lambda c, _: (c, torch.rand_like(c)), x + start, length=6)[1]

    jitted, x = fh.jit(f), normal(9)
    jitted(x)
    torch.manual_seed(1)
    first, second = jitted(x), jitted(x)
    torch.manual_seed(1)
    same(jitted(x), first)
    assert torch.unique(torch.cat([part.flatten() for part in (*first, *second)])).numel() == 2 * 7 * 9
    assert "torch's own" not in str(fh.explain(jitted)(x))


@pytest.mark.slow
@pytest.mark.usefixtures("no_graph_around")
def test_a_graph_with_the_gradient_of_a_while_that_draws_is_one_kernel() -> None:
    x = normal(33).abs() + 0.1
    value, slope = fh.jit(fh.value_and_grad(dropped_while))(x)
    same((slope * x).sum(), value, rtol=1e-4, atol=1e-4)
    assert (slope == 0).any()


@pytest.mark.slow
def test_open_sizes() -> None:
    """The length and the lanes of a loop that draws."""
    from functorch_hops.lowering.inductor import exact_code
    from functorch_hops.lowering.loops.planning import planned

    f = lambda xs: fh.scan(lambda c, x: (c + x, torch.rand_like(c)), xs[0], xs)[1]
    body = fh.jit(f, dynamic=True).lower(normal(5, 7))._body
    with exact_code():
        made = planned(body, {})
    assert [loop.taken for loop in made.loops] == ["lanes"]
    for sizes in [(5, 7), (9, 130)]:
        torch.manual_seed(3)
        (got,) = made.body(normal(*sizes))
        torch.manual_seed(3)
        same(got, *seeded(f, normal(*sizes)))
