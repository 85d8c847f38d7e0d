"""What a body may do, and what comes out: the semantics that API.md promises, in plain eager, captured and under
jit.
"""

from __future__ import annotations

import collections
import dataclasses
import subprocess
import sys
from typing import Any, NamedTuple

import optree
import pytest
import torch
from torch import Tensor

import functorch_hops as fh
from modes import every_mode, plain, while_capturing

F64 = torch.float64


def same(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected)


def gradients(run, f, *args):
    """Gradients of the sum of ``f`` for all arguments, through plain autograd."""
    args = [a.detach().clone().requires_grad_() for a in args]
    return torch.autograd.grad(run(f, *args).sum(), args)


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
        return fh.scan(lambda c, x: (c * x.sum(), {"y": (c * x).to(F64), "k": 7}), c, xs)

    carry, ys = run(f, torch.tensor(2.0), torch.zeros(0, 3))
    same(carry, torch.tensor(2.0))
    assert ys["y"].shape == (0, 3)
    assert ys["y"].dtype == F64
    assert ys["k"] == 7


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
        _, ys = fh.scan(lambda c, _: (c, ("tag", None, 3, c)), x, length=2)
        return out, ys

    x = torch.ones(2)
    out, ys = run(f, x)
    assert (out["name"], out["none"], out["f"]) == ("linear", None, torch.sin)
    same(out["y"], x)
    assert ys[:3] == ("tag", None, 3)
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


# ---------------------------------------------------------------------------------------------------------------------
# closures


@every_mode
def test_closures_over_values_of_enclosing_bodies(run):
    def f(x, w):
        def outer(c, e):
            scale = c * e

            def inner(d, _):
                inner_scale = d + scale

                def innermost(v):
                    return v * inner_scale + w + scale.sum()

                return fh.cond(d.sum() > 1, innermost, lambda v: v - inner_scale, d), scale

            d, s = fh.scan(inner, c, length=2)
            return d * scale, s.sum()

        return fh.scan(outer, x, torch.stack([x, w]))

    def oracle(x, w):
        c, ys = x, []
        for e in (x, w):
            scale, d = c * e, c
            for _ in range(2):
                inner_scale = d + scale
                d = d * inner_scale + w + scale.sum() if d.sum() > 1 else d - inner_scale
            ys.append(2 * scale.sum())
            c = d * scale
        return c, torch.stack(ys)

    x, w = torch.tensor([0.5, -0.3], dtype=F64), torch.tensor([0.8, 0.4], dtype=F64)
    same(run(f, x, w), oracle(x, w))
    loss = lambda f: lambda x, w: f(x, w)[0].sum() + f(x, w)[1].prod()
    same(gradients(run, loss(f), x, w), gradients(plain, loss(oracle), x, w))


@every_mode
def test_branches_that_close_over_different_tensors(run):
    """Each branch lifts what the other does not, at every depth and in every kind of enclosing body."""
    a, b, d = (torch.tensor(v, dtype=F64) for v in ([2.0, 3.0], [0.5, 1.5], [1.0, -2.0]))
    choose = lambda v: fh.cond(v.sum() > 0, lambda u: u * a, lambda u: u + b, v)
    around = [
        lambda v: fh.cond(v.sum() > 0, choose, lambda u: u - d, v),
        lambda v: fh.switch((v.sum() > 0).long(), [choose, lambda u: choose(u) * d, torch.neg], v),
        lambda v: fh.scan(lambda c, _: (choose(c), None), v, length=1)[0],
        lambda v: fh.while_loop(lambda s: s[0] < 1, lambda s: (s[0] + 1, choose(s[1])), (0, v))[1],
        lambda v: fh.map(choose, v[None])[0],
        lambda v: fh.checkpoint(choose)(v),
        # The branch that closes over nothing is equal to one that was captured before.
        lambda v: fh.cond(v.sum() > 0, lambda u: fh.cond(u.sum() > 0, lambda t: t * a, torch.neg, u), torch.neg, v),
    ]
    chosen = lambda v: v * a if v.sum() > 0 else v + b
    expected = [
        lambda v: chosen(v) if v.sum() > 0 else v - d,
        lambda v: chosen(v) * d if v.sum() > 0 else chosen(v),
        *(chosen for _ in range(4)),
        lambda v: v * a if v.sum() > 0 else -v,
    ]
    for f, oracle in zip(around, expected, strict=True):
        for v in (torch.tensor([1.0, 0.5], dtype=F64), torch.tensor([-1.0, 0.5], dtype=F64)):
            same(run(f, v), oracle(v))
            same(gradients(run, f, v), gradients(plain, oracle, v))


@every_mode
def test_closures_over_wrapped_tensors(run):
    """The body closes over values of two enclosing transforms at once, and over one outside of both."""
    w = torch.tensor([0.3, 0.7], dtype=F64)

    def f(a, b):
        def of_b(b):
            step = lambda c, _: (c * a + b * w, c.sum() * a)
            return fh.scan(step, b, length=3)[0].sum()

        return fh.grad(of_b)(b)

    def oracle(a, b):
        return torch.func.grad(lambda b: ((b * a + b * w) * a + b * w).mul(a).add(b * w).sum())(b)

    a, b = torch.tensor([0.5, -1.0, 2.0], dtype=F64), torch.randn(3, 2, dtype=F64)
    same(run(fh.vmap(f), a, b), torch.stack([oracle(x, y) for x, y in zip(a, b)]))
    same(run(fh.jacrev(f), a[0], b[0]), torch.func.jacrev(oracle)(a[0], b[0]))
    same(run(fh.jacfwd(f), a[0], b[0]), torch.func.jacrev(oracle)(a[0], b[0]))


