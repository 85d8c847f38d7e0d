"""Random numbers: fresh in every iteration, the same stream in every mode, one stream per lane or one for all."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import functorch_hops as fh
from modes import MODES, every_mode, same, while_capturing

X = torch.linspace(-1, 1, 4)
LANES = torch.stack([X, X * 2, X])


def noisy(x):
    """Several draws in a step, one of which nobody reads."""

    def step(c, _):
        torch.rand(3)
        return F.dropout(torch.sin(c), 0.5) + 0.1 * torch.randn_like(c) * torch.rand(()), c.sum()

    return fh.scan(step, x, length=5)


def growth(x):
    body = lambda s: (s[0] + torch.rand_like(s[0]) * s[0], s[1] + torch.bernoulli(torch.tensor(0.6)))
    return fh.while_loop(lambda s: s[1] < 4, body, (x, 0.0))[0]


def either(x):
    return fh.cond(x.sum() > 0, lambda x: x + torch.rand_like(x), lambda x: x * torch.randn_like(x), x)


total = lambda x: noisy(x)[1].sum()
energy = lambda x: growth(x).square().sum()

PROGRAMS = {
    "scan": noisy,
    "while_loop": growth,
    "cond": either,
    "cond in scan": lambda x: fh.scan(lambda c, _: (either(c), c), x, length=4),
    "fori_loop": lambda x: fh.fori_loop(0, 4, lambda i, x: x + torch.randint(0, 9, (4,)), x),
    "numbers between bounds": lambda x: fh.fori_loop(0, 3, lambda i, x: x + torch.empty(4).random_(1, 9), x),
    "map": lambda x: fh.map(lambda a: a + torch.rand(()), x),
    "map in chunks": lambda x: fh.map(lambda a: a + torch.rand(()), x, batch_size=3),
    "grad of scan": fh.grad(total),
    "grad of while_loop": fh.grad(energy),
    "grad of cond": fh.grad(lambda x: either(x).square().sum()),
    "grad of grad of scan": fh.grad(lambda x: fh.grad(total)(x).square().sum()),
    "jvp of scan": lambda x: fh.jvp(total, (x,), (x,)),
    "jvp of grad of while_loop": lambda x: fh.jvp(fh.grad(energy), (x,), (x,)),
    "grad of a checkpointed step": fh.grad(
        lambda x: fh.scan(fh.checkpoint(lambda c, _: (F.dropout(c.sin()) + torch.rand(4), c.sum())), x, length=5)[
            1
        ].sum()
    ),
}


def drawn(run, f, *args):
    """The result, and the next number of the stream."""
    torch.manual_seed(0)
    return run(f, *args), torch.rand(1)


@while_capturing
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_mode_draws_the_same_stream(run, name):
    same(drawn(run, PROGRAMS[name], X), drawn(MODES["plain"], PROGRAMS[name], X))


@while_capturing
@pytest.mark.parametrize("randomness", ["same", "different"])
@pytest.mark.parametrize("transform", [lambda f: f, fh.grad], ids=["value", "grad"])
def test_lanes_draw_the_same_stream_in_every_mode(run, randomness, transform):
    f = fh.vmap(transform(total), randomness=randomness)
    same(drawn(run, f, LANES), drawn(MODES["plain"], f, LANES))


@every_mode
@pytest.mark.parametrize("f", [noisy, growth, either], ids=["scan", "while_loop", "cond"])
def test_randomness_of_lanes(run, f):
    """Lanes 0 and 2 are equal; conditions differ between lanes 0 and 1 of LANES - 0.1."""
    lanes = LANES - 0.1
    first = lambda out: out[0] if isinstance(out, tuple) else out
    shared = first(run(fh.vmap(f, randomness="same"), lanes))
    same(shared[0], shared[2])
    own = first(run(fh.vmap(f, randomness="different"), lanes))
    assert not torch.equal(own[0], own[2])
    with pytest.raises(RuntimeError, match="randomness"):
        run(fh.vmap(f), lanes)


@every_mode
def test_the_gradient_sees_the_numbers_of_the_value(run):
    """The product of the draws is linear in x."""
    f = lambda x: fh.scan(lambda c, _: (F.dropout(c) * torch.rand_like(c), None), x, length=3)[0].sum()
    slope, value = run(lambda x: (fh.value_and_grad(f)(x))[::-1], X)
    same((slope * X).sum(), value)


@every_mode
def test_iterations_draw_fresh_numbers(run):
    draws = run(lambda x: fh.scan(lambda c, _: (c, torch.rand(2)), x, length=20)[1], X)
    assert draws.unique().numel() == 40


# ---------------------------------------------------------------------------------------------------------------------
# in a body


@every_mode
def test_random_numbers_are_fresh_in_each_iteration(run):
    _, ys = run(lambda x: fh.scan(lambda c, _: (c, torch.rand(())), x, length=20), torch.zeros(()))
    assert len(set(ys.tolist())) == 20
    out = run(
        lambda x: fh.while_loop(lambda s: s[0] < 5, lambda s: (s[0] + 1, s[1] * torch.rand(2)), (0, x)),
        torch.ones(2),
    )[1]
    assert out[0] != out[1]
    again = run(lambda x: fh.map(lambda e: torch.rand_like(e), x), torch.zeros(4))
    assert len(set(again.tolist())) == 4


@every_mode
def test_random_numbers_obey_the_seed(run):
    f = lambda x: fh.scan(lambda c, _: (c + torch.randn(2), torch.rand(())), x, length=3)
    torch.manual_seed(3)
    got = run(f, torch.zeros(2))
    torch.manual_seed(3)
    c, ys = torch.zeros(2), []
    for _ in range(3):
        c = c + torch.randn(2)
        ys.append(torch.rand(()))
    same(got, (c, torch.stack(ys)))


def test_a_generator_in_a_body_is_refused():
    """Its state would be frozen with the graph, and go on from call to call."""

    def f(x):
        return x + torch.randn(2, generator=torch.Generator().manual_seed(0))

    with pytest.raises(fh.CaptureError, match="default generator"):
        fh.jit(f, backend="eager")(torch.zeros(2))


@every_mode
def test_gradients_see_the_numbers_that_were_drawn(run):
    """The gradient of the noise-weighted sum is the noise itself."""

    def f(c):
        noise_of = fh.scan(lambda s, _: _noisy(s, c), torch.zeros((), dtype=torch.float64), length=4)
        return noise_of[0], noise_of[1]

    def _noisy(s, c):
        noise = torch.rand(3, dtype=torch.float64)
        return s + (c * noise).sum(), noise

    c = torch.randn(3, dtype=torch.float64, requires_grad=True)
    total, noise = run(f, c)
    same(torch.autograd.grad(total, c)[0], noise.sum(0))
    slope, noise = run(lambda c: fh.grad(f, has_aux=True)(c), c.detach())
    same(slope, noise.sum(0))


@every_mode
def test_dropout_in_a_body(run):
    c = torch.ones(100, dtype=torch.float64, requires_grad=True)
    out = run(lambda c: fh.fori_loop(0, 2, lambda i, v: torch.nn.functional.dropout(v, 0.5), c), c)
    assert 5 < (out != 0).sum() < 50
    (slope,) = torch.autograd.grad(out.sum(), c)
    same(slope, out.detach())


@every_mode
def test_random_numbers_under_vmap(run):
    f = lambda x: fh.scan(lambda c, _: (c, torch.rand(())), x, length=3)[1]
    rows = run(fh.vmap(f, randomness="different"), torch.zeros(2))
    assert len(set(rows.flatten().tolist())) == 6
    rows = run(fh.vmap(f, randomness="same"), torch.zeros(2))
    same(rows[0], rows[1])
    assert len(set(rows[0].tolist())) == 3


@while_capturing
@pytest.mark.parametrize("training", [True, False])
def test_the_derivative_of_rrelu_is_that_of_the_noise_that_was_drawn(run, training) -> None:
    """torch's functional form differentiates by the noise that was passed in: memory that nobody has written to."""
    x = torch.tensor([1.0, -1.0, -2.0, 0.5], requires_grad=True)
    out = run(lambda x: fh.scan(lambda c, r: (c, F.rrelu(r, 0.2, 0.4, training)), 0.0, x)[1], x)
    same(torch.autograd.grad(out.sum(), x)[0], (out / x).detach())


