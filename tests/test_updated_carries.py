"""Carries of which a step writes to a part: updated in place where nothing tells, in value and gradient."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import functorch_hops as fh
from loop_plans import normal, plan
from modes import same

ROWS, COLUMNS = 40, 3
Write = Callable[[Tensor, Tensor, Tensor], object]
XS = normal(6, COLUMNS).double()


def updated(f: Callable[..., Any], *args: Any) -> list[int]:
    """How many carries each loop updates in place."""
    nodes = plan(f, *args).body.module.graph.nodes
    sources = ["\n".join(node.args[3]) for node in nodes if "loop_kernel" in str(node.target)]
    return [len(re.findall(r"\*next_\d+ = out_\d+;", source)) for source in sources]


def writing(*writes: Write) -> Callable[..., Any]:
    """A table for each write, all carried by one loop."""

    def f(tables: tuple[Tensor, ...], xs: Tensor) -> Any:
        def step(carry: tuple[tuple[Tensor, ...], Tensor], x: Tensor) -> Any:
            tables, i = carry
            tables = tuple(table.clone() for table in tables)
            for table, write in zip(tables, writes, strict=True):
                write(table, i, x)
            return (tables, i + 1), None

        return fh.scan(step, (tables, torch.tensor(0)), xs)[0][0]

    return f


def tables(n: int) -> tuple[Tensor, ...]:
    return tuple(normal(ROWS, COLUMNS, seed=i).double() for i in range(n))


def total(f: Callable[..., Any]) -> Callable[..., Any]:
    return fh.grad(lambda *args: sum((table**2).sum() for table in f(*args)), argnums=(0, 1))


def put(*places: Any) -> Write:
    return lambda t, i, x: [t.__setitem__(i + place, x * (place + 1)) for place in places]


WRITES: tuple[Write, ...] = (
    put(0),
    put(0, 2),
    lambda t, i, x: t[i].add_(x),
    lambda t, i, x: t.__setitem__((i, 1), x[0]),
    lambda t, i, x: t.__setitem__((1, slice(1, None)), x[1:] * t[i, 0]),
    lambda t, i, x: t.__setitem__(i + torch.arange(3), x),
    lambda t, i, x: t.narrow(0, i, 2).copy_(x.expand(2, COLUMNS)),
    lambda t, i, x: t.index_add_(0, (i % 2 + torch.arange(3)) // 2, x.expand(3, COLUMNS)),
    lambda t, i, x: t.scatter_(0, i.reshape(1, 1).expand(1, COLUMNS), x[None]),
    lambda t, i, x: t.view(-1)[i * 3].mul_(x[0]),
)
READS: tuple[Write, ...] = (
    lambda t, i, x: t.__setitem__(i + 1, t[i]),
    lambda t, i, x: t.__setitem__(slice(1, 9), t[:8] * x),
    lambda t, i, x: t.__setitem__(torch.arange(8) + i, t[4:12].flip(0)),
    lambda t, i, x: (t.__setitem__(i, x), t.__setitem__(i + 2, t[i] * 2), t.__setitem__(i, t[i + 2].sum())),
    lambda t, i, x: t.__setitem__(t[i, 0].gt(0).long(), x + t.mean(0)),
)
"""What is written, or where, is read from the table itself."""


def test_what_is_written_to_a_part() -> None:
    args = tables(len(WRITES)), XS
    assert updated(writing(*WRITES), *args) == [len(WRITES)]
    same(fh.jit(writing(*WRITES))(*args), writing(*WRITES)(*args))


def test_what_is_read_of_what_is_written_to() -> None:
    args = tables(len(READS)), XS
    assert updated(writing(*READS), *args) == [len(READS)]
    same(fh.jit(writing(*READS))(*args), writing(*READS)(*args))


def test_rows_that_are_read_again_between_two_writes() -> None:
    """A kernel that made both writes would move rows before one of them is written."""
    rows, columns = 20, 5

    def f(tables: tuple[Tensor, ...], xs: Tensor) -> Any:
        def step(carry: tuple[Tensor, Tensor], x: Tensor) -> Any:
            table, i = carry
            row = (3 * i + 6) % rows
            table = table.index_put(((row + 1) % rows,), table[row] + torch.tanh(x))
            return (table.slice_scatter(table[:5], 0, 1, 6), i + 1), None

        return fh.scan(step, (tables[0], torch.tensor(0)), xs)[0][:1]

    args = (normal(rows, columns).double(),), normal(6, columns, seed=1).double()
    assert updated(f, *args) == [1]
    same(fh.jit(f)(*args), f(*args))
    same(fh.jit(total(f))(*args), total(f)(*args))


def test_their_gradients() -> None:
    """Which write zeros, and add what is read to where it was read."""
    f = writing(*WRITES[:4], WRITES[5], READS[0], READS[2])
    args = tables(7), XS
    assert updated(total(f), *args) == [7, 7]
    same(fh.jit(total(f))(*args), total(f)(*args))


def test_the_gradient_of_a_table_of_which_rows_are_read() -> None:
    """Its cotangent gets rows, repeated ones too, and rows of rows."""

    def f(table: Tensor, h: Tensor, rows: Tensor) -> Tensor:
        def step(h: Tensor, row: Tensor) -> Any:
            one, several = table[row], table[row // 2 + torch.tensor([0, 1, 1])]
            return torch.tanh(h + one + several.sum(0) * table[3, 1:2]), h

        return (fh.scan(step, h, rows)[1] ** 2).sum()

    args = normal(ROWS, COLUMNS).double(), XS[0], torch.tensor([0, 2, 2, 39, -1])
    gradient = fh.grad(f, argnums=(0, 1))
    assert updated(gradient, *args) == [0, 1]
    same(fh.jit(gradient)(*args), gradient(*args))


def test_the_gradient_of_an_embedding() -> None:
    places = torch.tensor([3, 7, 7, 0, 3])

    def f(table: Tensor, padding: int | None = None) -> Tensor:
        step = lambda c, i: (torch.tanh(c + torch.nn.functional.embedding(i, table, padding_idx=padding)), None)
        return fh.scan(step, table.new_zeros(COLUMNS), places)[0].sum()

    for padding in (None, 7):
        gradient = fh.grad(lambda table, padding=padding: f(table, padding))
        (table,) = tables(1)
        assert updated(gradient, table)[1:] == [1]
        same(fh.jit(gradient)(table), gradient(table))


def test_old_rows_among_the_results() -> None:
    """Of a table that is written to by a view, by its rows, twice."""

    def step(table: Tensor, x: Tensor) -> Any:
        flat = table.reshape(-1).index_put((torch.arange(4, 8),), x.sum().expand(4))
        new = flat.reshape(table.shape).index_add(0, torch.tensor([1, 1]), x.expand(2, COLUMNS))
        return new.select_scatter(x, 0, 2), (table[1:3] * 2, flat[5:7] + 1, new[1], table.view(-1)[4])

    f = lambda table, xs: fh.scan(step, table, xs)
    args = tables(1)[0], XS
    assert updated(f, *args) == [1]
    same(fh.jit(f)(*args), f(*args))


def mixed(carry: tuple[Tensor, Tensor], x: Tensor) -> Any:
    table, i = carry
    new = table.index_put((i,), x)
    return (new, i + 1), (new * table).sum()


def exchanged(carry: tuple[Tensor, Tensor, Tensor], x: Tensor) -> Any:
    a, b, i = carry
    return (b.index_put((i,), x), a.index_put((i,), -x), i + 1), None


def test_what_tells_of_a_write_makes_another_table() -> None:
    """A product of both values, another carry."""
    a, b = tables(2)
    zero = torch.tensor(0)
    for step, init in ((mixed, (a, zero)), (exchanged, (a, b, zero))):
        f = lambda init, xs, step=step: fh.scan(step, init, xs)
        assert updated(f, init, XS) == [0]
        same(fh.jit(f)(init, XS), f(init, XS))


def test_two_tables_that_read_one_another() -> None:
    """Each before the other is written to, which can't be, or one of them."""

    def both(carry: Any, x: Tensor) -> Any:
        a, b, i = carry
        return (a.index_put((i,), b[i + 1]), b.index_put((i,), a[i + 2] + x), i + 1), a[i]

    def in_turn(carry: Any, x: Tensor) -> Any:
        a, b, i = carry
        a = a.index_put((i,), b[i + 1])
        return (a, b.index_put((i + 1,), a[i] + x), i + 1), b[i] + a[i + 1]

    args = (*tables(2), torch.tensor(0)), XS
    for step in (both, in_turn):
        f = lambda init, xs, step=step: fh.scan(step, init, xs)
        assert updated(f, *args) == [2]
        same(fh.jit(f)(*args), f(*args))


