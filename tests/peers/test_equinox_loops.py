"""Cases of equinox's ``tests/test_while_loop.py`` and ``tests/test_scan.py``.

The docstring of a test names those it stands for. What equinox writes to "buffers" is here ``buffer[i] = value`` on a
clone; its forward-only, bounded and checkpointed kinds are one loop here, with or without ``max_steps``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import functorch_hops as fh
from modes import every_mode, lane_by_lane, same, same_derivatives

F64 = torch.float64


def make_problem():
    """A vector that turns by an angle that a network reads from it, written down step by step; as equinox's."""
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    weights = {name: p.detach() for name, p in mlp.named_parameters()}
    value, table = torch.randn(2, dtype=F64), torch.randn(8, dtype=F64)

    def body(weights):
        def step(s):
            i, value, table = s
            theta = torch.func.functional_call(mlp, weights, (value,))[0]
            z = torch.complex(value[0], value[1]) * torch.exp(1j * theta)
            table = table.clone()
            table[i] = z.real
            return i + 1, torch.stack([z.real, z.imag]), table

        return step

    return weights, value, table, body


WEIGHTS, VALUE, TABLE, BODY = make_problem()
bounds = pytest.mark.parametrize("max_steps", [None, 7])


def turn(weights, value, table, start=0, n=5, max_steps=None):
    return fh.while_loop(lambda s: s[0] < n, BODY(weights), (start, value, table), max_steps=max_steps)[1:]


def turn_oracle(weights, value, table, start=0, n=5):
    s = torch.as_tensor(start), value, table
    while s[0] < n:
        s = BODY(weights)(s)
    return s[1:]


def on_leaves(f):
    """``f(weights, value, table)`` as a function of tensors."""
    names = list(WEIGHTS)
    return lambda *args: f(dict(zip(names, args[: len(names)], strict=True)), *args[len(names) :])


@every_mode
@bounds
def test_forward_and_backward(run, max_steps):
    """test_notangent_forward, test_forward, test_backward_bounded, test_body_fun_grads."""
    f = on_leaves(lambda *args: turn(*args, max_steps=max_steps))
    order = 2 if max_steps is None else 1
    same_derivatives(run, f, on_leaves(turn_oracle), *WEIGHTS.values(), VALUE, TABLE, order=order)


@every_mode
@bounds
@pytest.mark.parametrize("is_batched", [False, True], ids=["unbatched condition", "batched condition"])
def test_lanes(run, max_steps, is_batched):
    """test_vmap_primal_unbatched_cond, test_vmap_primal_batched_cond: value and gradients for weights without lanes."""
    starts = torch.tensor([0, 2, 5]) if is_batched else torch.zeros(3, dtype=torch.int64)
    values, tables = torch.stack([VALUE, VALUE * 2, -VALUE]), torch.stack([TABLE, TABLE + 1, TABLE])
    loss = lambda turn: lambda w, v, t, s: sum((x**3).sum() for x in turn(w, v, t, s))
    bounded = lambda w, v, t, s: turn(w, v, t, s if is_batched else 0, max_steps=max_steps)
    lane = fh.value_and_grad(loss(bounded), argnums=(0, 1, 2))
    got = run(fh.vmap(lane, in_dims=(None, 0, 0, 0)), WEIGHTS, values, tables, starts)
    gradients, value = zip(
        *(
            torch.func.grad_and_value(loss(turn_oracle), (0, 1, 2))(WEIGHTS, *row)
            for row in zip(values, tables, starts)
        ),
        strict=True,
    )
    same(got[0], torch.stack(value))
    for place in (0, 1, 2):
        rows = [g[place] for g in gradients]
        stacked = torch.stack(rows) if place else {k: torch.stack([r[k] for r in rows]) for k in WEIGHTS}
        same(got[1][place], stacked)


@every_mode
def test_cotangents_with_lanes(run):
    """test_vmap_cotangent: the Jacobian by reverse mode, and by forward mode."""
    oracle = torch.autograd.functional.jacobian(lambda v: turn_oracle(WEIGHTS, v, TABLE)[1], VALUE)
    f = lambda v: turn(WEIGHTS, v, TABLE)[1]
    same(run(fh.jacrev(f), VALUE), oracle)
    same(run(fh.jacfwd(f), VALUE), oracle)


def nested(step, values, ts, last, read, loop):
    """An outer loop over intervals, an inner one over the times in each, which reads what was written before."""

    def inner(s):
        done = torch.floor(ts[s[0]] + 1)

        def body(s):
            i, (a, *tables) = s
            a = a * (1 + 0.05 * torch.sin(100 * a + 3))
            tables = [t.clone() for t in tables]
            if read:
                j = i // 2
                b, c, d = (t[j].clone() for t in tables)
                rows = (a + b, 0.8 * a + b + c, a + torch.tanh(b * d))
            else:
                rows = (a, a, a)
            for t, row in zip(tables, rows, strict=True):
                t[i] = row
            return i + 1, (a, *tables)

        return loop(lambda s: ts[s[0]] < done, body, s)

    def outer(s):
        i, (a, *tables) = s
        return inner((i, (a * (1 + 0.05 * torch.sin(105 * a + 1)), *tables)))

    return loop(lambda s: s[0] < last, outer, (step, values))[1]


def python_while(cond, body, value):
    while cond(value):
        value = body(value)
    return value