@while_capturing
@pytest.mark.parametrize("draw", ["normal_", "uniform_", "exponential_", "bernoulli_", "cauchy_", "log_normal_"])
def test_what_is_drawn_into_a_value_ends_its_history(run, draw) -> None:
    x = torch.ones(3, requires_grad=True)
    out = run(lambda x: fh.scan(lambda c, r: (c, getattr(r * 2, draw)() * r), 0.0, x)[1], x)
    same(torch.autograd.grad(out.sum(), x)[0], out.detach())


# ---------------------------------------------------------------------------------------------------------------------
# values that are not contiguous

DRAWN_BY_LAYOUT = {
    "dropout": lambda x: F.dropout(x, 0.5),
    "dropout of a result": lambda x: F.dropout((x * 2).T, 0.5),
    "alpha dropout": lambda x: F.alpha_dropout(x.T, 0.5, training=True),
    "empty_like": lambda x: torch.empty_like(x.T).normal_(),
    "a contiguous one": lambda x: torch.empty_like(x.T, memory_format=torch.contiguous_format).uniform_(),
    "rand_like": lambda x: torch.rand_like(x.T),
    "a write": lambda x: (x.T * 1).bernoulli_(0.3),
    "bernoulli, by indices": lambda x: torch.bernoulli(x.T.sigmoid(), p=0.3),
    "exponential": lambda x: x.T.clone().exponential_(),
    "a row": lambda x: fh.scan(lambda c, row: (c, F.dropout(row.T, 0.5)), x, torch.ones(2, 5, 3))[1],
    "a branch": lambda x: fh.cond(x.sum() < 99, lambda x: F.dropout(x.T, 0.5), lambda x: x.T * 1, x),
    "a gradient": fh.grad(lambda x: F.dropout(x.T, 0.5).square().sum()),
    "lanes": fh.vmap(lambda x: F.dropout(x.T, 0.5), randomness="different"),
    "lanes that share": fh.vmap(lambda x: F.dropout(x.T, 0.5), randomness="same"),
}


@while_capturing
@pytest.mark.parametrize("name", DRAWN_BY_LAYOUT)
def test_numbers_come_by_the_layout_of_the_call(run, name):
    """A layout is drawn into in its own order, whatever the trace was made for."""
    table = torch.arange(24.0).reshape(2, 3, 4)
    for x in (table, table.transpose(1, 2), table[:, :, ::2]):
        x = x if "lanes" in name else x[0]
        same(drawn(run, DRAWN_BY_LAYOUT[name], x), drawn(MODES["plain"], DRAWN_BY_LAYOUT[name], x))


def test_a_transformer_layer_drops_what_eager_drops():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)
    x = torch.randn(3, 5, 8)
    same(drawn(MODES["jit"], layer, x), drawn(MODES["plain"], layer, x))
