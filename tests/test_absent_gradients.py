"""Where no gradient leads autograd has None, and an output no history: in captured code as in plain Python loops."""

from __future__ import annotations

import pytest
import torch

import functorch_hops as fh
from modes import MODES, compiled_by_torch, every_mode, same, while_capturing
from reference import Reference

F64 = torch.float64
X, Y, Z = torch.rand(3, 2, dtype=F64, generator=torch.Generator().manual_seed(0)) + 0.5


def loop(step, init, xs):
    """What ``fh.scan`` means."""
    carry, ys = init, []
    for x in xs:
        carry, y = step(carry, x)
        ys.append(y)
    return carry, torch.stack(ys)


STEPS = {
    "a swap": lambda c, x: ((c[1] * x, c[0].sin(), c[2] * 2), c[0] * 3),
    "a cycle": lambda c, x: ((c[1] * x, c[2] * 2, c[0].sin()), c[0] * 3),
    "a cycle with a tail": lambda c, x: ((c[1] * x, c[0].sin(), c[0] * c[2]), c[2] * 3),
    "a delay": lambda c, x: ((x * 2, c[0] * 1, c[1] * 1), c[2] * 3),
    "what every step stops": lambda c, x: ((c[1].detach() * 2, c[1] * x, c[0] + c[2]), c[0] * 3),
    "loops in a loop": lambda c, x: ((*fh.scan(lambda d, _: ((d[1], d[0].sin()), None), c[:2], length=3)[0], x), c[0]),
}


def firsts_and_seconds(f, args):
    """Which outputs have a history; each one's gradients, and those of the gradients."""
    xs = [a.clone().requires_grad_() for a in args]
    carry, ys = f(*xs)
    found = []
    for out in (*carry, ys):
        found.append(out.requires_grad)
        if out.requires_grad:
            firsts = torch.autograd.grad(out.square().sum(), xs, create_graph=True, allow_unused=True)
            penalty = sum(g.square().sum() for g in firsts if g is not None)
            found += [None if g is None else g.detach() for g in firsts]
            # Of these None and zeros are one: a backward loop computes for all of the carry.
            found += torch.autograd.grad(penalty, xs, retain_graph=True, allow_unused=True, materialize_grads=True)
    return found


@every_mode
@pytest.mark.parametrize("name", STEPS)
def test_steps_of_a_known_number(run, name):
    for n in (1, 2, 3, 8):
        run_with = lambda scan: lambda x, y, z: scan(STEPS[name], (x, y, z), Z * torch.ones(n, 1, dtype=F64))
        got = firsts_and_seconds(lambda *args: run(run_with(fh.scan), *args), (X, Y, Z))
        expected = firsts_and_seconds(run_with(loop), (X, Y, Z))
        assert list(map(type, got)) == list(map(type, expected))
        same([g for g in got if g is not None], [e for e in expected if e is not None])


class Separate(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, y):
        return x * 2, y * 3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, g, h):
        return None if g is None else g * 2, None if h is None else h * 3


PLACES = {
    "a call": Separate.apply,
    "steps": lambda x, y: fh.scan(lambda c, _: (Separate.apply(*c), None), (x, y), length=2)[0],
    "a checkpoint": fh.checkpoint(Separate.apply),
    "lanes": lambda x, y: fh.vmap(Separate.apply)(x, y),
}


@while_capturing
@pytest.mark.parametrize("name", PLACES)
def test_a_backward_that_is_told_of_no_cotangent(run, name):
    xs = [a.clone().requires_grad_() for a in (X, Y)]
    for i, out in enumerate(run(PLACES[name], *xs)):
        grads = torch.autograd.grad(out.sum(), xs, allow_unused=True, retain_graph=True)
        assert [g is not None for g in grads] == [i == 0, i == 1]


def recording(y):
    with torch.enable_grad():
        return y * 2


CALLS = {
    "while_loop": lambda ns, y: ns.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1]), (y.sum() * 0, y)),
    "while_loop, a swap": lambda ns, y: ns.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, c[2], c[1]), (y.sum() * 0, y, y * 3)
    ),
    "while_loop, recording": lambda ns, y: ns.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, recording(c[1])), (y.sum() * 0, y)
    ),
    "fori_loop": lambda ns, y: ns.fori_loop(0, 3, lambda i, c: (c[0] * 2, c[1]), (y.sin(), y)),
    "scan": lambda ns, y: ns.scan(lambda c, x: ((c[0] * x, c[1]), c[1]), (y, y), y),
    "scan, recording": lambda ns, y: ns.scan(lambda c, x: (recording(c), x), y[0], y),
    "map": lambda ns, y: ns.map(lambda x: x, y),
    "cond": lambda ns, y: ns.cond(y.sum() > 0, lambda a, b: (a + 1, b), lambda a, b: (a, b), y, y * 2),
    "cond, of other branches": lambda ns, y: ns.cond(y.sum() > 0, lambda a: (a, a * 2), lambda a: (a * 2, a), y),
    "checkpoint": lambda ns, y: ns.checkpoint(lambda a, b: (a + 1, b))(y, y * 2),
    "jit": lambda ns, y: ns.jit(lambda a, b: (a + 1, b, recording(b)))(y, y * 2),
}


@pytest.mark.parametrize("run", [*MODES.values(), compiled_by_torch], ids=[*MODES, "compiled"])
@pytest.mark.parametrize("name", CALLS)
def test_calls_under_no_grad(run, name):
    """What a body hands on keeps its history, as in Python, and what it computes has none."""

    def of(ns):
        def f(x):
            y = x * 2
            with torch.no_grad():
                outs = CALLS[name](ns, y)
            leaves = torch.utils._pytree.tree_leaves(outs)
            return x.sum() + sum((i + 2) * leaf.square().sum() for i, leaf in enumerate(leaves)), leaves

        return f

    def gradient(f, run):
        x = X.clone().requires_grad_()
        return torch.autograd.grad(run(f, x)[0], x)[0]

    expected = gradient(of(Reference), MODES["plain"])
    same(gradient(of(fh), run), expected)
    same(run(fh.grad(lambda x: of(fh)(x)[0]), X), expected)
    same(
        run(fh.jvp, lambda x: of(fh)(x)[0], (X,), (Y,))[1], torch.func.jvp(lambda x: of(Reference)(x)[0], (X,), (Y,))[1]
    )


@every_mode
def test_loops_of_lanes_under_no_grad(run):
    def f(y):
        with torch.no_grad():
            return fh.scan(lambda c, x: ((c[0] * x, c[1]), None), (y.sum(), y), y)[0][1]

    x = X.clone().requires_grad_()
    same(torch.autograd.grad(run(fh.vmap(f), x[None] * 2).sum(), x), (torch.full_like(X, 2),))


def test_a_loop_through_which_no_gradient_leads_is_not_recorded():
    with torch.no_grad():
        text = fh.jit(lambda x: fh.while_loop(lambda c: c.sum() < 3, torch.exp, x), backend="eager").lower(X).as_text()
    graph = fh.make_graph(
        fh.grad(lambda x: x.sum() + torch.no_grad()(fh.while_loop)(lambda c: c.sum() < 3, torch.exp, x).sum())
    )(X)
    assert text.count("while_loop[") == str(graph.code).count("fh_while_loop") == 1