@every_mode
@pytest.mark.parametrize("read", [False, True])
def test_nested_loops(run, read):
    """test_nested_loops: lanes leave both loops at different times."""
    steps, lasts = torch.tensor([0, 2]), torch.tensor([9, 7])
    ts = torch.stack([torch.linspace(0, 4, 10, dtype=F64), torch.linspace(0, 3, 10, dtype=F64)])
    values = torch.tensor([0.3, 0.6], dtype=F64), *[torch.zeros(2, 10, dtype=F64)] * 3

    def slope(tools, loop):
        def of(step, values, ts, last):
            out, pull = tools.vjp(lambda a: nested(step, (a, *values[1:]), ts, last, read, loop), values[0])
            return out, pull(tuple(torch.ones_like(x) for x in out))[0]

        return of

    got = run(fh.vmap(slope(fh, fh.while_loop)), steps, values, ts, lasts)
    same(got, lane_by_lane(slope(torch.func, python_while), steps, values, ts, lasts))


@every_mode
def test_empty_and_partial_writes(run):
    """test_zero_buffer, test_buffer_index, test_buffer_at_set."""
    empty = torch.zeros(5, 0)
    f = lambda x: fh.while_loop(lambda s: s[0] < 5, lambda s: (s[0] + 1, s[1]), (0, x), max_steps=5)[1]
    same(run(lambda x: fh.jvp(f, (x,), (x,)), empty), (empty, empty))

    def clear(x):
        x = x.clone()
        x[..., 1:] = 0
        return x

    ones = torch.ones(3, 5)
    same(run(lambda x: fh.while_loop(lambda _: True, clear, x, max_steps=2), ones), clear(ones))
    same(run(fh.grad(lambda x: fh.while_loop(lambda _: True, clear, x, max_steps=2).sum()), ones), clear(ones))

    def masked(flag, i):
        write = lambda x: x.index_copy(0, i[None], torch.where(flag, 1, x[i])[None])
        return fh.while_loop(lambda _: True, write, torch.zeros(2, dtype=torch.int64), max_steps=1)

    flags, places = torch.tensor([True, False]), torch.tensor([1, 0])
    same(run(fh.vmap(masked), flags, places), torch.tensor([[0, 1], [0, 0]]))


@every_mode
def test_parts_without_gradients(run):
    """test_nondifferentiable_body1, test_nondifferentiable_body2, test_trivial_vjp, test_symbolic_zero."""

    def body(s):
        i, x, y, z, none = s
        z = z.clone()
        z[i] = y
        return i + 1, x + y.detach(), y + 1, z, none

    def f(x, z):
        out = fh.while_loop(lambda _: True, body, (0, x, 0.7, z, None), max_steps=3)
        assert out[4] is None
        return out[1] + out[2] + out[3].sum()

    x, z = torch.tensor(1.2), torch.full((3,), -5.0)
    same(run(fh.value_and_grad(f, argnums=(0, 1)), x, z), (torch.tensor(15.1), (torch.tensor(1.0), torch.zeros(3))))

    def chain(x, y, z, w):
        step = lambda s: (s[0] + 1, s[0] + s[1], s[1] + s[2], s[3].detach() * 2)
        out = fh.while_loop(lambda _: True, step, (x, y, z, w), max_steps=3)
        return out[1] + out[3]

    ones = (torch.ones(()),) * 4
    expected = tuple(map(torch.tensor, (3.0, 1.0, 0.0, 0.0)))
    same(run(fh.grad(chain, argnums=(0, 1, 2, 3)), *ones), expected)
    trivial = lambda x: fh.while_loop(lambda _: True, lambda s: s, (x, 0.0), max_steps=3)[1]
    same(run(fh.grad(trivial), torch.tensor(1.0)), torch.tensor(0.0))


class Carry(NamedTuple):
    none: Any
    flag: Any
    count: Any
    still: Any
    moving: Any
    rows: Any


@every_mode
def test_carries_of_every_kind(run):
    """test_unperturbed_output: what does not depend on x has no tangent, whatever else the carry holds."""

    def body(c):
        rows = c.rows.clone()
        rows[0] = c.moving
        return Carry(c.none, ~c.flag, c.count + 1, c.still * 2, c.moving * c.still, rows)

    def f(x):
        init = Carry(None, True, 1, torch.tensor(1.5, dtype=F64), x, torch.zeros(2, dtype=F64))
        return fh.while_loop(lambda _: True, body, init, max_steps=3)

    out = run(f, torch.tensor(2.0, dtype=F64))
    assert out.none is None
    assert (bool(out.flag), int(out.count)) == (False, 4)
    same_derivatives(run, lambda x: f(x)[4:], lambda x: (x * 1.5 * 3 * 6, torch.stack([x * 4.5, x * 0])), out.moving)


@every_mode
@pytest.mark.parametrize("length", [0, 1, 4])
def test_scan(run, length):
    """test_scan of tests/test_scan.py: any length, with and without xs."""
    xs = torch.linspace(0.5, 1, 4, dtype=F64)[:length]
    w = torch.tensor(0.7, dtype=F64)
    step = lambda c, x: (torch.sin(c * w) + (0 if x is None else x), c * w)

    def oracle(c, xs):
        for x in xs:
            c = step(c, x)[0]
        return c

    c = torch.tensor(0.3, dtype=F64)
    same_derivatives(run, lambda c: fh.scan(step, c, xs)[0], lambda c: oracle(c, xs), c)
    same_derivatives(run, lambda c: fh.scan(step, c, length=length)[0], lambda c: oracle(c, [None] * length), c)
