"""Plain-eager calls that need a graph: traced once, never stale, with all their effects, and nothing kept alive."""

import collections
import contextlib
import functools
import gc
import itertools
import random
import time
import weakref

import pytest
import torch
from torch import nn

import functorch_hops as fh
from functorch_hops.calls import trace_cache
from functorch_hops.trace import speculate
from leftovers import are_gone

SCALE = 2.0
COUNT = 0
F64 = torch.float64


@pytest.fixture(autouse=True)
def no_traces():
    trace_cache.forget()


@contextlib.contextmanager
def captures():
    """How many graphs are captured meanwhile, derived ones included."""
    count, trace = [0], speculate._trace

    def counted(*args, **kwargs):
        count[0] += 1
        return trace(*args, **kwargs)

    speculate._trace = counted
    try:
        yield count
    finally:
        speculate._trace = trace


def select(f, xs):
    """`f` in one branch of a cond whose lanes disagree."""
    return torch.func.vmap(lambda x: fh.cond(x > 0, f, torch.neg, x))(xs)


def expected(f, xs):
    return torch.where(xs > 0, f(xs), -xs)


class Lazy:
    @functools.cached_property
    def table(self):
        return 3.0


class Model:
    def __init__(self, k):
        self.k = k

    def __call__(self, x):
        return x * self.k

    def method(self, x):
        return x + self.k


XS = torch.tensor([-1.0, 0.5, 2.0], dtype=F64)
W = torch.tensor([1.0, 2.0, 3.0], dtype=F64)


def newton(a):
    return fh.while_loop(lambda x: (x * x - a).abs() > 1e-9, lambda x: 0.5 * (x + a / x), a)


def iterate(x, w):
    return fh.while_loop(lambda c: c.abs().sum() < 50, lambda c: c * w + 1, x)


def doubled_gradient(k):
    """x ** k, whose gradient is twice the true one."""
    power = fh.custom_vjp(lambda x: x**k)
    power.defvjp(lambda x: (power(x), x), lambda x, ct: (2 * k * x ** (k - 1) * ct,))
    return power


def doubled_tangent(k):
    power = fh.custom_jvp(lambda x: x**k)
    power.defjvp(lambda primals, tangents: (power(*primals), 2 * k * primals[0] ** (k - 1) * tangents[0]))
    return power


def root(a):
    newton = lambda f, x: fh.fori_loop(0, 20, lambda i, x: (x + a.detach() / x) / 2, x)
    return fh.custom_root(lambda x: x * x - a, torch.ones((), dtype=F64), newton, lambda g, y: y / g(1.0))


def solution(a, b):
    return fh.custom_linear_solve(lambda x: a * x, b, lambda matvec, b: b / matvec(1.0), symmetric=True)


CALLS = {
    "cond": lambda k: select(lambda x: x * W[0] + k, XS),
    "switch": lambda k: torch.func.vmap(
        lambda i, x: fh.switch(i, [lambda x: x * W, torch.sin, lambda x: x + k], x), in_dims=(0, None)
    )(torch.arange(3), XS),
    "while_loop": lambda k: torch.func.vmap(newton)(XS.abs() + k),
    "bounded while_loop": lambda k: torch.func.vmap(
        lambda a: fh.while_loop(lambda x: x < 9, lambda x: x * a, a, max_steps=4)
    )(XS + 3),
    "fori_loop": lambda k: torch.func.vmap(lambda n: fh.fori_loop(0, n, lambda i, v: v * 2 + i, XS.sum()))(
        torch.arange(4)
    ),
    "checkpoint": lambda k: fh.grad(fh.checkpoint(lambda x: (x * W).sin().sum() * k))(XS),
    "grad of vmapped while_loop": lambda k: fh.grad(lambda w: fh.vmap(lambda x: iterate(x, w))(XS + 2).sum())(W[1] + k),
    "hessian of checkpoint": lambda k: fh.hessian(fh.checkpoint(lambda x: (x**3 * W).sum()))(XS),
    "jvp of cond": lambda k: fh.jvp(lambda xs: select(lambda x: x**3, xs), (XS,), (W,))[1],
    "nested": lambda k: select(lambda x: fh.cond(x > 1, torch.exp, lambda y: y * k, x), XS),
    "grad of custom_vjp": lambda k: fh.grad(lambda x: doubled_gradient(k)(x).sum())(XS),
    "vmap of custom_vjp": lambda k: fh.vmap(doubled_gradient(k))(XS),
    "jvp of custom_jvp": lambda k: fh.jvp(doubled_tangent(k), (XS,), (W,)),
    "hessian of custom_jvp": lambda k: fh.hessian(lambda x: doubled_tangent(k)(x).sum())(XS),
    "custom_root": lambda k: root(W[k]),
    "grad of custom_root": lambda k: fh.grad(root)(W[k]),
    "vmap of custom_root": lambda k: fh.vmap(fh.grad(root))(W),
    "custom_linear_solve": lambda k: solution(W[0] + k, W[1]),
    "grad of custom_linear_solve": lambda k: fh.grad(solution, argnums=(0, 1))(W[0] + k, W[1]),
}
CAPTURED = {
    "scan": lambda k: fh.scan(lambda c, x: (c * x + k, c), W, torch.stack([XS] * 3)),
    "scan of length 0": lambda k: fh.scan(lambda c, x: (c, (c * x, None)), W, torch.zeros(0, 3, dtype=F64)),
    "cond": lambda k: fh.cond(XS[1] > 0, lambda x: {"y": x * W, "n": None}, lambda x: {"y": x, "n": None}, XS),
    "associative_scan": lambda k: fh.associative_scan(lambda a, b: a * b + k * 0, XS),
    "map": lambda k: fh.map(lambda x: x * W, XS),
    "while_loop": lambda k: iterate(XS, W + 1),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_second_call_captures_nothing(name):
    first = CALLS[name](2)
    with captures() as count:
        second = CALLS[name](2)
    assert count == [0]
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("name", CAPTURED)
def test_nor_does_one_under_eager_capture(name):
    plain = CAPTURED[name](2)
    with fh.eager_capture():
        first = CAPTURED[name](2)
        with captures() as count:
            second = CAPTURED[name](2)
    assert count == [0]
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first, plain)


