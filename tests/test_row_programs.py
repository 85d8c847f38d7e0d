"""Random programs that read and write rows of a table by indices: the same in Python, captured, and in lanes?"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import functorch_hops as fh
from modes import same

PLACES = ("i", "j", "(i + j) % 4", "-1 - i", "3 - j")
OF_TABLE = (
    "t[{0}] = t[{1}] * 2 + 1",
    "t[{0}][j] = t[j].sum()",
    "t[{0}, j] = 3.0",
    "t.mul_(0.5)",
    "t[0] += 1",
    "t.narrow(1, i % 3, 2).add_(1)",
)
OF_ROW = ("{0}.mul_(1.5)", "{0} += 1", "{0}[j % 2].neg_()", "{0}[0] = 7.0", "{0}.copy_({0} * 2)", "s = s + {0}.sum()")


def program(seed: int) -> str:
    draw = random.Random(seed)
    lines, rows = ["t, s = t * 1, t.sum()"], []
    for _ in range(draw.randint(4, 9)):
        kind, place = draw.randrange(3), draw.choice(PLACES)
        if kind == 0 or not rows:
            rows.append(f"r{len(rows)}")
            reads = f"t[{place}]", f"t[:, {place}]", f"t.narrow(0, ({place}) % 3, 2)"
            lines.append(f"{rows[-1]} = {draw.choice(reads)}")
        elif kind == 1:
            lines.append(draw.choice(OF_TABLE).format(place, draw.choice("ij")))
        else:
            lines.append(draw.choice(OF_ROW).format(draw.choice(rows)))
    return "\n    ".join(["def f(t, i, j):", *lines, f"return ({', '.join(['t', 's', *rows])})\n"])


def in_lanes_of_lanes(f: Callable[..., Any], *args: Tensor) -> Any:
    """Twice the same, of which the inner index is one."""
    nested = fh.vmap(lambda t, i, j: fh.vmap(f, in_dims=(0, 0, None))(t, i, j))
    (table, i, j), n = args, len(args[0])
    outs = nested(torch.stack([table] * n), torch.stack([i] * n), j)
    return tuple(out[range(n), range(n)] for out in outs)


WAYS: dict[str, Callable[..., Any]] = {
    "vmap": lambda f, *args: fh.vmap(f)(*args),
    "jit of vmap": lambda f, *args: fh.jit(fh.vmap(f), backend="eager")(*args),
    "vmap of vmap": in_lanes_of_lanes,
    "map": lambda f, *args: fh.jit(fh.map, backend="eager")(lambda lane: f(*lane), args),
}


def made(seed: int) -> tuple[Callable[..., Any], Tensor, Tensor, Tensor]:
    """A program, three tables, and two indices for each."""
    namespace: dict[str, Any] = {}
    exec(program(seed), namespace)
    draw = torch.Generator().manual_seed(seed)
    table = torch.rand(3, 4, 4, dtype=torch.float64, generator=draw)
    return namespace["f"], table, *torch.randint(0, 4, (2, 3), generator=draw)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", range(20))
def test_rows_of_random_programs(seed: int, way: str) -> None:
    f, table, i, j = made(seed)
    lanes = [[out.clone() for out in f(*lane)] for lane in zip(table, i.tolist(), j.tolist())]
    same(tuple(WAYS[way](f, table, i, j)), tuple(map(torch.stack, zip(*lanes))))


@pytest.mark.parametrize("seed", range(20, 35))
def test_gradients_of_rows_of_random_programs(seed: int) -> None:
    f, table, i, j = made(seed)
    loss = lambda *lane: sum(out.square().sum() for out in f(*lane))

    def by_autograd(t: Tensor, *places: int) -> Tensor:
        t = t.clone().requires_grad_()
        return torch.autograd.grad(loss(t, *places), t)[0]

    expected = torch.stack([by_autograd(*lane) for lane in zip(table, i.tolist(), j.tolist())])
    same(fh.vmap(fh.grad(loss))(table, i, j), expected)
    same(fh.jit(fh.grad(lambda t: fh.vmap(loss)(t, i, j).sum()), backend="eager")(table), expected)
    same(fh.jit(fh.grad(loss), backend="eager")(table[0], i[0], j[0]), expected[0])
