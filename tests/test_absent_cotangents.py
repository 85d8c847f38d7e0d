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


def test_rules_that_add_something_to_a_cotangent():
    """What is no function of the cotangent alone is computed where some cotangent arrives."""

    class Shifted(torch.autograd.Function):
        @staticmethod
        def forward(x, y):
            return x.clone(), y.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, ct_x, ct_y):
            return ct_x + (ct_y + 1), ct_y

    f = lambda x: Shifted.apply(x, x * 2)
    x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
    expected = torch.autograd.grad(f(x)[0].sum(), x)
    same(torch.autograd.grad(fh.jit(f, backend="eager")(y)[0].sum(), y), expected)


@pytest.mark.slow
def test_compiled():
    f = fh.jit(lambda x: fh.scan(lambda c, _: (c, (c.sqrt(), c * 2)), x, length=2)[1])
    x = X.clone().requires_grad_()
    same(torch.autograd.grad(f(x)[1].sum(), x)[0], torch.full_like(X, 4.0))
    assert not torch.autograd.grad(sum(y.sum() for y in f(x)), x)[0][0].isfinite()
