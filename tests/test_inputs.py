"""Unusual inputs: zero lanes, empty tensors, every dtype, views of every kind."""

from __future__ import annotations

import optree
import pytest
import torch

import functorch_hops as fh
from modes import every_mode, same

F64 = torch.float64
NO_LANES = torch.zeros(0, 2, dtype=F64)


def doubled(x):
    return fh.while_loop(lambda v: v.sum() < 3, lambda v: v * 2 + 1, x)


def branched(x):
    return fh.cond(x.sum() < 3, torch.sin, torch.cos, x)


def summed(x):
    return fh.scan(lambda c, y: (c + y, c), x, torch.ones(3, dtype=F64))[0]


@every_mode
@pytest.mark.parametrize("f", [doubled, branched, summed, lambda x: fh.cond(x.sum() < 3, doubled, branched, x)])
def test_vmap_over_no_lanes(run, f):
    total = lambda x: f(x).sum()
    same(run(fh.vmap(f), NO_LANES), NO_LANES)
    same(run(fh.vmap(fh.grad(total)), NO_LANES), NO_LANES)
    same(run(fh.grad(lambda x: fh.vmap(total)(x).sum()), NO_LANES), NO_LANES)
    same(run(fh.vmap(fh.hessian(total)), NO_LANES), torch.zeros(0, 2, 2, dtype=F64))


@every_mode
def test_empty_leaves(run):
    empty = torch.zeros(0, 3, dtype=F64)
    xs = torch.ones(4, 2, dtype=F64)
    f = lambda e: fh.scan(lambda c, x: (c + x.sum(), (c * 2, x)), e, xs)
    same(run(f, empty), (empty, (torch.zeros(4, 0, 3, dtype=F64), xs)))
    same(run(fh.grad(lambda e: f(e)[1][0].sum()), empty), empty)
    same(run(lambda e: fh.scan(lambda c, x: (c + x.sum(), x), e, torch.zeros(4, 0)), empty), (empty, torch.zeros(4, 0)))
    same(run(lambda e: fh.while_loop(lambda v: v.any(), lambda v: v + 1, e), empty), empty)
    same(run(lambda e: fh.map(torch.sum, e.t()), empty), torch.zeros(3, dtype=F64))


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.int8, torch.uint8, torch.bool, torch.complex64]


@every_mode
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(run, dtype):
    """Sums of small integers (exact in each dtype) by every operation, and their lanes."""
    xs = torch.tensor([[1, 0, 3], [2, 5, 1], [0, 1, 1], [4, 2, 0]]).to(dtype)
    add = torch.logical_xor if dtype == torch.bool else torch.add

    def f(xs):
        return {
            "scan": fh.scan(lambda c, x: (add(c, x), c), xs[0], xs),
            "prefixes": fh.associative_scan(add, xs),
            "while": fh.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, add(s[1], xs[s[0]])), (0, xs[0])),
            "map": fh.map(lambda x: add(x, x), xs),
            "cond": fh.cond(xs[0, 0] != 0, lambda x: add(x, x), lambda x: x, xs),
        }

    def oracle(xs):
        carry, ys, prefixes, taken = xs[0], [], [xs[0]], xs[0]
        for x in xs:
            ys.append(carry)
            carry = add(carry, x)
        for x in xs[1:]:
            prefixes.append(add(prefixes[-1], x))
        for x in xs[:3]:
            taken = add(taken, x)
        return {
            "scan": (carry, torch.stack(ys)),
            "prefixes": torch.stack(prefixes),
            "while": (torch.tensor(3), taken),
            "map": add(xs, xs),
            "cond": add(xs, xs) if xs[0, 0] != 0 else xs,
        }

    same(run(f, xs), oracle(xs))
    lanes = torch.stack([xs, xs.flip(0)])
    same(run(fh.vmap(f), lanes), optree.tree_map(lambda a, b: torch.stack([a, b]), oracle(lanes[0]), oracle(lanes[1])))


BASE = torch.arange(24, dtype=F64).reshape(4, 6).sin()
VIEWS = {
    "transposed": BASE.t(),
    "expanded": BASE[:1].expand(4, 6),
    "strided": BASE[:, ::2],
    "diagonal": BASE.diagonal(),
    "permuted": BASE.reshape(2, 2, 6).permute(2, 0, 1),
    "flipped": BASE.flip(0),
    "overlapping": BASE.flatten().unfold(0, 4, 2),
    "conjugated": torch.complex(BASE, -BASE).conj(),
    "negated": torch.complex(BASE, BASE).conj().imag,
}


