"""What comes out of a call, in plain eager, captured and under jit: no steps, numbers, trees, dtypes, aliases."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import weakref
from types import SimpleNamespace
from typing import Any, NamedTuple

import optree
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import functorch_hops as fh
from modes import every_mode, gradients, plain, same, while_capturing

F64 = torch.float64


# ---------------------------------------------------------------------------------------------------------------------
# nothing to do


@every_mode
def test_while_loop_of_zero_iterations(run):
    x = torch.tensor([1.0, 2.0])
    f = lambda x: fh.while_loop(lambda v: v.sum() < 0, lambda v: v * 2, x)
    same(run(f, x), x)
    same(gradients(run, f, x)[0], torch.ones(2))


@every_mode
def test_fori_loop_of_zero_iterations(run):
    x = torch.tensor([1.0, 2.0])
    for lower, upper in [(3, 3), (4, 1), (torch.tensor(4), 1), (0, torch.tensor(-2))]:
        f = lambda x: fh.fori_loop(lower, upper, lambda i, v: v * i, x)
        same(run(f, x), x)
        same(gradients(run, f, x)[0], torch.ones(2))


@every_mode
def test_scan_of_zero_length(run):
    def f(c, xs):
        return fh.scan(lambda c, x: (c * x.sum(), {"y": (c * x).to(F64), "n": 7, "k": "tag"}), c, xs)

    carry, ys = run(f, torch.tensor(2.0), torch.zeros(0, 3))
    same(carry, torch.tensor(2.0))
    assert ys["y"].shape == (0, 3)
    assert ys["y"].dtype == F64
    same(ys["n"], torch.zeros(0, dtype=torch.int64))
    assert ys["k"] == "tag"


@every_mode
def test_scan_of_length_zero_without_xs(run):
    carry, ys = run(lambda c: fh.scan(lambda c, _: (c + 1, c), c, length=0), torch.tensor(2.0))
    same(carry, torch.tensor(2.0))
    assert ys.shape == (0,)


@every_mode
def test_gradient_of_a_scan_of_zero_length(run):
    f = lambda c, w: fh.scan(lambda c, x: (c * w + x, c), c, torch.zeros(0))[0]
    c, w = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    grads = torch.autograd.grad(run(f, c, w), (c, w), allow_unused=True, materialize_grads=True)
    same(grads, (torch.tensor(1.0), torch.tensor(0.0)))


@every_mode
def test_map_of_zero_length(run):
    for batch_size in (None, 2):
        out = run(lambda xs: fh.map(lambda x: x.sum().to(F64), xs, batch_size=batch_size), torch.zeros(0, 3))
        assert out.shape == (0,)
        assert out.dtype == F64


@every_mode
@pytest.mark.parametrize("n", [0, 1])
def test_associative_scan_of_few_elements(run, n):
    xs = torch.ones(n, 2)
    same(run(lambda xs: fh.associative_scan(torch.mul, xs), xs), xs)
    same(run(lambda xs: fh.associative_scan(torch.mul, xs, reverse=True), xs), xs)


@every_mode
def test_empty_carry(run):
    carry, ys = run(lambda xs: fh.scan(lambda c, x: (c, x * 2), (), xs), torch.arange(3.0))
    assert carry == ()
    same(ys, torch.arange(3.0) * 2)
    carry, ys = run(lambda xs: fh.scan(lambda c, x: (None, None), None, xs), torch.arange(3.0))
    assert carry is None
    assert ys is None
    assert run(lambda x: fh.fori_loop(0, 3, lambda i, c: c, {}), torch.zeros(())) == {}
    assert run(lambda x: fh.cond(x > 0, lambda: (), lambda: ()), torch.ones(())) == ()


@every_mode
def test_while_loop_max_steps(run):
    for steps in (0, 1, 5):
        f = lambda x: fh.while_loop(lambda v: v < 100, lambda v: v * 3, x, max_steps=steps)
        same(run(f, torch.tensor(1.0)), torch.tensor(min(3.0**steps, 243.0)))
        same(
            run(lambda x: fh.while_loop(lambda v: True, lambda v: v + 1, x, max_steps=steps), 1.0),
            1.0 + torch.tensor(steps),
        )


@every_mode
def test_while_loop_whose_condition_is_constantly_false(run):
    same(run(lambda x: fh.while_loop(lambda v: False, lambda v: v + 1, x), torch.ones(2)), torch.ones(2))


# ---------------------------------------------------------------------------------------------------------------------
# leaves


@pytest.mark.filterwarnings("ignore:.*seen")  # what the bodies record
@every_mode
@pytest.mark.parametrize(
    ("number", "dtype"), [(True, torch.bool), (3, torch.int64), (0.5, torch.float32), (1j, torch.complex64)]
)
def test_python_numbers_become_tensors(run, number, dtype):
    def kinds(x):
        seen = []

        def record(v):
            seen.append((isinstance(v, Tensor), v.dtype, v.shape))
            return v

        outs = [
            fh.cond(x > 0, record, record, number),
            fh.switch((x > 0).long(), [record, record], number),
            fh.while_loop(lambda s: s[0] < 1, lambda s: (s[0] + 1, record(s[1])), (0, number))[1],
            fh.fori_loop(0, 2, lambda i, v: record(v), number),
            fh.scan(lambda c, _: (record(c), None), number, length=2)[0],
        ]
        assert set(seen) == {(True, dtype, torch.Size([]))}
        return outs

    for out in run(kinds, torch.tensor(1.0)):
        same(out, torch.tensor(number, dtype=dtype))


@every_mode
def test_python_numbers_that_a_body_returns(run):
    def f(x):
        a = fh.scan(lambda c, _: ((1, 2.0, True), None), (0, 0.0, False), length=2)[0]
        b = fh.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, 4.0), (0, 1.0))[1]
        return a, b

    same(run(f, torch.ones(())), ((torch.tensor(1), torch.tensor(2.0), torch.tensor(True)), torch.tensor(4.0)))


@every_mode
def test_python_numbers_follow_the_default_dtype(run):
    torch.set_default_dtype(F64)
    try:
        out = run(lambda x: fh.fori_loop(0, 2, lambda i, c: c * x, 0.1), torch.tensor(3.0))
    finally:
        torch.set_default_dtype(torch.float32)
    same(out, torch.tensor(0.1, dtype=F64) * 9)


@every_mode
def test_constant_outputs(run):
    def f(x):
        branch = lambda v: {"name": "linear", "y": v, "none": None, "f": torch.sin}
        out = fh.cond(x.sum() > 0, branch, lambda v: {**branch(v), "y": v * 2}, x)
        _, ys = fh.scan(lambda c, _: (c, ("tag", None, torch.sin, c)), x, length=2)
        return out, ys

    x = torch.ones(2)
    out, ys = run(f, x)
    assert (out["name"], out["none"], out["f"]) == ("linear", None, torch.sin)
    same(out["y"], x)
    assert ys[:3] == ("tag", None, torch.sin)
    same(ys[3], torch.ones(2, 2))


class Point(NamedTuple):
    x: Any
    y: Any


@dataclasses.dataclass
class State:
    position: Any
    speed: Any
    name: Any = None


class Registered:
    def __init__(self, a, b):
        self.a, self.b = a, b


torch.utils._pytree.register_pytree_node(
    Registered,
    lambda r: ([r.a, r.b], "context"),
    lambda children, context: Registered(*children),
    serialized_type_name="tests.Registered",
)


@every_mode
@pytest.mark.parametrize(
    ("make", "take"),
    [
        (lambda a, b: {"b": a, "a": b}, lambda t: (t["b"], t["a"])),
        (lambda a, b: [a, (b, None)], lambda t: (t[0], t[1][0])),
        (Point, lambda t: (t.x, t.y)),
        (State, lambda t: (t.position, t.speed)),
        (Registered, lambda t: (t.a, t.b)),
        (lambda a, b: collections.OrderedDict(z=a, a=b), lambda t: (t["z"], t["a"])),
    ],
    ids=["dict", "list", "namedtuple", "dataclass", "registered", "OrderedDict"],
)
def test_trees(run, make, take):
    def step(tree):
        a, b = take(tree)
        return make(a + b, a)

    def f(x):
        init = make(x, x * 0)
        results = [
            fh.scan(lambda c, _: (step(c), step(c)), init, length=3),
            fh.while_loop(lambda t: take(t)[0].sum() < 8, step, init),
            fh.cond(x.sum() > 0, step, lambda t: t, init),
            fh.map(lambda t: make(take(t)[1], take(t)[0]), init),
            fh.associative_scan(lambda s, t: make(take(s)[0] + take(t)[0], take(s)[1] * take(t)[1]), init),
        ]
        return [take(results[0][0]), take(results[0][1]), *(take(r) for r in results[1:])]

    x = torch.ones(2)
    got = run(f, x)
    same(got[0], (x * 3, x * 2))
    same(got[1], (torch.stack([x, x * 2, x * 3]), torch.stack([x, x, x * 2])))
    same(got[2:], [(x * 5, x * 3), (x, x), (x * 0, x), (torch.tensor([1.0, 2.0]), x * 0)])


@every_mode
def test_dtypes_side_by_side_in_a_carry(run):
    """Only some leaves have gradients; float32 and float64 live in one carry."""
    init = {
        "i": torch.tensor(1),
        "b": torch.tensor(True),
        "c": torch.tensor(1 + 1j, dtype=torch.complex128),
        "f": torch.tensor(0.5),
        "d": torch.tensor([2.0, 3.0], dtype=F64),
    }

    def step(s):
        return {
            "i": s["i"] * 2 + s["b"],
            "b": ~s["b"],
            "c": s["c"] * 1j + s["d"].sum(),
            "f": s["f"] * s["i"].to(torch.float32),
            "d": s["d"] * s["f"] + s["c"].real,
        }

    def f(init):
        return fh.fori_loop(0, 3, lambda i, s: step(s), init)

    expected = init
    for _ in range(3):
        expected = step(expected)
    same(run(f, init), expected)

    def loss(d, c, fl):
        out = f({**init, "d": d, "c": c, "f": fl})
        return out["d"].sum() + out["c"].imag + out["f"]

    def oracle(d, c, fl):
        out = {**init, "d": d, "c": c, "f": fl}
        for _ in range(3):
            out = step(out)
        return out["d"].sum() + out["c"].imag + out["f"]

    args = init["d"], init["c"], init["f"]
    same(gradients(run, loss, *args), gradients(plain, oracle, *args))
    same(run(fh.grad(loss, argnums=(0, 1, 2)), *args), torch.func.grad(oracle, argnums=(0, 1, 2))(*args))


# ---------------------------------------------------------------------------------------------------------------------
# aliasing


@every_mode
def test_outputs_that_alias(run):
    def f(x, w):
        a = fh.cond(x.sum() > 0, lambda v: (v, v, v[0], w, v.view(2, 1)), lambda v: (w, v, v[1], v, w.view(2, 1)), x)
        b = fh.scan(lambda c, e: ((c[1], c[0]), (c[0], c[0], e, w, e[:1])), (x, w), torch.stack([x, w]))
        c = fh.while_loop(lambda s: s[0].sum() < 50, lambda s: (s[1], s[0] + s[1], s[0]), (x, w, x))
        d = fh.map(lambda e: (e, e, w), torch.stack([x, w]))
        return a, b, c, d

    def oracle(x, w):
        a = (x, x, x[0], w, x.view(2, 1)) if x.sum() > 0 else (w, x, x[1], x, w.view(2, 1))
        b = (x, w), tuple(torch.stack(p) for p in ((x, w), (x, w), (x, w), (w, w), (x[:1], w[:1])))
        c = (x, w, x)
        while c[0].sum() < 50:
            c = (c[1], c[0] + c[1], c[0])
        d = (torch.stack([x, w]), torch.stack([x, w]), torch.stack([w, w]))
        return a, b, c, d

    def total(f):
        return lambda x, w: sum(leaf.sum() * (i + 1) for i, leaf in enumerate(optree.tree_leaves(f(x, w))))

    for x in (torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 0.5])):
        w = torch.tensor([3.0, 4.0])
        same(run(f, x, w), oracle(x, w))
        same(gradients(run, total(f), x, w), gradients(plain, total(oracle), x, w))
        expected = torch.autograd.functional.hessian(lambda x: total(oracle)(x, w) ** 2, x)
        same(run(fh.hessian(lambda x: total(f)(x, w) ** 2), x), expected)


@while_capturing
def test_writing_to_an_output_leaves_the_input_alone(run):
    """Captured outputs are fresh; plain eager is Python, whose functions may return their arguments."""
    x = torch.ones(2)
    out = run(lambda v: fh.cond(v.sum() > 0, lambda v: v, lambda v: v, v), x)
    out.add_(1)
    same(x, torch.ones(2))


@every_mode
def test_expanded_and_strided_inputs(run):
    x = torch.arange(6.0).reshape(2, 3)
    inputs = [x.t(), torch.ones(1, 3).expand(3, 3), x[:, ::2].t(), torch.ones(()).expand(3)]
    for value in inputs:
        f = lambda v: fh.scan(
            lambda c, e: (c.view(-1).sin().view(c.shape) + e, c.reshape(-1)),
            v,
            value[None].expand(2, *value.shape),
        )
        c, ys = value, []
        for _ in range(2):
            ys.append(c.reshape(-1))
            c = c.sin() + value
        got = run(f, value.contiguous())
        same(got, (c, torch.stack(ys)))


@every_mode
def test_views_of_a_transposed_carry(run):
    w = torch.randn(3, 3)
    f = lambda x: fh.fori_loop(0, 3, lambda i, c: (c.t() @ w).t(), x)
    expected = x = torch.randn(3, 3)
    for _ in range(3):
        expected = (expected.t() @ w).t()
    same(run(f, x), expected)


W = torch.tensor([0.5, 2.0])
NORM = torch.nn.BatchNorm1d(2).eval()


class Config(dict):
    """Attributes are items, and asked for others it raises no AttributeError."""

    __getattr__ = dict.__getitem__


def of_a_cycle(x):
    held = [x]
    held.append(held)
    return fh.cond(x.sum() > -9, lambda: held[1][0], lambda: x + 1)


TRANSFORMS = {
    "vmap": lambda f: lambda x: torch.func.vmap(f)(torch.stack((x, x))),
    "grad": torch.func.grad,
    "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (x,)),
    "vmap of grad": lambda f: lambda x: torch.func.vmap(torch.func.grad(f))(torch.stack((x, x))),
}


class Held(torch.nn.Module):
    """Gives its buffer, by a method of its own."""

    def __init__(self, x):
        super().__init__()
        self.register_buffer("held", x)

    def forward(self):
        return self.again()

    def again(self):
        return self.held


@dataclasses.dataclass(slots=True)
class Slots:
    x: Tensor


HANDED_ON = {
    "operand of a branch": lambda x: fh.cond(True, lambda x: x, lambda x: x + 1, x),
    "closed over": lambda x: fh.cond(torch.tensor(True), lambda: x, lambda: x + 1),
    "global": lambda x: fh.switch(0, [lambda x: W, lambda x: x], x),
    "in a container": lambda x: (lambda held: fh.cond(x.sum() > -9, lambda: held["x"][0], lambda: x + 1))({"x": [x]}),
    "in an object": lambda x: (lambda held: fh.cond(x.sum() > -9, lambda: held.x, lambda: x + 1))(SimpleNamespace(x=x)),
    "in a dict with attributes": lambda x: (lambda held: fh.cond(x.sum() > -9, lambda: held.x, lambda: x + 1))(
        Config(x=x)
    ),
    "in a cycle": of_a_cycle,
    "of a module": lambda x: fh.cond(x.sum() > -9, lambda: NORM.running_var, lambda: x + 1),
    "of a module that is a branch": lambda x: fh.cond(x.sum() > -9, Held(x), lambda: x + 1),
    "of a function in the closure": lambda x: fh.cond(x.sum() > -9, (lambda f: lambda: f())(lambda: x), lambda: x + 1),
    "of a partial": lambda x: fh.cond(x.sum() > -9, functools.partial(lambda x: x, x), lambda: x + 1),
    "in slots": lambda x: (lambda held: fh.cond(x.sum() > -9, lambda: held.x, lambda: x + 1))(Slots(x)),
    "a builtin method": lambda x: fh.cond(x.sum() > -9, x.detach, lambda: x + 1),
    "a default": lambda x: fh.cond(x.sum() > -9, lambda x=x: x, lambda: x + 1),
    "in a queue": lambda x: (lambda held: fh.cond(x.sum() > -9, lambda: held[0], lambda: x + 1))(
        collections.deque([x])
    ),
    "of a checkpoint": lambda x: fh.checkpoint(lambda x: x)(x),
    "closed over by a checkpoint": lambda x: fh.checkpoint(lambda: (x, x[:1]))(),
    "closed over by a step": lambda x: fh.scan(lambda c, _: (W, c), x * 0, length=2)[0],
    "view": lambda x: fh.cond(True, lambda x: x[:1], lambda x: x[1:], x),
    "carry": lambda x: fh.scan(lambda c, _: (c, None), x, length=2)[0],
    "row": lambda x: fh.scan(lambda c, r: (r, None), x[0], x)[0],
    "no step": lambda x: fh.while_loop(lambda c: c.sum() < -99, lambda c: c + 1, x),
    "empty range": lambda x: fh.fori_loop(0, 0, lambda i, c: c + 1, x),
    "twice": lambda x: fh.fori_loop(0, 2, lambda i, c: (c[0] + 1,) * 2, (x, x)),
    "lane": lambda x: fh.vmap(lambda v: fh.cond(True, lambda v: v, lambda v: v, v))(x),
}


@every_mode
@pytest.mark.parametrize("f", HANDED_ON.values(), ids=HANDED_ON)
def test_a_result_is_memory_of_its_own(run, f):
    """Work in place on a result of control flow means the same in every mode."""

    def g(x):
        result = f(x)
        for i, part in enumerate(result if isinstance(result, tuple) else (result,)):
            part.add_(i + 1)
        return result, x * 1, W * 1, NORM.running_var * 1

    x = torch.tensor([1.0, 3.0])
    fresh = f(x.clone())
    expected = tuple(p + i + 1 for i, p in enumerate(fresh)) if isinstance(fresh, tuple) else fresh + 1
    same(run(g, x), (expected, torch.tensor([1.0, 3.0]), torch.tensor([0.5, 2.0]), torch.ones(2)))


RECORDED = {
    "branch": lambda x, w: fh.cond(x.sum() > 0, lambda: (x * w)[0], lambda: (x - w)[0]),
    "checkpoint": lambda x, w: fh.checkpoint(lambda x: (x * w)[0])(x),
    "no step": lambda x, w: fh.while_loop(lambda c: c.sum() > 9, lambda c: (c[None] * w)[0], x[0] * w),
}


@pytest.mark.parametrize("f", RECORDED.values(), ids=RECORDED)
def test_a_result_with_a_history_can_be_written(f):
    """Captured by itself, it leaves an autograd node, whose views torch refuses to write to."""

    def written(capturing):
        x, w = torch.ones(2, 3), torch.arange(1.0, 4.0).requires_grad_()
        with capturing:
            y = f(x, w)
        y.mul_(w)
        return y, torch.autograd.grad(y.sum(), w)

    same(written(fh.eager_capture()), written(contextlib.nullcontext()))


def kept_in(holder, value):
    holder.append(value)
    return value


HELD = {
    "under a name made of strings": lambda x: functools.partial(getattr, Slots(x), "".join("x")),
    "by a module": lambda x: (lambda module: lambda: next(module.buffers()))(Held(x)),
    "by a list of modules": lambda x: (lambda modules: lambda: modules[0].held)(torch.nn.ModuleList([Held(x)])),
    "by a generator": lambda x: functools.partial(next, (x for _ in range(9))),
    "by an iterator in C": lambda x: itertools.repeat(x).__next__,
    "by a weak dictionary": lambda x: functools.partial(weakref.WeakKeyDictionary({NORM: x}).get, NORM),
    "by its storage": lambda x: lambda: x.new_empty(0).set_(x.untyped_storage(), 0, (2,)),
    "by NumPy": lambda x: functools.partial(torch.from_numpy, x.numpy()),
    "by DLPack": lambda x: lambda: torch.from_dlpack(x),
    "as a tree": lambda x: {"x": (x, [x[:1]])}.copy,
    "as a view of a view": lambda x: (lambda v: lambda: v.T[0])(x.view(2, 1)),
    "as a detached alias": lambda x: lambda: x.detach().view(1, 2),
    "beneath a class": lambda x: lambda: x.as_subclass(torch.nn.Buffer),
    "within a transform": lambda x: lambda: torch.func.vmap(lambda a: a, out_dims=0)(x),
}


@pytest.mark.parametrize("transform", [lambda f: f, *TRANSFORMS.values()], ids=["plain", *TRANSFORMS])
@pytest.mark.parametrize("hold", HELD.values(), ids=HELD)
def test_what_anybody_holds_is_copied(hold, transform):
    x = torch.tensor([1.0, 3.0])
    give = hold(x)

    def add_to(result):
        for part in optree.tree_leaves(result):
            part.add_(1)

    def g(y):
        add_to(fh.cond(True, give, give))
        add_to(fh.fori_loop(0, 2, lambda i, c: (c[0] + 1, give()), (y, give()))[1])
        return y.sum()

    add_to(fh.checkpoint(give)())
    transform(g)(torch.ones(2))
    same(x, torch.tensor([1.0, 3.0]))
    same(optree.tree_leaves(give())[0].reshape(2), torch.tensor([1.0, 3.0]))


def test_what_a_body_keeps_is_copied():
    kept, x = [], torch.ones(2)
    results = (
        fh.cond(True, lambda x: kept_in(kept, x + 1), lambda x: x, x),
        fh.scan(lambda c, _: (kept_in(kept, c + 1), c), x, length=2)[0],
        fh.while_loop(lambda c: c.sum() < 9, lambda c: kept_in(kept, (c + 1)[:]), x),
    )
    expected = [t.clone() for t in kept]
    for result in results:
        result.zero_()
    same(kept, expected)


NEW = {
    "a branch": lambda x: fh.cond(True, lambda x: x + 1, lambda x: x, x),
    "a view": lambda x: fh.cond(True, lambda x: (x + 1)[None, 1:][0], lambda x: x, x),
    "a tree": lambda x: fh.switch(0, [lambda x: {"a": x + 1, "b": (x * 2, x[:1] - 1)}], x),
    "a checkpoint": lambda x: fh.checkpoint(lambda x: x.tanh())(x),
    "a scan": lambda x: fh.scan(lambda c, _: (c + 1, c), x, length=2),
    "a carry that is stacked": lambda x: fh.scan(lambda c, _: ((c + 1,) * 2)[:2], x, length=2),
    "a while loop": lambda x: fh.while_loop(lambda c: c["c"].sum() < 9, lambda c: {"c": c["c"] + 1}, {"c": x}),
    "a range": lambda x: fh.fori_loop(0, 3, lambda i, c: c * i, x),
}


@pytest.mark.parametrize("transform", [lambda f: f, torch.func.vmap], ids=["plain", "vmap"])
@pytest.mark.parametrize("f", NEW.values(), ids=NEW)
def test_what_is_new_is_not_copied(f, transform):
    copies = []

    class Copies(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is Tensor.clone:
                copies.append(func)
            return func(*args, **(kwargs or {}))

    def g(x):
        with Copies():
            return optree.tree_leaves(f(x))[0].sum()

    transform(g)(torch.ones(2, 2))
    assert not copies


def test_a_copy_has_the_history_and_attributes_of_what_it_is_of():
    """What autograd saved, here the result of exp, is copied."""
    weight = torch.ones(2, requires_grad=True)

    def kept(x):
        with torch.enable_grad():
            y = (x * weight).exp()
            y.retain_grad()
            y.label = "kept"
            return y

    with torch.no_grad():
        result = fh.cond(True, kept, kept, torch.ones(2))
    result.sum().backward()
    assert result.label == "kept"
    same((result.grad, weight.grad), (torch.ones(2), result.detach()))

    def recorded(x):
        with torch.inference_mode(False):
            return torch.exp(x.clone() * weight)

    with torch.inference_mode():
        result = fh.cond(True, recorded, recorded, torch.ones(2))
    assert result.requires_grad and not result.is_inference()


@every_mode
def test_a_parameter_that_a_branch_returns(run):
    weight = torch.nn.Parameter(torch.tensor([0.5, 2.0]))
    out = run(lambda x: fh.cond(x > 0, lambda: weight, lambda: weight * 2) * 1, torch.tensor(1.0))
    same(torch.autograd.grad(out.sum(), weight), (torch.ones(2),))
    assert fh.cond(True, lambda: weight, lambda: weight) is not weight


@every_mode
@pytest.mark.parametrize(
    "f",
    [
        lambda x: fh.scan(lambda c, r: (c.add_(r), None), x[0], x),
        lambda x: fh.scan(lambda c, r: (c + r.mul_(2), None), x[0], x),
        lambda x: fh.fori_loop(0, 2, lambda i, c: c.add_(1), x),
        lambda x: fh.while_loop(lambda c: c.sum() < 9, lambda c: c.add_(1), x),
        lambda x: fh.map(lambda r: r.add_(1), x),
    ],
    ids=["scan", "row", "fori_loop", "while_loop", "map"],
)
def test_a_body_that_writes_to_its_input_is_refused(run, f):
    with pytest.raises(fh.InputMutationError, match="writes to an input"):
        run(f, torch.ones(3))
