"""Tensors that a function builds when it first runs and keeps: NOTE [Tables built at first use]."""

from __future__ import annotations

import contextlib
import functools
import warnings

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
    for left in kept[1:3]:
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


def _one_more(n):
    return torch.ones((), dtype=F64) if n is None else n + 1


class State:
    """A number of calls, which begins as None."""

    attribute, class_attribute = None, None

    def __init__(self):
        self.attribute, self.entries, self.items, self.grown, self.pair = None, {}, [None], [], None
        self.inner = nn.Identity()
        self.inner.n = None
        self.optimizer = {}


def by_attribute(state):
    if state.attribute is None:
        state.attribute = torch.zeros((), dtype=F64)
    state.attribute = state.attribute + 1
    return state.attribute


def by_class(state):
    cls = type(state)
    cls.class_attribute = _one_more(cls.class_attribute)
    return cls.class_attribute


def by_entry(state):
    state.entries["n"] = _one_more(state.entries.get("n"))
    return state.entries["n"]


def by_item(state):
    state.items[0] = _one_more(state.items[0])
    return state.items[0]


def by_setattr(state):
    setattr(state.inner, "n", _one_more(getattr(state.inner, "n")))  # noqa: B009, B010
    return state.inner.n


def by_list(state):
    state.grown.append(torch.ones((), dtype=F64))
    return sum(state.grown)


def by_concatenation(state):
    new = torch.ones(1, dtype=F64)
    state.attribute = new if state.attribute is None else torch.cat([state.attribute, new])
    return state.attribute.sum()


def by_two_places(state):
    """Neither place holds what it held, though nothing is computed."""
    if state.pair is None:
        state.pair, state.attribute = torch.zeros((), dtype=F64), torch.ones((), dtype=F64)
    state.pair, state.attribute = state.attribute, state.pair
    return state.pair


def by_moments(state):
    moments = state.optimizer.setdefault("w", {})
    if not moments:
        moments.update(step=torch.zeros((), dtype=F64), mean=torch.zeros((), dtype=F64))
    moments["step"] = moments["step"] + 1
    moments["mean"] = 0.9 * moments["mean"] + 0.1 * moments["step"]
    return moments["mean"] / (1 - 0.9 ** moments["step"])


def by_turns(state):
    state.attribute = None if state.attribute is not None else torch.ones((), dtype=F64)
    return 2 if state.attribute is None else 1


STATES = {
    **{f.__name__: f for f in (by_attribute, by_class, by_entry, by_item, by_setattr, by_list, by_concatenation)},
    **{f.__name__: f for f in (by_two_places, by_moments, by_turns)},
}
AROUND = {
    "jit": lambda f: f,
    "vmap": lambda f: fh.vmap(lambda x: f(x[None])[0]),
    "grad": lambda f: fh.grad(lambda x: f(x).sum()),
    "vmap_grad": lambda f: fh.vmap(fh.grad(lambda x: f(x[None]).sum())),
    "jvp": lambda f: lambda x: fh.jvp(f, (x,), (x,))[1],
}


@pytest.mark.filterwarnings("ignore:.* captured again at every call:RuntimeWarning")
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
@pytest.mark.parametrize("count", STATES.values(), ids=STATES)
def test_a_state_that_begins_as_none(count, around):
    """The first call leaves a tensor where none was: what the next one does with it, no trace of the first one says."""

    def made():
        class Own(State):
            pass

        state = Own()
        return around(lambda x: x * count(state))

    plain, jitted, x = made(), fh.jit(made(), backend="eager"), torch.ones(2, dtype=F64)
    for _ in range(5):
        same(jitted(x), plain(x))


def test_a_state_that_the_user_resets():
    state, x = State(), torch.ones(2, dtype=F64)
    counted = fh.jit(lambda x: x * by_attribute(state), backend="eager")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for start in (None, torch.full((), 5.0, dtype=F64), None):
            state.attribute = start
            for n in range(1, 4):
                same(counted(x), x * (n + (0 if start is None else 5)))
    messages = [str(w.message) for w in told]
    assert "puts another tensor in the place of closure 'state.attribute'" in messages[0]
    assert any("last because the call before left other tensors at closure 'state.attribute'" in m for m in messages)


def test_what_is_made_anew_in_each_call_is_captured_twice():
    """Nobody reads what stood there, so no call goes another way than the one before."""
    state, weight, x = State(), nn.Parameter(torch.ones(2, dtype=F64)), torch.ones(2, dtype=F64)

    def masked(x):
        state.attribute = torch.ones(2, 2, dtype=F64).tril()
        return state.attribute @ x

    def derived(x):
        state.items[0] = weight.exp()
        return x * state.items[0]

    for f in (masked, derived):
        jitted = fh.jit(f, backend="eager")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(4):
                same(jitted(x), f(x))
        assert jitted.cache_info()[:2] == (2, 2)
        assert ["state.items[0]" in str(w.message) for w in told] == ([] if f is masked else [True])


@pytest.mark.parametrize("count", [by_attribute, by_entry, by_list, by_concatenation])
@while_capturing
def test_a_state_in_a_loop_is_told(run, count):
    """Its body runs once, from the first capture on; that a table is built there is no news."""
    state, x = State(), torch.ones(2, dtype=F64)
    count = count if run is not jitted else by_attribute
    with pytest.warns(RuntimeWarning, match=r"changes .*state"):
        run(lambda x: fh.scan(lambda c, _: (c * count(state), None), x, length=3)[0], x)

    def table():
        if state.pair is None:
            state.pair = torch.arange(2, dtype=F64)
        return state.pair

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = run(lambda x: fh.scan(lambda c, _: (c + table(), None), x, length=3)[0], x)
    same(got, x + 3 * torch.arange(2, dtype=F64))


@pytest.mark.parametrize("count", [by_attribute, by_list, by_two_places])
def test_a_state_is_no_part_of_a_program(count):
    state, x = State(), torch.ones(2, dtype=F64)
    with pytest.warns(RuntimeWarning, match="export: .* never by the program: changes closure 'state"):
        program = fh.export(lambda x: x * count(state), (x,)).module()
    same(program(x), program(x))


def test_a_single_call_is_not_compiled():
    """One that builds a table, whose trace no other call finds."""
    compiled, state, x = [], State(), torch.ones(2, dtype=F64)

    def backend(module, example):
        compiled.append(module)
        return module

    def f(x):
        if state.pair is None:
            state.pair = torch.arange(2, dtype=F64)
        return x + state.pair

    jitted = fh.jit(f, backend=backend)
    for n in (0, 1, 1):
        same(jitted(x), x + torch.arange(2, dtype=F64))
        assert len(compiled) == n
    state.pair = None
    fh.jit(f, backend=lambda *given: backend(*given)).lower(x).compile()
    assert len(compiled) == 2


@pytest.mark.parametrize("transform", [fh.jit, fh.make_graph, lambda f: lambda x: fh.map(f, x[None])])
def test_a_table_of_a_call_that_failed(transform):
    """The next call finds it."""
    table = []

    def f(x):
        if not table:
            table.append(torch.arange(3.0))
        return x * table[0]

    f = transform(f)
    with fh.eager_capture():
        with pytest.raises(RuntimeError, match="broadcast"):
            f(torch.ones(2))
        f(torch.ones(3))
    assert torch.equal(table[0], torch.arange(3.0))


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
