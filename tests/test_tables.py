"""Tensors that a function builds when it first runs and keeps: NOTE [Tables built at first use]."""

from __future__ import annotations

import contextlib
import functools

import pytest
import torch
from torch import nn

import functorch_hops as fh
from modes import every_mode, gradients, jitted, same, while_capturing

F64 = torch.float64
# That a function keeps something is said in a warning: tests/test_environment_changes.py.
pytestmark = pytest.mark.filterwarnings("ignore:.* does what no graph does:RuntimeWarning")


class Rotary(nn.Module):
    """Tables of cosines, from a buffer, for as many positions as were seen."""

    def __init__(self, size=4):
        super().__init__()
        self.register_buffer("frequencies", 1.0 / 10 ** (torch.arange(0, size, 2, dtype=F64) / size))
        self.cosines = None
        self.built = 0

    def forward(self, x):
        n = x.shape[-2]
        if self.cosines is None or self.cosines.shape[0] < n:
            angles = torch.outer(torch.arange(n, dtype=F64), self.frequencies)
            self.cosines = torch.cat([angles, angles], -1).cos()
            self.built += 1
        return x * self.cosines[:n]


@functools.lru_cache
def mask(n):
    table = torch.full((n, n), 2.0, dtype=F64)
    for i in range(n):
        table[i, i + 1 :] = 0.5
    return table


KEPT = {}


def by_dictionary(n):
    if n not in KEPT:
        KEPT[n] = torch.tensor([float(i) for i in range(n)], dtype=F64)[:, None]
    return KEPT[n]


@functools.lru_cache
def pair(n):
    table = torch.arange(n, dtype=F64).exp()
    return table[:, None], {"reversed": table.flip(0)[:, None]}


USES = {
    "lru_cache": lambda x: mask(x.shape[0]) @ x,
    "dictionary": lambda x: x * by_dictionary(x.shape[0]),
    "tree_of_views": lambda x: x * pair(x.shape[0])[0] + pair(x.shape[0])[1]["reversed"],
}

PLACES = {
    "top": lambda f: f,
    "scan": lambda f: lambda x: fh.scan(lambda c, _: (f(c), c), x, length=2)[0],
    "branch": lambda f: lambda x: fh.cond(x.sum() > -100, f, lambda x: f(x) * 2, x),
    "vmap": lambda f: lambda x: fh.vmap(f)(torch.stack([x, x + 1]))[0],
    "nested": lambda f: lambda x: fh.fori_loop(0, 2, lambda i, c: fh.map(f, torch.stack([c, c]))[1], x),
    "twice": lambda f: lambda x: f(fh.checkpoint(f)(x)) + fh.grad(lambda x: f(x).sum())(x),
}


@every_mode
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("f", USES.values(), ids=USES)
def test_a_table_is_real_for_whoever_uses_it(run, place, f):
    KEPT.clear(), mask.cache_clear(), pair.cache_clear()
    x = torch.linspace(-1, 1, 6, dtype=F64).reshape(3, 2)
    first = run(place(f), x)
    same(run(place(f), x), first)
    same(f(x), f(x.clone()))
    KEPT.clear(), mask.cache_clear(), pair.cache_clear()
    same(first, place(f)(x))


@every_mode
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_table_that_is_made_of_a_buffer(run, place):
    x = torch.linspace(-1, 1, 12, dtype=F64).reshape(3, 4)
    module = Rotary()
    got = run(place(module), x)
    assert type(module.cosines) is torch.Tensor and module.built == 1
    same(module.cosines, Rotary()(torch.ones(3, 4, dtype=F64)))
    same(got, place(Rotary())(x))
    same(run(place(module), x), got)
    same(gradients(run, place(module), x), gradients(run, place(Rotary()), x))
    same(module(torch.ones(5, 4, dtype=F64)), Rotary()(torch.ones(5, 4, dtype=F64)))


def test_a_table_does_not_cost_further_captures():
    x = torch.ones(3, 4, dtype=F64)
    mask.cache_clear()
    for f in (Rotary(), USES["lru_cache"]):
        compiled = fh.jit(f, backend="eager")
        compiled(x), compiled(x), compiled(x)
        assert compiled.cache_info().misses <= 2


@while_capturing
def test_a_table_that_is_made_of_a_parameter(run):
    """It has the history that it has in eager."""
    weight = nn.Parameter(torch.tensor([0.5, 2.0], dtype=F64))
    kept = []

    def f(x):
        kept.append(weight.exp())
        return x * weight.exp()

    run(lambda x: fh.scan(lambda c, _: (f(c), None), x, length=1)[0], torch.ones(2, dtype=F64))
    (g,) = torch.autograd.grad(kept[0].sum(), weight)
    same(g, weight.exp())


