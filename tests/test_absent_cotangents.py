"""Outputs that nobody differentiates have no part in a gradient, be their own derivative infinite (0 * inf is NaN)."""

from __future__ import annotations

import pytest
import torch

import functorch_hops as fh
from modes import captured, same

F64 = torch.float64
X = torch.tensor([0.0, 1.0], dtype=F64)
INFINITE = {
    "root": lambda x: x.sqrt(),
    "norm of zeros": lambda x: (x * 0).norm() + x.abs().pow(0.5).sum(),
    "several operators": lambda x: torch.cat([x.sqrt(), x.log()]).sum() + (x.reshape(2, 1) @ x.sqrt()[None]).sum(),
}


def in_a_capture(f):
    return lambda x: captured(f, x)


def two(f):
    return lambda x: (f(x), x * 2)


CALLS = {
    "jit": lambda f: fh.jit(two(f), backend="eager"),
    "cond": lambda f: in_a_capture(lambda x: fh.cond(x.sum() > 0, two(f), two(f), x)),
    "checkpoint": lambda f: in_a_capture(fh.checkpoint(two(f))),
    "scan": lambda f: in_a_capture(lambda x: fh.scan(lambda c, _: (c, two(f)(c)), x, length=1)[1]),
    "map": lambda f: in_a_capture(lambda x: fh.map(lambda row: two(f)(row), x[None])),
    "scan in jit": lambda f: fh.jit(lambda x: fh.scan(lambda c, _: (c, two(f)(c)), x, length=1)[1], backend="eager"),
    "scan in cond in jit": lambda f: fh.jit(
        lambda x: fh.cond(x.sum() > 0, *[lambda x: fh.scan(lambda c, _: (c, two(f)(c)), x, length=1)[1]] * 2, x),
        backend="eager",
    ),
}


@pytest.mark.parametrize("f", INFINITE.values(), ids=INFINITE)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_output_that_is_not_differentiated(call, f):
    program = call(f)
    loss = lambda x: program(x)[1].sum()
    x = X.clone().requires_grad_()
    same(torch.autograd.grad(loss(x), x)[0], torch.full_like(X, 2.0))
    same(torch.func.grad(loss)(X), torch.full_like(X, 2.0))
    both = X.clone().requires_grad_()
    sum(out.sum() for out in program(both)).backward()
    assert not both.grad[0].isfinite()


@pytest.mark.parametrize("f", [torch.asin, torch.special.entr, lambda x: x**-1.0, torch.lgamma])
@pytest.mark.parametrize("is_jitted", [True, False])
def test_second_derivatives_at_an_edge(f, is_jitted):
    """They pull back what the first derivative reads, and not the value."""
    loop = lambda x: fh.scan(lambda c, s: (c + s, f(c)), x, torch.zeros(2, 2, dtype=F64))[1].sum()
    second = lambda g: torch.func.grad(lambda x: (torch.func.grad(g)(x) * 3).sum())
    program = fh.jit(loop, backend="eager") if is_jitted else in_a_capture(loop)
    same(second(program)(X), second(lambda x: 2 * f(x).sum())(X))


RULES = {
    "sum": lambda ct_x, ct_y: ct_x + (ct_y + 1),
    "difference": lambda ct_x, ct_y: ct_x + (1 - ct_y),
    "exponential": lambda ct_x, ct_y: ct_x + ct_y.exp(),
    "bound": lambda ct_x, ct_y: ct_x + ct_y.clamp(min=1),
    "selection": lambda ct_x, ct_y: ct_x + torch.where(X > 0, ct_y, 3.0),
    "parts": lambda ct_x, ct_y: ct_x + torch.cat([ct_y[:1], X[1:]]),
    "write": lambda ct_x, ct_y: ct_x + ct_y.index_fill(0, torch.tensor([0]), 4.0),
    "branch": lambda ct_x, ct_y: ct_x + fh.cond(X.sum() > 0, lambda c: c + 1, lambda c: c, ct_y),
    "loop": lambda ct_x, ct_y: ct_x + fh.fori_loop(0, 2, lambda i, c: c + 1, ct_y),
    "inner call": lambda ct_x, ct_y: ct_x + fh.jit(lambda c: c + 1, backend="eager")(ct_y),
}
AROUND = {
    "jit": lambda f: fh.jit(f, backend="eager"),
    "checkpoint in jit": lambda f: fh.jit(fh.checkpoint(f), backend="eager"),
    "branch in jit": lambda f: fh.jit(lambda x: fh.cond(x.sum() > 0, f, f, x), backend="eager"),
    "scan in jit": lambda f: fh.jit(lambda x: fh.scan(lambda c, row: (c, f(row)), 0.0, x[None])[1], backend="eager"),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_rules_that_are_not_linear_in_a_cotangent(rule, around):
    """A rule gets zeros for what is absent, as in eager, and what it makes of them is computed."""

    @fh.custom_vjp
    def pair(x, y):
        return x.clone(), y.clone()

    pair.defvjp(lambda x, y: (pair(x, y), None), lambda _, ct: (rule(*ct), rule(*ct[::-1])))

    class Pair(torch.autograd.Function):
        @staticmethod
        def forward(x, y):
            return x.clone(), y.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, ct_x, ct_y):
            return rule(ct_x, ct_y), rule(ct_y, ct_x)

    for call in (pair, Pair.apply):
        f = lambda x, call=call: call(x, x * 2)
        program = around(f)
        for i in (0, 1):
            x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
            expected = torch.autograd.grad(f(x)[i].sum(), x)
            same(torch.autograd.grad(program(y)[i].sum(), y), expected)
            first = lambda g, i=i: torch.func.grad(lambda x: g(x)[i].sum())
            second = lambda g, first=first: torch.func.grad(lambda x: first(g)(x).square().sum())
            same(second(program)(X), second(f)(X))


def test_a_rule_to_which_no_cotangent_comes_does_not_run():
    @fh.custom_vjp
    def f(x):
        return x.clone()

    f.defvjp(lambda x: (f(x), None), lambda _, ct: (ct + 1,))
    program = fh.jit(lambda x: (f(x), x * 2), backend="eager")
    x = X.clone().requires_grad_()
    same(torch.autograd.grad(program(x)[1].sum(), x)[0], torch.full_like(X, 2.0))


@pytest.mark.slow
def test_compiled():
    f = fh.jit(lambda x: fh.scan(lambda c, _: (c, (c.sqrt(), c * 2)), x, length=2)[1])
    x = X.clone().requires_grad_()
    same(torch.autograd.grad(f(x)[1].sum(), x)[0], torch.full_like(X, 4.0))
    assert not torch.autograd.grad(sum(y.sum() for y in f(x)), x)[0][0].isfinite()