@every_mode
@pytest.mark.parametrize("name", VIEWS)
def test_views(run, name):
    def f(v):
        carry, ys = fh.scan(lambda c, x: (c * 0.5 + x.sum(), (c, x * 2)), v, v)
        return {
            "scan": (carry, ys),
            "while": fh.while_loop(lambda s: s[1] < 3, lambda s: (s[0] * 2, s[1] + 1), (v, 0))[0],
            "cond": fh.cond(torch.tensor(True), lambda a: a.reshape(-1).sin(), lambda a: a.flatten(), v),
            "prefixes": fh.associative_scan(torch.mul, v),
            "map": fh.map(torch.conj, v),
        }

    def oracle(v):
        carry, ys = v, []
        for x in v:
            ys.append((carry, x * 2))
            carry = carry * 0.5 + x.sum()
        return {
            "scan": (carry, tuple(map(torch.stack, zip(*ys, strict=True)))),
            "while": v * 8,
            "cond": v.reshape(-1).sin(),
            "prefixes": torch.cumprod(v, 0),
            "map": v.conj().resolve_conj(),
        }

    def loss(g):
        return lambda v: sum((i + 1) * leaf.abs().square().sum() for i, leaf in enumerate(optree.tree_leaves(g(v))))

    v = VIEWS[name]
    same(run(f, v), oracle(v))
    same(run(fh.grad(loss(f)), v), torch.func.grad(loss(oracle))(v).resolve_conj())


@every_mode
def test_an_argument_that_is_given_twice_is_one_object(run):
    f = lambda x, y: x * (2 if x is y else 3) * y
    g = fh.jit(f, backend="eager")
    x, y = torch.tensor([0.5, 2.0], requires_grad=True), torch.tensor([1.0, 3.0])
    for args in ((x, x), (x, y), (y, y), (x, x)):
        same(run(lambda: g(*args)), f(*args))
    assert g.cache_info()[:2] == (2, 2)
    same(torch.autograd.grad(g(x, x).sum(), x), torch.autograd.grad(f(x, x).sum(), x))
    same(fh.grad(lambda x, y: g(x, y).sum(), argnums=(0, 1))(y, y), (3 * y, 3 * y))


@every_mode
@pytest.mark.parametrize(
    "call",
    [
        lambda f, x, y: fh.cond(x.sum() > -9, f, lambda x, y: f(x, y) * 1, x, y),
        lambda f, x, y: fh.switch(x.sum().long().clamp(0, 1), [f, f], x, y),
        lambda f, x, y: fh.checkpoint(f)(x, y=y),
    ],
)
def test_an_operand_that_is_given_twice_is_one_object(run, call):
    f = lambda x, y: x * (2 if x is y else 3) * y
    x, y = torch.tensor([0.5, 2.0]), torch.tensor([1.0, 3.0])
    for args in ((x, x), (x, y), (x, x)):
        same(run(lambda: call(f, *args)), f(*args))
    gradient = lambda f: lambda x: torch.func.grad(lambda x: f(x, x).sum())(x)
    same(run(gradient(lambda *args: call(f, *args)), x), gradient(f)(x))


@every_mode
def test_a_parameter_is_one_inside(run):
    weight = torch.nn.Parameter(torch.tensor([0.5, 2.0]))
    f = lambda x: x * (2 if isinstance(x, torch.nn.Parameter) else 3)
    inside = lambda x: fh.scan(lambda c, _: (c * 1, f(weight) * (f(x) + f(x * 1)) * c), x * 1, length=2)
    g = fh.jit(f, backend="eager")
    for x in (weight, weight.detach(), weight):
        same((g(x), run(inside, x)), (f(x), inside(x)))
    assert g.cache_info()[:2] == (1, 2)


@every_mode
def test_a_size_that_depends_on_values_and_is_found_to_be_known(run):
    """By broadcasting against one that is."""
    i, x = torch.tensor([2, 0, 1, 3, 1]), torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2)
    counts = torch.tensor([1.0, 2.0, 1.0, 1.0], dtype=torch.float64)[:, None]
    f = lambda x: x * torch.bincount(i, minlength=4)[:, None]
    looped = lambda x: fh.cond(x.sum() > -99, f, lambda x: x * 0, x)
    same(run(looped, x), x * counts)
    same(run(fh.grad(lambda x: looped(x).square().sum()), x), 2 * x * counts**2)