@while_capturing
@pytest.mark.parametrize("made", [lambda x: x * 2, lambda x: torch.zeros(2).copy_(x), torch.rand_like])
def test_what_depends_on_a_traced_value_or_is_drawn_is_refused(run, made):
    kept = []

    def f(x):
        kept.append(made(x))
        return x * 1

    with contextlib.suppress(fh.LeakedTensorError):  # jit says so at once
        run(f if run is jitted else lambda x: fh.fori_loop(0, 1, lambda i, c: f(c), x), torch.ones(2))
    with pytest.raises(fh.LeakedTensorError):
        kept[0] * 1


@while_capturing
def test_a_table_that_is_overwritten_by_a_traced_value_is_none(run):
    """What was read of it before is known, what it holds in the end is not."""
    kept = []

    def f(x):
        table = torch.arange(2.0)
        before = table * 2
        table.copy_(x)
        kept.extend([before, table, table * 2])
        return x + before

    with contextlib.suppress(fh.LeakedTensorError):  # jit says so at once
        run(f if run is jitted else lambda x: fh.fori_loop(0, 1, lambda i, c: f(c), x), torch.ones(2))
    same(kept[0], torch.tensor([0.0, 2.0]))
    for left in kept[1:]:
        with pytest.raises(fh.LeakedTensorError):
            left * 1


class Leaky(nn.Module):
    """A spiking layer that keeps its membrane."""

    def __init__(self, is_buffer):
        super().__init__()
        if is_buffer:
            self.register_buffer("membrane", torch.zeros(2, dtype=F64))
        else:
            self.membrane = torch.zeros(2, dtype=F64)

    def forward(self, x):
        self.membrane = 0.5 * self.membrane + x
        return self.membrane * 2


def test_state_that_is_kept_outside_of_buffers_is_refused_by_its_place():
    x, expected = torch.tensor([0.7, 0.2], dtype=F64), Leaky(is_buffer=True)
    kept = fh.jit(Leaky(is_buffer=True), backend="eager")
    for _ in range(3):
        same(kept(x), expected(x))
    with pytest.raises(fh.LeakedTensorError, match=r"keeps a traced tensor, .*\n  where: .*membrane"):
        fh.jit(Leaky(is_buffer=False), backend="eager")(x)


@pytest.mark.filterwarnings("ignore:.* captured again at every call:RuntimeWarning")
@pytest.mark.parametrize("place", ["attribute", "item"])
def test_a_state_that_goes_on_from_itself_is_captured_at_every_call(place):
    """No trace reads the tensor that it replaces. One that makes a table larger is followed by one that reads it."""
    holder = {"n": torch.zeros(())} if place == "item" else torch.nn.Identity()
    if place == "attribute":
        holder.n = torch.zeros(())
    get = (lambda: holder["n"]) if place == "item" else lambda: holder.n
    put = functools.partial(holder.__setitem__ if place == "item" else holder.__setattr__, "n")

    def count(x):
        put(get() + 1)
        return x * get()

    counted = fh.jit(count, backend="eager")
    with pytest.warns(RuntimeWarning, match="captured again at every call"):
        counted(torch.ones(2))
    for n, size in enumerate((2, 2, 3, 2), 2):
        same(counted(torch.ones(size)), torch.full((size,), float(n)))

    put(torch.ones(1))

    def grow(x):
        if len(get()) < len(x):
            put(torch.cat([get(), torch.full((len(x) - len(get()),), 2.0)]))
        return x * get()[: len(x)]

    grown = fh.jit(grow, backend="eager")
    for size in (2, 3, 2, 4, 2, 3, 4, 2, 3, 4):
        same(grown(torch.ones(size)), torch.tensor([1.0, 2.0, 2.0, 2.0])[:size])
    assert grown.cache_info().hits == 3


@pytest.mark.parametrize("n_calls", [1, 3])
def test_a_table_that_is_replaced_or_written_to_later(n_calls):
    """By somebody else than the function: the trace that built it computes it again."""

    def check(change):
        holder, x = {"table": None}, torch.ones(3)

        def f(x):
            if holder["table"] is None:
                holder["table"] = torch.arange(3.0)
            return x * holder["table"]

        jitted = fh.jit(f, backend="eager")
        for _ in range(n_calls):
            same(jitted(x), torch.arange(3.0))
        change(holder)
        for _ in range(n_calls):
            same(jitted(x), f(x))
        assert jitted.cache_info().misses == 2

    check(lambda holder: holder.update(table=torch.full((3,), 7.0)))
    check(lambda holder: holder["table"].mul_(2))