def test_loops_of_unknown_length() -> None:
    """A while loop, its tape, and the loop that reads that."""

    def f(table: Tensor, x: Tensor) -> Tensor:
        def step(state: tuple[Tensor, Tensor]) -> Any:
            table, i = state
            return table.index_put((i + 1,), torch.sin(table[i] + x)), i + 1

        return fh.while_loop(lambda s: s[1] < 5, step, (table, torch.tensor(0)))[0]

    args = normal(ROWS, COLUMNS).double(), XS[0]
    gradient = fh.grad(lambda *args: (f(*args) ** 2).sum(), argnums=(0, 1))
    assert updated(f, *args) == [1]
    same(fh.jit(f)(*args), f(*args))
    same(fh.jit(gradient)(*args), gradient(*args))


def test_an_open_number_of_rows_and_lanes() -> None:
    f = writing(*WRITES[:3], READS[0])
    jitted, lanes = fh.jit(f, dynamic=True), fh.jit(fh.vmap(f))
    for rows in (40, 55):
        args = tuple(normal(rows, COLUMNS, seed=i).double() for i in range(4)), XS
        same(jitted(*args), f(*args))
    several = tuple(torch.stack([table, -table]) for table in tables(4)), torch.stack([XS, XS * 2])
    same(lanes(*several), fh.vmap(f)(*several))