def test_a_body_made_anew_for_each_call_is_traced_once_per_value():
    def call(k):
        return select(lambda x: x * k, XS)

    for k in (4, 5):
        assert torch.equal(call(k), expected(lambda x, k=k: x * k, XS))
    with captures() as count:
        for k in (5, 4, 5):
            assert torch.equal(call(k), expected(lambda x, k=k: x * k, XS))
    assert count == [0]


def test_bodies_in_a_plain_loop_are_traced_once():
    def step(c, x):
        return select(lambda y: y * c.sum() + x, c), None

    fh.scan(step, XS, W[:1])
    with captures() as count:
        fh.scan(step, XS, W)
    assert count == [0]


# Never stale.


def test_a_rebound_global_is_noticed(monkeypatch):
    for value in (2.0, 3.0, 2.0):
        monkeypatch.setitem(globals(), "SCALE", value)
        assert torch.equal(select(lambda x: x * SCALE, XS), XS.where(XS < 0, -value * XS).neg())


def test_a_closure_is_read_anew():
    def make(k, w):
        return lambda x: x * k + w

    for k, w in [(2, 1.0), (3, 1.0), (2, 4.0)]:
        w = torch.tensor(w, dtype=F64)
        assert torch.equal(select(make(k, w), XS), expected(make(k, w), XS))
    with captures() as count:
        for w in (5.0, 6.0):
            w = torch.tensor(w, dtype=F64)
            assert torch.equal(select(make(3, w), XS), expected(make(3, w), XS))
    assert count == [0]


def test_mutable_closures_are_looked_at():
    config = {"scales": [1.0, 2.0], "weights": [W[0]]}
    f = lambda x: x * sum(config["scales"]) + sum(config["weights"])
    for change in [
        lambda: None,
        lambda: config["scales"].append(3.0),
        lambda: config["weights"].append(W[1]),
        lambda: config["weights"].__setitem__(0, W[2]),
        lambda: config["scales"].__setitem__(0, 7.0),
    ]:
        change()
        assert torch.equal(select(f, XS), expected(f, XS))


def test_two_closures_that_become_one_tensor():
    def make(a, b):
        return lambda x: x * a + b * (2.0 if a is b else 1.0)

    for a, b in [(W[0], W[1]), (W[1], W[1]), (W[0], W[1])]:
        assert torch.equal(select(make(a, b), XS), expected(make(a, b), XS))


def test_shapes_and_dtypes_of_closed_over_tensors():
    for w in (W, W.float(), W.reshape(3, 1), W[:1], W.long()):
        f = lambda x, w=w: (x * w).sum().to(F64)
        got = torch.func.vmap(lambda x, f=f: fh.cond(x > 0, f, torch.neg, x))(XS)
        assert torch.equal(got, torch.stack([f(x) if x > 0 else -x for x in XS]))


