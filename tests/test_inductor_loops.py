"""Loops and branches under Inductor, at trip counts 0, 1 and 3, alone and in one another, among operators that make
Inductor give memory from one value to the next.

Inductor reuses memory where it believes that nobody reads a value any more, and around loops it is wrong about that
(see NOTE [A loop's memory is its own]). Such faults are silent and depend on what stands around the loop, so every
program here is one function with work before, between and after its loops, compared in all its outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import functorch_hops as fh
from modes import same
from reference import Reference

pytestmark = pytest.mark.slow

N = 4
WEIGHT = torch.randn(N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 2
Loop = Callable[[Any, Callable[[Tensor], Tensor], Tensor, int], Tensor]


def rows(x: Tensor, trips: int) -> Tensor:
    return torch.stack([x * k for k in range(1, 4)])[:trips]


def scan(ops: Any, f: Callable[[Tensor], Tensor], x: Tensor, trips: int) -> Tensor:
    if ops is Reference and trips == 0:
        return torch.zeros_like(x)  # there is nothing to stack
    carry, ys = ops.scan(lambda c, r: (f(c + r), c * r), torch.zeros_like(x), rows(x, trips))
    return carry + ys.sum(0)


def scan_reverse(ops: Any, f: Callable[[Tensor], Tensor], x: Tensor, trips: int) -> Tensor:
    if ops is Reference and trips == 0:
        return x * 1
    carry, ys = ops.scan(lambda c, r: (f(c + r), c), x, rows(x, trips), reverse=True)
    return carry + ys.sum(0)


def while_loop(ops: Any, f: Callable[[Tensor], Tensor], x: Tensor, trips: int) -> Tensor:
    limit = trips + 0 * x.detach().sum()  # known to the run only
    return ops.while_loop(lambda s: s[0] < limit, lambda s: (s[0] + 1, f(s[1])), (torch.zeros(()), x))[1]


def fori_loop(ops: Any, f: Callable[[Tensor], Tensor], x: Tensor, trips: int) -> Tensor:
    return ops.fori_loop(0, trips, lambda i, c: f(c) + i, x)


def map_(ops: Any, f: Callable[[Tensor], Tensor], x: Tensor, trips: int) -> Tensor:
    return ops.map(f, rows(x, trips)).sum(0) if trips else x * 1


def cond(ops: Any, f: Callable[[Tensor], Tensor], x: Tensor, trips: int) -> Tensor:
    return ops.cond(x.detach().sum() * 0 + trips > 1, f, lambda x: x.flip(0).contiguous(), x)


def switch(ops: Any, f: Callable[[Tensor], Tensor], x: Tensor, trips: int) -> Tensor:
    index = (x.detach().sum() * 0).long() + trips
    return ops.switch(index, [torch.neg, f, torch.sin], x)


def associative_scan(ops: Any, f: Callable[[Tensor], Tensor], x: Tensor, trips: int) -> Tensor:
    return ops.associative_scan(lambda a, b: a * b + a + b, rows(f(x), trips))[-1] if trips else x * 1


LOOPS: dict[str, Loop] = {
    f.__name__.strip("_"): f for f in (scan, scan_reverse, while_loop, fori_loop, map_, cond, switch, associative_scan)
}
NESTED = ("scan", "while_loop", "fori_loop", "map", "cond")


def among_others(ops: Any, loop: Loop, body: Callable[[Tensor], Tensor]) -> Callable[[Tensor], list[Tensor]]:
    """Three runs of a loop that feed each other, among sorts, products and scatters of values of the same size."""

    def program(x: Tensor) -> list[Tensor]:
        results = []
        value = x.cos()
        for trips in (0, 1, 3):
            value = loop(ops, body, value, trips)
            outer = value[:, None] * x
            order = (value.argsort() % N).expand(N, N)
            results += [value.sort().values, value.cumsum(0) + outer.scatter_add(0, order, outer).sum(0)]
            value = value.flip(0).tanh()
        return results

    return program


def body(x: Tensor) -> Tensor:
    return torch.tanh(WEIGHT @ x) + x.flip(0) * 0.5


def weighted(outs: list[Tensor]) -> Tensor:
    return sum(((i + 1) * out.sin()).sum() for i, out in enumerate(outs))  # type: ignore[return-value]


def all_derivatives(tools: Any, program: Callable[[Tensor], list[Tensor]]) -> Callable[[Tensor], list[Tensor]]:
    loss = lambda x: weighted(program(x))

    def derivatives(x: Tensor) -> list[Tensor]:
        return [*program(x), tools.grad(loss)(x), *tools.jvp(program, (x,), (x.sin(),))[1]]

    return derivatives


START = torch.linspace(-0.9, 1.2, N, dtype=torch.float64)


def agree_in_value_and_derivatives(loop: Loop, step: Callable[[Any], Callable[[Tensor], Tensor]]) -> None:
    compiled = fh.jit(all_derivatives(fh, among_others(fh, loop, step(fh))))
    oracle = all_derivatives(torch.func, among_others(Reference, loop, step(Reference)))
    for x in (START, START.flip(0) * 0.7, START):  # a second call meets memory that the first one has given back
        before = x.clone()
        same(compiled(x), oracle(x))
        same(x, before)
    assert compiled.cache_info().misses == 1


@pytest.mark.parametrize("name", LOOPS)
def test_alone(name):
    agree_in_value_and_derivatives(LOOPS[name], lambda ops: body)


@pytest.mark.parametrize("inner", NESTED)
@pytest.mark.parametrize("outer", NESTED)
def test_nested(outer, inner):
    agree_in_value_and_derivatives(LOOPS[outer], lambda ops: lambda x: LOOPS[inner](ops, body, x, 2).tanh())


def test_newton_iteration_that_starts_converged():
    """It takes no step and returns its initial value, which others are to leave alone."""

    def f(x):
        step = lambda s: (s[0] + 1, (s[1] + x / s[1]) / 2)
        z = fh.while_loop(lambda s: (s[1] * s[1] - x).abs().max() > 1e-3, step, (0, x.sqrt()))[1]
        return z.cumsum(0), z * 2, z.sort().values, (z[:, None] * z).sum(0)

    x = torch.linspace(0.5, 2, 16)
    same(fh.jit(f)(x), f(x))


def test_equal_zero_carries_of_two_loops():
    """Merged into one value by the compiler, they must not become one accumulator."""

    def f(w, v, xs):
        first = fh.scan(lambda c, x: (torch.tanh(c * w + x), c), torch.zeros(N), xs)[1]
        second = fh.scan(lambda c, x: (torch.tanh(c * v + x), c), torch.zeros(N), first.flip(0))[1]
        return (first * second).sum()

    args = torch.linspace(0, 1, N), torch.linspace(1, 0, N), torch.randn(5, N)
    gradient = fh.grad(f, argnums=(0, 1, 2))
    same(fh.jit(gradient)(*args), gradient(*args))


@pytest.mark.parametrize("options", [{"allow_buffer_reuse": True, "inplace_buffers": True}, {"memory_planning": True}])
def test_whatever_the_configuration_of_inductor(options):
    f = all_derivatives(fh, among_others(fh, scan, body))
    same(fh.jit(f, options=options)(START), f(START))
    with torch._inductor.config.patch(options):
        same(fh.jit(lambda x: f(x))(START * 0.5), f(START * 0.5))


POWERS = {
    "int64": lambda n: n + 2**n,
    "int32": lambda n: (n.to(torch.int32) + 3 ** n.to(torch.int32)).to(torch.int64),
    "other numbers first": lambda n: n + 1 + 7 // (n + 1) + (100 - n) % 7 + (1 << n.clamp(max=3)) + (5 & n),
}


@pytest.mark.parametrize("name", POWERS)
def test_numbers_first(name):
    """The C++ wrapper hands a number on as a float, of which an operator on integers makes floats."""
    f = lambda n: fh.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, POWERS[name](s[1]).clamp(max=9)), (0, n))[1]
    same(fh.jit(f)(torch.tensor([0, 2, 5])), f(torch.tensor([0, 2, 5])))
    same(fh.jit(f)(torch.tensor(2)), f(torch.tensor(2)))


def branches(x):
    """Pairs whose results have the same shape and lie in memory in different ways."""
    return [
        (lambda x: x.sin().T, lambda x: x.T.contiguous()),
        (lambda x: x[:1].T, lambda x: x[0][:, None] * 2),
        (lambda x: x[:1, :1], lambda x: x[0, :1][:, None].expand(1, 1)),
        (lambda x: x[:0].T, lambda x: x.T[:, :0] * 2),
        (lambda x: x[:, 1], lambda x: x.T[2]),
        (lambda x: x[:, 1].expand(2, 3), lambda x: x.T[:2]),
        (lambda x: x.flip(0)[None], lambda x: torch.stack([x, x.cos()])[1, None]),
    ]


def test_branches_that_lie_in_memory_in_different_ways():
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)

    def f(x):
        return [fh.cond(x.sum() > k, yes, no, x) for yes, no in branches(x) for k in (-9, 9)]

    def loss(x):
        return weighted(f(x))

    g = lambda x: (f(x), fh.grad(loss)(x), fh.jvp(f, (x,), (x,))[1])
    for argument in (x, x.T.contiguous().T, x.repeat(2, 2)[::2, ::2]):
        same(fh.jit(g)(argument), g(argument))


def test_empty_and_flat_tensors_at_the_edges_of_operators():
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)

    def f(x):
        empty_carry = fh.scan(lambda c, y: (c * 2, (c.sum() + y, y[:0])), x[:, :0], x)
        idle = fh.scan(lambda c, y: (c * 2, y[:0]), x[0, :0], x)
        grown = fh.while_loop(lambda c: c[0].abs().max() < 9, lambda c: (c[0] * 1.5 + c[1].sum(), c[1]), (x, x[:0]))
        saved = fh.checkpoint(lambda x: (x, x[:0], x.sin()))(x)
        mapped = fh.map(lambda r: (r.sin(), r[:0], r[None, :1]), x)
        turned = fh.scan(lambda c, y: (c.T.contiguous().T * y.sum(), c.expand(3, 4).T), x[:1], x)
        return [*empty_carry[1], empty_carry[0], *idle, *grown, *saved, *mapped, *turned]

    loss = lambda x: weighted(f(x))
    g = lambda x: (f(x), fh.grad(loss)(x), fh.vmap(f)(torch.stack([x, -x])))
    same(fh.jit(g)(x), g(x))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_writes_to_what_shares_memory_with_itself():
    """Inductor writes in place where it can; in an expanded value that changes every element."""
    u = torch.full((3, 3), 0.6, dtype=torch.float64)

    def row(x):
        v = x.expand(3, 3) + 0 * u
        v[x.to(torch.int64) % 3] = u[0]
        return v

    def slices(x):
        v = x.expand(3, 3).clone()
        v[1:] = u[0] * x
        v[:, 1] = 3
        return v

    def windows(x):
        y = (x * u).reshape(-1) * 1
        return y.unfold(0, 4, 2).index_put((torch.tensor([1]),), x.sin())

    x = torch.tensor(2.2, dtype=torch.float64)
    every = lambda x: [t(f)(x) for f in (row, slices, windows) for t in (lambda f: f, fh.jacfwd, fh.jacrev)]
    same(fh.jit(every)(x), every(x))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_a_cotangent_that_is_a_part_of_another(shape):
    """Autograd reads it by ``as_strided``, which counts from the beginning of all the memory that it is part of."""

    def loss(w):
        v = w.sin()
        written = v + 0
        written[written > 0.137] = 0.5
        parts = torch.cat([written.reshape(-1), v.reshape(-1)])
        return (parts * torch.linspace(0.5, 1.5, parts.numel(), dtype=w.dtype)).sum()

    for w in (torch.full(shape, 0.8, dtype=torch.float64), torch.full(shape, -0.3, dtype=torch.float64)):
        same(fh.jit(fh.grad(loss))(w), torch.func.grad(loss)(w))


@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex operators")
def test_conjugates_and_complex_views_in_loops():
    def f(x):
        z = torch.view_as_complex(x.T.contiguous())
        step = lambda c, _: (c.conj() * 0.5 + c.conj().imag, (c.conj(), c.conj().real, -c.imag))
        carry, ys = fh.scan(step, z, None, 3)
        return torch.view_as_real(carry.resolve_conj()), ys[0].abs(), ys[1], ys[2]

    x = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(2, 4)
    g = lambda x: (f(x), fh.grad(lambda x: weighted(f(x)))(x))
    compiled = fh.jit(g)
    same(compiled(x), g(x))
    same(compiled(x.repeat_interleave(2, 1)[:, ::2]), g(x))


WHOLE_VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "squeezed of nothing": lambda x: x.squeeze(),
    "of another dtype": lambda x: x.view(torch.int64) // 2**32,
    "of a value": lambda x: (x + 1).reshape(-1).reshape(N, N).squeeze(),
    "transposed": lambda x: x.T,
    "a part": lambda x: x[1:],
}


@pytest.mark.parametrize("name", WHOLE_VIEWS)
def test_views_of_whole_buffers_among_the_constants(name):
    """The C++ wrapper has no name for them, and freed them in the first step."""

    def f(ops, x, n):
        view = WHOLE_VIEWS[name](x)

        def step(i, c):
            inner = ops.fori_loop(0, i, lambda j, d: d * 0.5 + (d.sum() * view).sum() * 1e-9, c)
            return inner.sin() + (view * i).sum()

        return ops.fori_loop(0, n, step, x), ops.scan(lambda c, r: ((c.sum() * r * view).sum() * c, c), x, x.sum(1))

    x = WEIGHT.clone()
    compiled = fh.jit(lambda x, n: f(fh, x, n))
    for trips in (0, 1, 3):
        same(compiled(x, torch.tensor(trips)), f(Reference, x, trips))


def written(x: Tensor) -> Tensor:
    return x.index_put((torch.tensor([1]),), torch.tensor(7.0, dtype=x.dtype))


TIMES = {
    "fori_loop": lambda x, n: fh.fori_loop(0, n, lambda _, c: c * 2, x),
    "while_loop": lambda x, n: fh.while_loop(lambda s: s[0] < n, lambda s: (s[0] + 1, s[1] * 2), (n * 0, x))[1],
    "bounded": lambda x, n: fh.while_loop(lambda s: s[0] < n, lambda s: (s[0] + 1, s[1] * 2), (n * 0, x), max_steps=4)[
        1
    ],
}


@pytest.mark.parametrize("name", TIMES)
def test_a_loop_of_no_step_returns_a_copy(name):
    """Later operators, and the caller, write to what it returns."""
    times = TIMES[name]

    def f(x, n):
        value = x.sin()
        first, second, part = times(value, n), times(value, n), times(x[1:], n)
        nested = fh.fori_loop(0, 2, lambda _, c: written(times(x, n)) + c, value)
        results = written(times(x, n)), written(first), written(second), written(times(times(x, n), n)), written(part)
        return *results, nested, value.cumsum(0), first.flip(0), times(x, n), times(value.squeeze(), n)

    def oracle(x, n):
        y, v = x * 2**n, x.sin() * 2**n
        nested = [written(y), written(y), x.sin()]
        results = written(y), written(v), written(v), written(y * 2**n), written(y[1:])
        return *results, sum(nested), x.sin().cumsum(0), v.flip(0), y, v

    compiled = fh.jit(f)
    for n in (torch.tensor(0), torch.tensor(2)):
        x = START.clone()
        results = compiled(x, n)
        same(results, oracle(START, n))
        same(x, START)
        memory = {y.untyped_storage().data_ptr() for y in (x, *results)}
        assert len(memory) == len(results) + 1
