"""``torch.autograd.grad`` in captured functions: by arguments and parameters that require gradients outside."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import functorch_hops as fh
from modes import captured, every_mode, jitted, same, while_capturing

F64 = torch.float64


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Softplus(), nn.Linear(4, 1)).to(F64)


def leaf(*shape, seed=0):
    x = torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return x.requires_grad_()


def everything(run, f, x, net):
    """The value, and the gradients of the parameters and of x."""
    out = run(f, x)
    return [out, *torch.autograd.grad(out.square().sum(), [x, *net.parameters()], materialize_grads=True)]


def by_input(net):
    """The residual of a differential equation."""

    def f(x):
        u = net(x)
        first = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
        second = torch.autograd.grad(first.sum(), x, create_graph=True)[0]
        return u + first.sin() * second

    return f


def by_parameters(net):
    def f(x):
        loss = net(x).square().mean()
        return loss - sum(g.square().sum() for g in torch.autograd.grad(loss, [*net.parameters()], create_graph=True))

    return f


def by_both(net):
    def f(x):
        r = x.clone().requires_grad_()
        a, b = torch.autograd.grad(net(r).sin().sum(), (r, net[0].weight), create_graph=True)
        return a.sum(0) * b.sum(0)

    return f


def not_again(net):
    return lambda x: net(x) * torch.autograd.grad(net(x).sum(), x)[0].sum()


def around_a_loop(net):
    def f(x):
        c, ys = fh.scan(lambda c, row: ((c + net(row)).tanh(), c), torch.zeros(1, dtype=F64), x)
        return torch.autograd.grad(ys.sum() + c.sum(), x, create_graph=True)[0]

    return f


def in_a_loop(net):
    def f(x):
        def step(c, factor):
            (g,) = torch.autograd.grad(net(x * factor).sum(), x, create_graph=True)
            return c + g, g.square().sum()

        return fh.scan(step, torch.zeros_like(x), torch.tensor([0.5, 2.0], dtype=F64))[0]

    return f


def in_and_around_a_loop(net):
    inner = in_a_loop(net)
    return lambda x: torch.autograd.grad(inner(x).sum() + net(x).sin().sum(), x, create_graph=True)[0]


PROGRAMS = [by_input, by_parameters, by_both, not_again, around_a_loop, in_a_loop, in_and_around_a_loop]


@every_mode
@pytest.mark.parametrize("program", PROGRAMS)
def test_by_what_requires_a_gradient(run, program, net):
    x, f = leaf(3, 2), program(net)
    for got, expected in zip(everything(run, f, x, net), everything(lambda f, x: f(x), f, x, net), strict=True):
        same(got, expected)


def test_under_transforms_from_outside(net):
    f = lambda x: torch.autograd.grad(net(x).sum(), x, create_graph=True)[0].square().sum()
    oracle = lambda x: torch.func.grad(lambda x: net(x).sum())(x).square().sum()
    x = leaf(3, 2).detach()
    same(fh.grad(fh.jit(f, backend="eager"))(x), torch.func.grad(oracle)(x))


def test_a_module_that_updates_buffers(net):
    model = nn.Sequential(nn.BatchNorm1d(2), net).to(F64)
    forces = lambda x: torch.autograd.grad(model(x).sum(), x, create_graph=True)[0]
    x, results = leaf(3, 2), []
    for f in (forces, fh.jit(forces, backend="eager")):
        model[0].reset_running_stats()
        results.append((f(x), f(x), *map(torch.clone, model.buffers())))
    same(*results)


def test_by_a_computed_argument():
    w = leaf(2)
    f = lambda h: torch.autograd.grad(h.pow(3).sum(), h, create_graph=True)[0]
    same(torch.autograd.grad(jitted(f, w.sin()).sum(), w), torch.autograd.grad((3 * w.sin() ** 2).sum(), w))


@while_capturing
def test_a_path_outside_is_refused(run):
    """In eager the gradient of w flows through h too."""
    w = leaf(2)
    h = w.sin()
    f = lambda w: torch.autograd.grad((h**3).sum() + (w**2).sum(), w, create_graph=True)[0]
    with pytest.raises(fh.CaptureError, match="may flow through what was computed outside"):
        run(lambda w: fh.scan(lambda c, _: (c, f(w)), 0, length=1)[1][0], w)


@while_capturing
def test_a_gradient_of_a_carry_is_refused(run):
    """In eager it flows through all steps before."""
    x = leaf(2)
    step = lambda c, _: (torch.autograd.grad((c * x).sum(), x, create_graph=True)[0] * c, None)
    with pytest.raises(fh.CaptureError, match=r"may flow through what was computed outside|asks whether a carry"):
        run(lambda x: fh.scan(step, x * 2, length=2)[0], x)


def test_the_function_runs_twice_at_the_first_call_only():
    calls = []

    def f(x):
        calls.append(1)
        return torch.autograd.grad(x.square().sum(), x)[0]

    jitted_f = fh.jit(f, backend="eager")
    with pytest.warns(RuntimeWarning, match="calls"):
        jitted_f(leaf(2))
    jitted_f(leaf(2, seed=1))
    assert len(calls) == 2


def test_backward_of_an_argument_is_refused():
    def f(x):
        x.requires_grad_()
        x.square().sum().backward()
        return x

    with pytest.raises(fh.CaptureError, match="backward"):
        captured(lambda x: fh.cond(x.sum() > -99, f, f, x), leaf(2))
    with pytest.raises(fh.CaptureError, match="backward"):
        jitted(f, leaf(2))


@while_capturing
def test_by_a_closed_over_leaf_in_lanes(run):
    """It becomes an operand while a transform is active, which lets nobody say that a tensor requires a gradient."""
    w = leaf(3)
    f = lambda x: (torch.autograd.grad(w.sin().sum(), w, create_graph=True)[0] * x).sum()
    x = leaf(2, 3, seed=1).detach()
    out = run(fh.vmap(f), x)
    same(out, (w.cos() * x).sum(1))
    same(torch.autograd.grad(out.sum(), w)[0], -w.sin() * x.sum(0))


@while_capturing
@pytest.mark.parametrize("around", [lambda f: f, fh.vmap, lambda f: fh.grad(lambda ct: f(ct).sum())])
def test_a_pull_function_of_outside_is_refused(run, around):
    _, pull = fh.vjp(torch.sin, leaf(3).detach())
    body = lambda ct: fh.cond(ct.sum() > -99, lambda ct: around(lambda ct: pull(ct)[0])(ct), lambda ct: ct, ct)
    with pytest.raises(fh.CaptureError, match="flow through what was computed outside"):
        run(body, leaf(3).detach() if around is not fh.vmap else leaf(2, 3).detach())