def test_attributes_of_tensors():
    w = torch.ones((), dtype=F64)
    f = lambda x: x * w * getattr(w, "factor", 1.0)
    for factor in (None, 2.0, 3.0):
        if factor is not None:
            w.factor = factor
        assert torch.equal(select(f, XS), expected(f, XS))


def test_bound_methods_partials_and_callable_objects():
    first, second = Model(2.0), Model(3.0)
    for model in (first, second, first):
        for f in (model, model.method, functools.partial(torch.add, alpha=model.k, other=W[1])):
            assert torch.equal(select(f, XS), expected(f, XS))
        model.k += 1


@pytest.mark.parametrize("transform", [fh.checkpoint, lambda f: f])
def test_modules(transform):
    module = nn.Sequential(nn.Linear(1, 3), nn.Dropout(0.5), nn.Linear(3, 1)).double().eval()
    f = transform(lambda x: module(x[None]).sum())
    oracle = lambda x: torch.func.vmap(torch.func.grad(lambda x: module(x[None]).sum()))(x)
    for _ in range(2):
        assert torch.allclose(fh.vmap(fh.grad(f))(XS), oracle(XS))
    with torch.no_grad():
        module[0].weight.mul_(3)
    assert torch.allclose(fh.vmap(fh.grad(f))(XS), oracle(XS))
    module[2].weight = nn.Parameter(torch.ones(1, 3, dtype=F64))
    assert torch.allclose(fh.vmap(fh.grad(f))(XS), oracle(XS))
    module[1] = nn.Tanh()
    assert torch.allclose(fh.vmap(fh.grad(f))(XS), oracle(XS))


def test_a_module_is_an_argument_of_checkpoint():
    f = fh.checkpoint(lambda module, x: module(x).sum())
    for bias in (True, False, True):
        module = nn.Linear(3, 2, bias=bias).double()
        grad = fh.grad(lambda x, module=module: f(module, x))(XS)
        assert torch.allclose(grad, module.weight.sum(0))


def test_floats_and_other_values_are_arguments_of_checkpoint():
    f = fh.checkpoint(lambda x, p, how: (x.abs() ** p if p > 1 else x.abs() * p).sum() if how["sum"] else x.max())
    for p in (0.5, 2.0, 3.0):
        got = fh.grad(lambda x, p=p: f(x, p, {"sum": True}))(XS)
        assert torch.allclose(got, torch.func.grad(lambda x, p=p: (x.abs() ** p if p > 1 else x.abs() * p).sum())(XS))
    assert torch.equal(fh.grad(lambda x: f(x, 2.0, {"sum": False}))(XS), torch.tensor([0.0, 0.0, 1.0], dtype=F64))


def test_ambient_settings():
    f = lambda x: x @ torch.ones(2, 2)
    xs = torch.ones(3, 2)
    call = lambda: torch.func.vmap(lambda x: fh.cond(x.sum() > 0, f, lambda x: f(x) * 2, x))(xs)
    assert call().dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert call().dtype == torch.bfloat16
    assert call().dtype == torch.float32
    w = torch.ones(2, requires_grad=True)
    mode = lambda: torch.func.vmap(lambda x: fh.cond(x.sum() > 0, lambda x: x * w, torch.neg, x))(xs)
    assert mode().requires_grad
    with torch.no_grad():
        assert not mode().requires_grad
    assert mode().requires_grad


def test_values_of_transforms_are_closed_over():
    def loss(w, x):
        return select(lambda y: y * w * x, XS).sum()

    def oracle(w, x):
        return torch.where(XS > 0, XS * w * x, -XS).sum()

    w, x = W[1], W[2]
    for _ in range(2):
        for argnums in (0, 1):
            assert torch.allclose(fh.grad(loss, argnums)(w, x), torch.func.grad(oracle, argnums)(w, x))
        mixed = fh.grad(lambda w: fh.grad(loss, 1)(w, x))(w)
        assert torch.allclose(mixed, torch.func.grad(lambda w: torch.func.grad(oracle, 1)(w, x))(w))
        assert torch.allclose(fh.vmap(loss, (0, None))(W, x), torch.func.vmap(oracle, (0, None))(W, x))
        assert torch.allclose(
            fh.vmap(fh.grad(loss), (None, 0))(w, W), torch.func.vmap(torch.func.grad(oracle), (None, 0))(w, W)
        )


# Effects.