@every_mode
def test_modules_as_bodies(run):
    layer = torch.nn.Linear(3, 3, dtype=F64)
    x = torch.randn(3, dtype=F64)
    loss = lambda x: fh.fori_loop(0, 3, lambda i, c: torch.tanh(layer(c)), x).sum()
    got = torch.autograd.grad(run(loss, x), list(layer.parameters()))
    c = x
    for _ in range(3):
        c = torch.tanh(layer(c))
    same(got, torch.autograd.grad(c.sum(), list(layer.parameters())))
    same(run(lambda x: fh.scan(lambda c, _: (layer(c), None), x, length=2)[0], x), layer(layer(x)))
    same(run(lambda x: fh.cond(x.sum() > -100, layer, layer, x), x), layer(x))
    same(run(lambda x: fh.map(layer, x.expand(2, 3)), x), layer(x.expand(2, 3)))


@every_mode
def test_functional_call_in_a_body(run):
    layer = torch.nn.Linear(3, 3, dtype=F64)
    params = {k: v.detach() for k, v in layer.named_parameters()}
    x = torch.randn(3, dtype=F64)

    def loss(params, x):
        step = lambda i, c: torch.func.functional_call(layer, params, c)
        return fh.fori_loop(0, 2, step, x).sum()

    oracle = lambda params, x: torch.func.functional_call(
        layer, params, torch.func.functional_call(layer, params, x)
    ).sum()
    same(run(fh.grad(loss), params, x), torch.func.grad(oracle)(params, x))


# ---------------------------------------------------------------------------------------------------------------------
# indexing by a traced integer


@every_mode
def test_indexing(run):
    table = torch.arange(24.0, dtype=F64).reshape(4, 3, 2)

    def read(t, i, j):
        return (
            t[i], t[-i - 1], t[i, j], t[:, j], t[..., i % 2], t[1:, j, ::1], t[i, 1:], t[None, i], t[i, :, 0], t[i][j],
            t[i, torch.tensor([0, 2])], t[torch.tensor([0, 2])][:, j],
        )  # fmt: skip

    f = lambda t: fh.scan(lambda c, e: (c, read(t, *e)), 0, (torch.tensor([3, 0, 2]), torch.tensor([1, 2, 0])))[1]
    rows = [read(table, i, j) for i, j in [(3, 1), (0, 2), (2, 0)]]
    same(run(f, table), tuple(torch.stack(column) for column in zip(*rows)))
    weights = [torch.randn_like(o) for o in f(table)]
    loss = lambda f: lambda t: sum((o * w).sum() for o, w in zip(f(t), weights))
    oracle = lambda t: tuple(torch.stack(c) for c in zip(*[read(t, i, j) for i, j in [(3, 1), (0, 2), (2, 0)]]))
    same(gradients(run, loss(f), table), gradients(plain, loss(oracle), table))


@every_mode
def test_indexed_writes(run):
    def write(b, i, j, v):
        b = b.clone()
        b[i] = v
        b[-j - 1, j] += 1.0
        b[:, i] = b[:, j] * 2
        b[i, 1:] = v[1:] * b[j, 0].clone()
        b[..., j] = 0.25
        b[i, j] = 7
        return b

    pairs = [(2, 1), (0, 2), (1, 0)]
    v = torch.tensor([0.1, 0.2, 0.3], dtype=F64)

    def f(b, v):
        xs = torch.tensor([p[0] for p in pairs]), torch.tensor([p[1] for p in pairs])
        return fh.scan(lambda c, e: (write(c, e[0], e[1], v), None), b, xs)[0]

    def oracle(b, v):
        for i, j in pairs:
            b = write(b, i, j, v)
        return b

    b = torch.randn(3, 3, dtype=F64)
    same(run(f, b, v), oracle(b, v))
    same(
        gradients(run, lambda b, v: f(b, v) ** 2, b, v),
        gradients(plain, lambda b, v: oracle(b, v) ** 2, b, v),
    )


@every_mode
def test_indexing_under_vmap(run):
    f = lambda t, k: fh.fori_loop(0, 3, lambda i, c: c + t[i] * t[(k + i) % 3], torch.zeros((), dtype=F64))
    t, k = torch.randn(2, 3, dtype=F64), torch.tensor([0, 2])
    expected = torch.stack([sum(r[i] * r[(s + i) % 3] for i in range(3)) for r, s in zip(t, k.tolist())])
    same(run(fh.vmap(f), t, k), expected)


@every_mode
def test_indexing_by_an_argmax(run):
    def f(t):
        return fh.scan(lambda c, row: (c + row[row.argmax()], t[row.argmin()]), t.new_zeros(()), t)

    t = torch.tensor([[1.0, 3.0], [5.0, 2.0]])
    same(run(f, t), (torch.tensor(8.0), torch.stack([t[0], t[1]])))


# ---------------------------------------------------------------------------------------------------------------------
# in-place work on intermediates


