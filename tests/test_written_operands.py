"""Operands that are written to after a call that read them: legal where its derivative reads no value of theirs."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

import functorch_hops as fh
from modes import MODES, captured, compiled_by_torch, every_mode, jitted, plain, same
from reference import Reference

pytestmark = pytest.mark.skipif(torch.__version__ < (2, 12), reason="torch 2.11 does not say what was written to")

X = torch.tensor([0.5, 1.5], dtype=torch.float64)


CALLS = {
    "scan": lambda ns, x, n: ns.scan(lambda c, r: (c * x + n, c * r), x, x)[0],
    "fori_loop": lambda ns, x, n: ns.fori_loop(0, 3, lambda i, c: c.sin() * x + n, x),
    "map": lambda ns, x, n: ns.map(lambda r: r.exp() + n, x).sum(0),
    "associative_scan": lambda ns, x, n: ns.associative_scan(lambda a, b: a * b, torch.stack([x, x])).sum(0) + n,
    "cond": lambda ns, x, n: ns.cond(x.sum() > 0, lambda x: x * x + n, lambda x: x, x),
    "checkpoint": lambda ns, x, n: ns.checkpoint(lambda x, n: x * x + n)(x, n),
    "jit": lambda ns, x, n: ns.jit(lambda x, n: x * x + n)(x, n),
}


def of(ns, call, is_active):
    def f(x):
        n = x * 2 if is_active else x.detach() * 2
        result = CALLS[call](ns, x, n)
        n.mul_(3)
        return result.sum() + n.sum()

    return f


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("run", "is_active"),
    [*((run, active) for run in MODES.values() for active in (False, True)), (compiled_by_torch, True)],
    ids=[*(f"{name}-{kind}" for name in MODES for kind in ("constant", "active")), "compiled"],
)
def test_gradients(run, call, is_active):
    f, oracle = of(fh, call, is_active), of(Reference, call, is_active)
    expected = torch.func.grad(oracle)(X)
    same(run(fh.grad(f), X), expected)
    if (run, call) != (plain, "checkpoint"):  # torch's own, which runs the function again on all that it saved
        x = X.clone().requires_grad_()
        same(torch.autograd.grad(run(f, x), x)[0], expected)


@pytest.mark.parametrize("run", [plain, jitted], ids=["plain", "jit"])
@pytest.mark.parametrize("call", CALLS)
def test_lanes_and_second_derivatives(run, call):
    f, oracle = of(fh, call, True), of(Reference, call, True)
    xs = torch.stack([X, X.flip(0)])
    same(run(fh.vmap(fh.grad(f)), xs), torch.stack([torch.func.grad(oracle)(x) for x in xs]))
    same(run(fh.hessian(f), X), torch.func.hessian(oracle)(X))


def product(w, n):
    c = fh.scan(lambda c, _: (c * w * n, None), w, length=3)[0]
    n.mul_(3)
    return c.sum()


@pytest.mark.parametrize("run", [plain, captured], ids=["plain", "captured"])
def test_what_the_derivative_reads_may_not_be_written_to(run):
    w = X.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        run(product, w, X.clone()).backward()


def test_a_second_derivative_reads_more():
    """It runs the loop again, on what is no longer there: also after a gradient that did not."""
    w, n = X.clone().requires_grad_(), X.clone()
    c = captured(lambda: fh.scan(lambda c, _: (c * w * w + n, None), w, length=3)[0])
    n.mul_(3)
    first = torch.autograd.grad(c.sum(), w, retain_graph=True)[0]
    again = torch.autograd.grad(c.sum(), w, create_graph=True)[0]
    same(first, again.detach())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        again.sum().backward()


@every_mode
def test_what_a_rule_of_the_users_does_not_save(run):
    rule = fh.custom_vjp(lambda x, n: x * 2 + n)
    rule.defvjp(lambda x, n: (x * 2 + n, None), lambda _, ct: (ct * 2, ct))
    saving = fh.custom_vjp(lambda x, n: x * n)
    saving.defvjp(lambda x, n: (x * n, (x, n)), lambda saved, ct: (ct * saved[1], ct * saved[0]))

    def f(rule, x):
        n = x * 3
        result = rule(x, n)
        n.mul_(3)
        return result.sum() + n.sum()

    x = X.clone().requires_grad_()
    same(torch.autograd.grad(run(lambda x: f(rule, x), x), x)[0], torch.full_like(X, 2 + 3 + 9))
    if run is not jitted:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            run(lambda x: f(saving, x), x).backward()


def test_what_was_freed_is_still_refused():
    w, n = X.clone().requires_grad_(), X.clone()
    c = captured(lambda: fh.scan(lambda c, _: (c * w + n, None), w, length=3)[0]).sum()
    n.mul_(3)
    c.backward()
    with pytest.raises(RuntimeError, match="second time"):
        c.backward()


def test_what_was_saved_is_freed_with_the_graph():
    """Without the garbage collector, as without a write."""
    w, n = X.clone().requires_grad_(), X.clone()
    gc.disable()
    try:
        c = captured(lambda: fh.scan(lambda c, _: (c * w + n, None), w * 2, length=3)[0])
        node = weakref.ref(c.grad_fn)
        n.mul_(3)
        c.sum().backward()
        del c
        assert node() is None
    finally:
        gc.enable()


def test_a_buffer_that_a_compiled_module_updates():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(X.clone())
            self.register_buffer("mean", X.clone())

        def forward(self, x):
            out = fh.scan(lambda c, r: (c * self.weight - self.mean, c + r), x[0], x)[1]
            self.mean.lerp_(out.detach().mean(0), 0.1)
            return out

    xs = torch.stack([X, X + 1, X - 1])
    found = []
    for run in (plain, jitted, compiled_by_torch):
        model = Model()
        run(model, xs).square().sum().backward()
        found.append((model.weight.grad, model.mean))
    same(found[1:], [found[0]] * 2)