def test_counters_count():
    global COUNT
    seen, local, COUNT = [], 0, 0
    holder, table, words = type("Holder", (), {"n": 0})(), collections.Counter(), {"n": 0}

    def in_global(x):
        global COUNT
        COUNT += 1
        return x

    def in_closure(x):
        nonlocal local
        local += 1
        return x

    def in_list(x):
        seen.append(1)
        return x

    def in_attribute(x):
        holder.n += 1
        return x

    def in_counter(x):
        table["calls"] += 1
        return x

    def in_dict(x):
        words["n"] = words["n"] + 1
        return x

    for body in (in_global, in_closure, in_list, in_attribute, in_counter, in_dict):
        for _ in range(4):
            select(body, XS)
    assert [COUNT, local, len(seen), holder.n, table["calls"], words["n"]] == [4] * 6


def test_writing_what_is_not_read():
    last, holder = None, type("Holder", (), {})()

    def in_closure(x):
        nonlocal last
        last = "seen"
        return x

    def in_attribute(x):
        holder.last = "seen"
        return x

    def by_name(x):
        holder.last = "seen"
        return x

    for body in (in_closure, in_attribute, by_name):
        for _ in range(3):
            last = holder.last = None
            select(body, XS)
            assert "seen" in (last, holder.last)


def test_prints_print(capsys):
    for _ in range(3):
        select(lambda x: print("hello") or x, XS)
    assert capsys.readouterr().out.count("hello") == 3


def test_python_that_changes_by_itself():
    numbers, clock = iter(range(100)), itertools.count()
    generator = random.Random(0)

    def values(body):
        return {select(body, torch.ones(1, dtype=F64)).item() for _ in range(3)}

    assert len(values(lambda x: x * random.random())) == 3
    assert len(values(lambda x: x * generator.random())) == 3
    assert len(values(lambda x: x * time.perf_counter())) == 3
    assert len(values(lambda x: x * next(numbers))) == 3
    assert len(values(lambda x: x * next(clock))) == 3


def test_random_numbers_are_fresh():
    def draw():
        noisy = lambda x: fh.cond(x > 0, lambda x: x + torch.rand((), dtype=F64), torch.neg, x)
        return torch.func.vmap(noisy, randomness="different")(torch.ones(2, dtype=F64))

    torch.manual_seed(0)
    first, second = draw(), draw()
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(draw(), first)
    assert torch.equal(draw(), second)


def test_a_lazily_made_value_is_made_once():
    lazy = Lazy()
    body = lambda x: x * lazy.table
    for _ in range(2):
        assert torch.equal(select(body, XS), expected(lambda x: x * 3, XS))
    with captures() as count:
        select(body, XS)
    assert count == [0]
    assert "table" in vars(lazy)


def test_an_error_is_raised_at_every_call():
    for _ in range(2):
        with pytest.raises(fh.MetadataMismatchError):
            torch.func.vmap(lambda x: fh.cond(x > 0, lambda x: x, lambda x: x[None], x))(XS)


def test_an_object_among_the_outputs_is_made_anew():
    class Result:
        pass

    with fh.eager_capture():
        call = lambda: fh.scan(lambda c, x: (c, x), W[0], XS)[0]
        assert torch.equal(call(), call())
        made = [fh.checkpoint(lambda x: (x, Result()))(W)[1] for _ in range(2)]
    assert made[0] is not made[1]


# Memory.


def test_nothing_is_kept_alive():
    def run():
        module, w = nn.Linear(1, 1).double(), torch.ones((), dtype=F64)
        select(lambda x: module(x[None])[0] * w, XS)
        fh.grad(fh.checkpoint(lambda m, x: m(x[None]).sum() * w))
        fh.grad(lambda x: fh.checkpoint(lambda m, x: m(x[None]).sum() * w)(module, x))(w)
        return [weakref.ref(t) for t in (module, module.weight, w)]

    references = run()
    assert len(trace_cache._traces) >= 2
    assert are_gone(*references)


def test_the_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(trace_cache._traces, "maxsize", 3)
    for k in range(6):
        select(lambda x, k=k: x * k, XS)
        assert len(trace_cache._traces) <= 3


def test_what_is_derived_from_a_body_with_effects_is_kept(capsys):
    counts = []
    for _ in range(3):
        gc.collect(1)
        with captures() as count:
            select(lambda x: print("here") or x.sin(), XS)
        counts.append(count[0])
    assert counts[0] > counts[1] == counts[2] == 2  # the two branches


def test_code_that_can_not_be_traced_again_is_not_tried_for_ever():
    seen = []

    def body(x):
        seen.append(0)
        return x

    counts = []
    for _ in range(5):
        with captures() as count:
            select(body, XS)
        counts.append(count[0])
    assert counts[-1] == counts[-2] < counts[0]