@every_mode
def test_in_place_on_intermediates(run):
    def step(c):
        a = c * 2
        a += c
        a.mul_(c.detach()).sin_()
        b = torch.zeros_like(c)
        b[1:] = a[1:]
        b[0].copy_(a.sum())
        view = b.view(3, 1)
        view.add_(1)
        b.sub_(a).mul_(2.0)
        return b.tanh_() * 0.3

    def oracle_step(c):
        a = torch.sin((c * 2 + c) * c.detach())
        b = torch.cat([a.sum()[None], a[1:]]) + 1
        return torch.tanh((b - a) * 2.0) * 0.3

    f = lambda c: fh.fori_loop(0, 3, lambda i, c: step(c), c)
    oracle = lambda c: oracle_step(oracle_step(oracle_step(c)))
    c = torch.tensor([0.3, -0.2, 0.6], dtype=F64)
    same(run(f, c), oracle(c))
    same(gradients(run, f, c), gradients(plain, oracle, c))
    same(run(fh.jacfwd(f), c), torch.func.jacfwd(oracle)(c))
    same(run(fh.vmap(fh.jacrev(f)), c[None]), torch.func.jacrev(oracle)(c)[None])


# ---------------------------------------------------------------------------------------------------------------------
# grad mode, detach, autocast, custom functions


@every_mode
def test_no_grad_in_a_body(run):
    def step(c):
        with torch.no_grad():
            scale = c.abs().max() + 1
            with torch.enable_grad():
                kept = c * 3
        return c / scale + kept * 0.1

    f = lambda c: fh.fori_loop(0, 3, lambda i, c: step(c), c)
    oracle = lambda c: step(step(step(c)))
    c = torch.tensor([0.5, -2.0], dtype=F64)
    same(gradients(run, f, c), gradients(plain, oracle, c))
    same(run(fh.grad(lambda c: f(c).sum()), c), torch.func.grad(lambda c: oracle(c).sum())(c))
    same(run(lambda c: fh.jvp(f, (c,), (c,)), c), torch.func.jvp(oracle, (c,), (c,)))


@every_mode
def test_no_grad_around(run):
    x = torch.tensor([0.5, -2.0], requires_grad=True)
    with torch.no_grad():
        out = run(lambda x: fh.fori_loop(0, 2, lambda i, c: c * x, x), x)
    assert not out.requires_grad
    same(out, x.detach() ** 3)

    def inside(x):
        with torch.no_grad():
            y = fh.fori_loop(0, 2, lambda i, c: c * x, x)
        return x * y

    same(gradients(run, inside, x.detach()), (x.detach() ** 3,))


def detached_in_place(c):
    v = c * 2
    v.detach_()
    return v * c


def written_after_detach(c):
    v = (c * 2).detach()
    v.mul_(c)
    v[0] = c[1]
    return v * c


def written_behind_detach(c):
    v = c * 2
    w = v.detach()
    v.mul_(c)
    return v * w


@while_capturing
@pytest.mark.parametrize("step", [detached_in_place, written_after_detach, written_behind_detach])
def test_detach_and_writes(run, step):
    x = torch.tensor([0.5, -0.7], dtype=F64)
    loop = lambda x: fh.fori_loop(0, 2, lambda i, c: step(c), x)
    same(run(loop, x), step(step(x)))
    same(gradients(run, loop, x), gradients(plain, lambda x: step(step(x)), x))
    lanes = torch.stack([x, x + 1])
    same(gradients(run, fh.vmap(loop), lanes), gradients(plain, lambda x: step(step(x)), lanes.T)[0].T[None].unbind())


@while_capturing
def test_a_write_that_keeps_an_old_history_is_refused(run):
    def step(c):
        v = c * 2
        v.detach().mul_(3)
        return v * c

    with pytest.raises(fh.CaptureError, match=r"an in-place operation on a detached alias .*\n.*\n.*\n  got: mul_ on"):
        run(lambda x: fh.fori_loop(0, 2, lambda i, c: step(c), x), torch.ones(2))


@while_capturing
def test_detach_in_place_within_a_transform(run):
    slope = lambda tools: lambda c: tools.grad(lambda c: ((c * 2).detach_() * c).sum())(c)
    x = torch.tensor([0.5, -0.7], dtype=F64)
    loop = lambda x: fh.fori_loop(0, 1, lambda i, c: slope(fh)(c), x)
    same(gradients(run, loop, x), gradients(plain, slope(torch.func), x))


@while_capturing
def test_complex_parts(run):
    """Derivatives of a spectrum, and of writes to parts of complex values."""

    def step(c):
        z = torch.complex(c, c * 2) * 1j
        z[1:] = z[:-1] * 2
        z[0] = c[0]
        return z.real + z.imag**2 + torch.fft.rfft(c).abs().sum()

    x = torch.tensor([0.5, -0.7, 0.3], dtype=F64)
    loop = lambda x: fh.fori_loop(0, 2, lambda i, c: step(c), x).sum()
    oracle = lambda x: step(step(x)).sum()
    same(run(fh.grad(loop), x), torch.func.grad(oracle)(x))
    same(run(fh.hessian(loop), x), torch.func.hessian(oracle)(x))


@while_capturing
def test_an_operator_without_second_derivative(run):
    """It is missed where it is computed, not where a transform prepares it."""
    attention = lambda c: torch.nn.functional.scaled_dot_product_attention(c, c, c)
    x = torch.linspace(-1, 1, 12, dtype=F64).reshape(1, 1, 3, 4)
    loop = lambda x: fh.fori_loop(0, 2, lambda i, c: attention(c), x).square().sum()
    oracle = lambda x: attention(attention(x)).square().sum()
    same(run(fh.grad(loop), x), torch.func.grad(oracle)(x))
    with pytest.raises(fh.ArgumentTypeError, match=r"attention.* it has no reverse-mode derivative"):
        run(fh.grad(lambda x: fh.grad(loop)(x).sum()), x)


@every_mode
def test_distributions(run):
    def log_probability(x):
        normal = torch.distributions.MultivariateNormal(x, torch.eye(2, dtype=F64))
        gamma = torch.distributions.Gamma(x.exp(), torch.ones(2, dtype=F64))
        return normal.log_prob(x.detach() + 1) + gamma.log_prob(x.exp()).sum()

    x = torch.tensor([0.5, -0.7], dtype=F64)
    loop = lambda x: fh.fori_loop(0, 2, lambda i, c: c + log_probability(c), x)
    oracle = lambda x: (x + log_probability(x)) + log_probability(x + log_probability(x))
    same(run(loop, x), oracle(x))
    same(gradients(run, loop, x), gradients(plain, oracle, x))
    with pytest.raises(ValueError, match="constraint"):
        torch.distributions.Gamma(-x.exp(), x.exp())


@every_mode
def test_detach_in_a_body(run):
    step = lambda c: c * c.detach() + torch.sin(c.detach())
    f = lambda c: fh.fori_loop(0, 3, lambda i, c: step(c), c)
    oracle = lambda c: step(step(step(c)))
    c = torch.tensor([0.5, -0.7], dtype=F64)
    same(gradients(run, f, c), gradients(plain, oracle, c))
    same(run(fh.jacfwd(f), c), torch.func.jacfwd(oracle)(c))
    same(run(fh.jacfwd(fh.jacrev(f)), c), torch.func.jacfwd(torch.func.jacrev(oracle))(c))


@every_mode
def test_autocast_in_a_body(run):
    w = torch.randn(4, 4)

    def step(c):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = c @ w
            assert y.dtype == torch.bfloat16
        return y.float() * 0.5

    f = lambda c: fh.fori_loop(0, 2, lambda i, c: step(c), c)
    oracle = lambda c: step(step(c))
    c = torch.randn(4, 4)
    same(run(f, c), oracle(c))
    same(gradients(run, f, c), gradients(plain, oracle, c))


@every_mode
def test_autocast_around(run):
    w = torch.randn(4, 4)
    f = lambda c: fh.scan(lambda c, _: ((c @ w).float(), c @ w), c, length=2)
    oracle = lambda c: (((c @ w).float() @ w).float(), torch.stack([c @ w, (c @ w).float() @ w]))
    c = torch.randn(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, expected = run(f, c), oracle(c)
        assert got[1].dtype == torch.bfloat16
        same(got, expected)
        loss = lambda f: lambda c: f(c)[0].sum()
        got = gradients(run, loss(f), c)
        same(got, gradients(plain, loss(oracle), c))
    same(run(f, c), oracle(c))


class ScaledGradient(torch.autograd.Function):
    """Its gradient is wrong on purpose: one can see which rule ran."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, k):
        return x * 2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.k = inputs[1]

    @staticmethod
    def backward(ctx, ct):
        (x,) = ctx.saved_tensors
        return ct * ctx.k * x, None


class OldStyle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, ct):
        (x,) = ctx.saved_tensors
        return ct * 10 * x


@every_mode
def test_autograd_function_in_a_body(run):
    f = lambda c: fh.fori_loop(0, 2, lambda i, c: ScaledGradient.apply(c, 5), c)
    oracle = lambda c: ScaledGradient.apply(ScaledGradient.apply(c, 5), 5)
    c = torch.tensor([0.5, -0.7], dtype=F64)
    same(run(f, c), c * 4)
    same(gradients(run, f, c), gradients(plain, oracle, c))
    loss = lambda f: lambda c: f(c).sum()
    same(run(fh.grad(loss(f)), c), torch.func.grad(loss(oracle))(c))
    same(run(fh.vmap(fh.grad(loss(f))), c[None]), torch.func.grad(loss(oracle))(c)[None])
    same(run(fh.jacrev(fh.jacrev(loss(f))), c), torch.func.jacrev(torch.func.jacrev(loss(oracle)))(c))


@every_mode
def test_old_style_autograd_function_in_a_body(run):
    f = lambda c: fh.cond(c.sum() < 100, OldStyle.apply, torch.neg, c)
    c = torch.tensor([0.5, -0.7], dtype=F64)
    same(run(f, c), c.sin())
    same(gradients(run, f, c), (10 * c,))


@every_mode
def test_transforms_in_a_body(run):
    w = torch.tensor([0.4, 0.8], dtype=F64)

    def step(c):
        slope = torch.func.grad(lambda v: (v**3 * w).sum())(c)
        _, t = torch.func.jvp(torch.sin, (c,), (w,))
        jac = fh.jacrev(lambda v: v * v.sum())(c)
        return 0.2 * (slope + t + jac @ w + torch.vmap(lambda a, b: a * b)(c, w))

    def oracle_step(c):
        jac = torch.eye(2, dtype=F64) * c.sum() + c[:, None]
        return 0.2 * (3 * c**2 * w + torch.cos(c) * w + jac @ w + c * w)

    f = lambda c: fh.fori_loop(0, 2, lambda i, c: step(c), c)
    oracle = lambda c: oracle_step(oracle_step(c))
    c = torch.tensor([0.5, -0.7], dtype=F64)
    same(run(f, c), oracle(c))
    same(gradients(run, f, c), gradients(plain, oracle, c))
    same(run(fh.hessian(lambda c: f(c).sum()), c), torch.func.hessian(lambda c: oracle(c).sum())(c))
    same(run(fh.vmap(f), c[None]), oracle(c)[None])


@every_mode
def test_backward_inside_a_body(run):
    """Plain autograd on values of the body itself."""

    def step(c):
        v = c.detach().requires_grad_()
        (slope,) = torch.autograd.grad((v**3).sum(), v)
        return c - 0.1 * slope

    c = torch.tensor([0.5, -0.7], dtype=F64)
    once = lambda c: c - 0.3 * c.detach() ** 2
    f = lambda c: fh.fori_loop(0, 2, lambda i, c: step(c), c)
    same(run(f, c), once(once(c)))


# ---------------------------------------------------------------------------------------------------------------------
# random numbers


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
        noise_of = fh.scan(lambda s, _: _noisy(s, c), torch.zeros((), dtype=F64), length=4)
        return noise_of[0], noise_of[1]

    def _noisy(s, c):
        noise = torch.rand(3, dtype=F64)
        return s + (c * noise).sum(), noise

    c = torch.randn(3, dtype=F64, requires_grad=True)
    total, noise = run(f, c)
    same(torch.autograd.grad(total, c)[0], noise.sum(0))
    slope, noise = run(lambda c: fh.grad(f, has_aux=True)(c), c.detach())
    same(slope, noise.sum(0))


@every_mode
def test_dropout_in_a_body(run):
    c = torch.ones(100, dtype=F64, requires_grad=True)
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


# ---------------------------------------------------------------------------------------------------------------------
# fixpoints


@every_mode
def test_a_carry_that_is_reached_after_several_iterations(run):
    """vmap, jvp and grad reach leaf k of the carry only after k iterations; the leaves shift in each."""
    w = torch.tensor([0.5, 1.5], dtype=F64)
    shifted = lambda c: (c[3], c[0] * w[0], c[1] * c[1], c[2] + 1)
    steps = {
        "scan": lambda x: fh.scan(lambda c, _: (shifted(c), None), _init(x), length=6)[0],
        "while": lambda x: fh.while_loop(lambda s: s[0] < 6, lambda s: (s[0] + 1, shifted(s[1])), (0, _init(x)))[1],
    }

    def _init(x):
        one = torch.ones((), dtype=F64)
        return (x, one, one * 2, one * 3)

    def oracle(x):
        c = _init(x)
        for _ in range(6):
            c = (c[3], c[0] * w[0], c[1] * c[1], c[2] + 1)
        return c

    x = torch.tensor([0.3, 0.9], dtype=F64)
    for f in steps.values():
        same(run(fh.vmap(f), x), tuple(torch.stack(column) for column in zip(*map(oracle, x))))
        same(run(fh.jacfwd(f), x[0]), torch.func.jacfwd(oracle)(x[0]))
        same(run(fh.jacrev(f), x[0]), torch.func.jacrev(oracle)(x[0]))
        same(
            gradients(run, lambda x: f(x)[2] * f(x)[0], x[0]),
            gradients(plain, lambda x: oracle(x)[2] * oracle(x)[0], x[0]),
        )


@every_mode
def test_a_weight_that_enters_late(run):
    """The carry is not batched, nor active, until a closed-over weight reaches it in the second iteration."""

    def f(w):
        def step(c, _):
            a, b = c
            return (b, a + w * b.sum()), a

        z = torch.ones(2, dtype=F64)
        return fh.scan(step, (z, z * 0), length=3)

    def oracle(w):
        a, b, ys = torch.ones(2, dtype=F64), torch.zeros(2, dtype=F64), []
        for _ in range(3):
            ys.append(a)
            a, b = b, a + w * b.sum()
        return (a, b), torch.stack(ys)

    w = torch.tensor([0.5, 2.0], dtype=F64)
    expected = [oracle(v) for v in w]
    got = run(fh.vmap(f), w)
    same(got[1], torch.stack([e[1] for e in expected]))
    same(got[0][1], torch.stack([e[0][1] for e in expected]))
    same(run(fh.jacrev(f), w[0]), torch.func.jacrev(oracle)(w[0]))
    same(run(fh.jacfwd(f), w[0]), torch.func.jacfwd(oracle)(w[0]))


# ---------------------------------------------------------------------------------------------------------------------
# predicates


@every_mode
@pytest.mark.parametrize(
    "pred",
    [
        torch.tensor(2.5),
        torch.tensor([[1]]),
        torch.tensor([-1], dtype=torch.int8),
        torch.tensor(1j),
        True,
        3,
        0.1,
    ],
    ids=str,
)
def test_predicates_of_any_kind(run, pred):
    for value, expected in [(pred, 2.0), (pred * 0, -2.0)]:
        x = torch.tensor(2.0)
        f = lambda v: fh.cond(value, lambda v: v * 1, lambda v: v * -1, v)
        same(run(f, x), torch.tensor(expected))


@while_capturing
def test_a_python_predicate_is_static(run):
    """Only the branch that it takes is captured."""

    def refuse(v):
        raise AssertionError("the other branch must not run")

    same(run(lambda x: fh.cond(True, torch.neg, refuse, x), torch.ones(2)), -torch.ones(2))
    same(run(lambda x: fh.cond(0, refuse, torch.neg, x), torch.ones(2)), -torch.ones(2))
    same(run(lambda x: fh.switch(1, [refuse, torch.neg, refuse], x), torch.ones(2)), -torch.ones(2))


@every_mode
def test_switch_clamps(run):
    branches = [lambda v: v, lambda v: v * 2, lambda v: v * 3]
    for index, factor in [(-5, 1), (0, 1), (1, 2), (2, 3), (9, 3)]:
        for i in (index, torch.tensor(index), torch.tensor([index], dtype=torch.int32)):
            same(run(lambda x: fh.switch(i, branches, x), torch.ones(2)), torch.ones(2) * factor)


@every_mode
def test_branches_that_disagree_about_gradients(run):
    """pytorch/pytorch 141259: one branch returns a constant, or only part depends on a weight."""
    w = torch.tensor(3.0)

    def f(x, w):
        return fh.cond(x > 0, lambda v: (v * 0).detach() + 5.0, lambda v: v * w, x)

    same(gradients(run, f, torch.tensor(-2.0), w), (torch.tensor(3.0), torch.tensor(-2.0)))
    x, w = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    out = run(f, x, w)
    if out.requires_grad:
        same(torch.autograd.grad(out, (x, w), materialize_grads=True), (torch.tensor(0.0), torch.tensor(0.0)))


# ---------------------------------------------------------------------------------------------------------------------
# lanes and NaN


def _by_lanes(f, x):
    return torch.stack([f(v) for v in x])


NAN_BRANCHES = {
    "sqrt": (lambda v: v > 0, torch.sqrt, lambda v: v * 2, [4.0, 0.0, 9.0]),
    "log": (lambda v: v > 0, torch.log, lambda v: v * v, [2.0, -1.0, 0.0]),
    "division": (lambda v: v != 0, lambda v: torch.sin(v) / v, lambda v: 1 - v**2 / 6, [0.5, 0.0, 2.0]),
    "no lane": (lambda v: v > 100, torch.log, lambda v: v**3, [-2.0, 0.0, -1.0]),
    "all lanes": (lambda v: v > -100, lambda v: v**3, torch.log, [-2.0, 0.0, -1.0]),
    "power": (lambda v: v > 0, lambda v: v**0.5 * v.log(), lambda v: v * 0.5, [3.0, -2.0, 0.0]),
}


@every_mode
@pytest.mark.parametrize("case", NAN_BRANCHES)
def test_the_branch_not_taken_poisons_nothing(run, case):
    """jax-ml/jax 5658: value, tangent and gradient of each lane, to second order."""
    pred, yes, no, lanes = NAN_BRANCHES[case]
    x = torch.tensor(lanes, dtype=F64)
    f = lambda v: fh.cond(pred(v), yes, no, v)
    oracle = lambda v: yes(v) if pred(v) else no(v)
    same(run(fh.vmap(f), x), _by_lanes(oracle, x))
    for transform in (
        fh.grad,
        fh.jacfwd,
        lambda g: fh.grad(fh.grad(g)),
        lambda g: fh.jacfwd(fh.grad(g)),
        fh.hessian,
    ):
        order = 1 if transform in (fh.grad, fh.jacfwd) else 2
        slope = torch.func.grad(oracle) if order == 1 else torch.func.grad(torch.func.grad(oracle))
        same(run(fh.vmap(transform(f)), x), _by_lanes(slope, x))
    whole = lambda x: fh.vmap(f)(x).sum()
    same(run(fh.grad(whole), x), _by_lanes(torch.func.grad(oracle), x))
    same(run(fh.hessian(whole), x), torch.diag(_by_lanes(torch.func.grad(torch.func.grad(oracle)), x)))
    same(gradients(run, lambda x: fh.vmap(f)(x), x)[0], _by_lanes(torch.func.grad(oracle), x))


@every_mode
def test_closed_over_tensors_are_not_poisoned(run):
    """The gradient of a closed-over weight, batched and not, is that of the lanes that took its branch."""
    x = torch.tensor([4.0, 0.0, -3.0], dtype=F64)
    u = torch.tensor([2.0, 0.0, -5.0], dtype=F64)
    w = torch.tensor(0.5, dtype=F64)

    def f(x, u, w):
        return fh.cond(x > 0, lambda: torch.sqrt(x) * torch.log(u) * torch.sqrt(w * u), lambda: x * u * w)

    def oracle(x, u, w):
        return torch.sqrt(x) * torch.log(u) * torch.sqrt(w * u) if x > 0 else x * u * w

    whole = lambda x, u, w: fh.vmap(f, in_dims=(0, 0, None))(x, u, w).sum()
    total = lambda x, u, w: sum(oracle(a, b, w) for a, b in zip(x, u))
    same(run(fh.grad(whole, argnums=(0, 1, 2)), x, u, w), torch.func.grad(total, argnums=(0, 1, 2))(x, u, w))
    same(gradients(run, whole, x, u, w), torch.func.grad(total, argnums=(0, 1, 2))(x, u, w))
    second = lambda g: lambda x, u, w: torch.stack([s.sum() for s in g(x, u, w)]).sum()
    slopes = fh.grad(second(fh.grad(whole, argnums=(0, 1, 2))), argnums=(0, 1, 2))
    expected = torch.func.grad(second(torch.func.grad(total, argnums=(0, 1, 2))), argnums=(0, 1, 2))
    same(run(slopes, x, u, w), expected(x, u, w))


@every_mode
def test_branches_under_vmap_of_vmap(run):
    """The inner predicate depends on both lanes, the outer one on one; each untaken branch has a NaN gradient."""

    def f(a, b):
        inner = lambda v: fh.cond(v + b > 0, lambda s: torch.sqrt(s + b), lambda s: s * b, v)
        return fh.cond(a > 0, lambda v: inner(v) * torch.log(v), lambda v: torch.exp(v) * b, a)

    def oracle(a, b):
        if a > 0:
            return (torch.sqrt(a + b) if a + b > 0 else a * b) * torch.log(a)
        return torch.exp(a) * b

    a, b = torch.tensor([0.0, 2.0, -1.0], dtype=F64), torch.tensor([-2.0, 0.0, 1.0, -5.0], dtype=F64)
    both = lambda f: fh.vmap(fh.vmap(f, in_dims=(None, 0)), in_dims=(0, None))
    rows = lambda f: torch.stack([torch.stack([f(x, y) for y in b]) for x in a])
    same(run(both(f), a, b), rows(oracle))
    same(run(both(fh.grad(f)), a, b), rows(torch.func.grad(oracle)))
    same(run(both(fh.grad(f, argnums=1)), a, b), rows(torch.func.grad(oracle, argnums=1)))


def _newton(x):
    """The square root of x by Newton's rule; x = 0 finishes at once, and would divide by zero afterwards."""

    def body(state):
        y, _ = state
        new = y - (y * y - x) / (2 * y)
        return new, (new - y).abs()

    init = (x, x.abs())
    return fh.while_loop(lambda s: s[1] > 1e-6, body, init)[0]


def _newton_oracle(x):
    y, change = x, x.abs()
    while change > 1e-6:
        new = y - (y * y - x) / (2 * y)
        y, change = new, (new - y).abs()
    return y


@every_mode
def test_finished_lanes_poison_nothing(run):
    x = torch.tensor([0.0, 2.0, 1e-3, 400.0], dtype=F64)
    same(run(fh.vmap(_newton), x), _by_lanes(_newton_oracle, x))
    slope = torch.func.grad(_newton_oracle)
    same(run(fh.vmap(fh.grad(_newton)), x), _by_lanes(slope, x))
    same(run(fh.vmap(fh.jacfwd(_newton)), x), _by_lanes(slope, x))
    same(run(fh.grad(lambda x: fh.vmap(_newton)(x).sum()), x), _by_lanes(slope, x))
    curvature = torch.func.grad(slope)
    same(run(fh.vmap(fh.grad(fh.grad(_newton))), x), _by_lanes(curvature, x))
    same(run(fh.vmap(fh.hessian(_newton)), x), _by_lanes(curvature, x))


@every_mode
def test_finished_lanes_stop_growing(run):
    """A lane that went on would overflow to inf, and inf * 0 is NaN in the gradient."""

    def f(x, n):
        return fh.while_loop(lambda s: s[0] < n, lambda s: (s[0] + 1, s[1] ** 3), (0, x))[1]

    x, n = torch.tensor([3.0, 1.01], dtype=F64), torch.tensor([2, 9])
    power = 3.0**n
    same(run(fh.vmap(f), x, n), x**power)
    same(run(fh.vmap(fh.grad(f)), x, n), power * x ** (power - 1))
    same(run(fh.grad(lambda x: fh.vmap(f)(x, n).sum()), x), power * x ** (power - 1))


@every_mode
def test_a_loop_in_a_branch_ends(run):
    """jax-ml/jax 2947: for lanes that do not take the branch the loop would never end."""

    def f(x):
        loop = lambda v: fh.while_loop(lambda s: s < 10, lambda s: s * 2, v)
        return fh.cond(x > 0, loop, lambda v: v, x)

    x = torch.tensor([1.0, 0.0, -1.0, 3.0], dtype=F64)
    same(run(fh.vmap(f), x), torch.tensor([16.0, 0.0, -1.0, 12.0], dtype=F64))
    same(run(fh.vmap(fh.grad(f)), x), torch.tensor([16.0, 1.0, 1.0, 4.0], dtype=F64))
    same(run(fh.grad(lambda x: fh.vmap(f)(x).sum()), x), torch.tensor([16.0, 1.0, 1.0, 4.0], dtype=F64))
    same(run(fh.vmap(f), x[1:3]), x[1:3])


@every_mode
def test_a_loop_in_a_loop_ends(run):
    """The inner loop would never end for a lane whose outer loop has finished."""

    def f(x):
        def body(s):
            n, v = s
            return n - 1, fh.while_loop(lambda u: u < 10 * n, lambda u: u + u * u, v) * 0.5

        return fh.while_loop(lambda s: s[0] > 0, body, ((x > 0).long() * 2, x))[1]

    def oracle(x):
        n = 2 if x > 0 else 0
        while n > 0:
            while x < 10 * n:
                x = x + x * x
            n, x = n - 1, x * 0.5
        return x

    x = torch.tensor([0.5, 0.0, -1.0, 2.0], dtype=F64)
    same(run(fh.vmap(f), x), _by_lanes(oracle, x))
    same(run(fh.vmap(fh.grad(f)), x), _by_lanes(torch.func.grad(oracle), x))


@every_mode
def test_backward_of_a_finished_lane_borrows_constants_too(run):
    """With its own constants and the rows of another lane its inner loop would not end."""

    def f(x, k, n):
        inner = lambda v: fh.while_loop(lambda u: u < 10, lambda u: u * k, v)
        return fh.while_loop(lambda s: s[0] > 0, lambda s: (s[0] - 1, inner(s[1]) * 0.3), (n, x))[1]

    x, k, n = torch.full((2,), 1.5, dtype=F64), torch.tensor([2.0, 1.0], dtype=F64), torch.tensor([2, 0])
    same(run(fh.vmap(fh.grad(f)), x, k, n), torch.tensor([2.88, 1.0], dtype=F64))


# ---------------------------------------------------------------------------------------------------------------------
# what is batched, and what is cached


def test_conditions_are_not_confused():
    """Rules are cached on the body; a condition that died must not stand in for a new one at its address."""
    body = lambda v: v + 1
    x = torch.tensor([1.0, 2.0, 3.0])
    keeps_the_body_alive = fh.jit(lambda v: fh.while_loop(lambda s: s < 100.0, body, v), backend="eager")
    same(fh.vmap(keeps_the_body_alive)(x), torch.full((3,), 100.0))
    for k in range(120):
        limit = 4.0 + k % 17
        got = fh.vmap(lambda v: fh.while_loop(lambda s: s < limit, body, v))(x)
        same(got, torch.full((3,), limit))


@every_mode
def test_counters_of_nested_loops_stay_unbatched(run):
    """What no lane reaches is the same for all: it may leave vmap with None in out_dims, or be a trip count."""

    def f(x):
        def outer(state):
            i, s = state
            j, s = fh.while_loop(lambda d: d[0] < 3, lambda d: (d[0] + 1, d[1] * 1.5), (torch.tensor(0), s))
            (k, s), count = fh.scan(lambda c, _: ((c[0] + 1, c[1] * x), c[0]), (j, s), None, 2)
            return fh.cond(i < 3, lambda i, s: (i + count.sum() - k, s), lambda i, s: (i + 1, s * x), i, s)

        return fh.while_loop(lambda c: c[0] < 9, outer, (torch.tensor(0), x))

    x = torch.tensor([0.9, 1.1], dtype=F64)
    count, value = run(fh.vmap(f, out_dims=(None, 0)), x)
    same(count, f(x[0])[0])
    same(value, torch.stack([f(v)[1] for v in x]))


def test_a_pull_function_outlives_its_transform():
    """What it saved is wrapped at a level that is gone, and must not ask for gradients there."""
    x = torch.tensor([0.3, 0.8], dtype=F64)
    f = lambda x: fh.scan(lambda c, _: (c * x.sin(), None), x, None, 3)[0]
    with fh.eager_capture():
        out, pull = fh.vjp(f, x)
        (gradient,) = pull(torch.ones(2, dtype=F64))
    same(gradient, torch.func.vjp(lambda x: x * x.sin() ** 3, x)[1](torch.ones(2, dtype=F64))[0])
    assert not out.requires_grad
    assert not gradient.requires_grad


@while_capturing
def test_modes_that_observe_operators_see_those_of_the_bodies(run):
    """A FLOP counter counts the products in a captured loop and in its backward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    w, x = torch.randn(4, 4, dtype=F64, requires_grad=True), torch.randn(4, dtype=F64)
    loss = lambda w: fh.scan(lambda c, _: ((w @ c[:, None])[:, 0], None), x, None, 3)[0].sum()
    with FlopCounterMode(display=False) as counter:
        run(loss, w).backward()
    assert counter.get_total_flops() == 3 * 3 * (2 * 4 * 4)  # one forward, two backward, in each of three steps


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_autograd_function_bound_before_the_import(when) -> None:
    """``f = MyFunction.apply`` keeps torch's own ``apply``; in a body its derivative is the custom one all the same.

    Or it is refused, from torch 2.14 on, where nothing can be put into it any more.
    """
    code = """
import torch

class Cube(torch.autograd.Function):
    generate_vmap_rule = True
    forward = staticmethod(lambda x: x**3)
    setup_context = staticmethod(lambda ctx, inputs, output: ctx.save_for_backward(*inputs))
    backward = staticmethod(lambda ctx, g: g * 7 * ctx.saved_tensors[0])

BIND

x = torch.tensor([1.0, 2.0])
with fh.eager_capture():
    for body in (cube, fh.vmap(cube)):
        loop = lambda v: fh.scan(lambda c, _: (body(c), None), v, None, 1)[0].sum()
        print(fh.grad(loop)(x).tolist())
        print(torch.autograd.grad(loop(y := x.clone().requires_grad_()), y)[0].tolist())
"""
    lines = ["cube = Cube.apply", "import functorch_hops as fh"]
    code = code.replace("BIND", "\n".join(lines if when == "before" else lines[::-1]))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    is_python = "apply" in vars(torch.autograd.function._SingleLevelFunction)  # and hooked
    if when == "before" and not is_python:
        assert "CaptureError: scan: Cube.apply was bound before functorch_hops was imported" in done.stderr
    else:
        assert done.stdout == "[7.0, 14.0]\n" * 4
