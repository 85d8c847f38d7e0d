"""Loops over lanes of several numbers: which are, and that each computes what eager does."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import optree
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import functorch_hops as fh
from functorch_hops.lowering.loops import systems
from functorch_hops.lowering.loops.forms import Refused
from functorch_hops.lowering.loops.lane_rows import LANE, Rows, rows_of
from functorch_hops.lowering.loops.unrolled import Scope, work_of
from loop_plans import Program, check, normal, plan, taken

LANES, STEPS, N = 37, 3, 4  # more than two vectors of lanes, and a part of one

C, XS, A = normal(LANES, N), normal(STEPS, LANES, N, seed=1), 0.4 * normal(N, N, seed=2)


def scan(step: Callable[[Any, Any], Any], in_dims: int = 1) -> Callable[[Any, Tensor], Any]:
    """Of each lane."""
    return fh.vmap(lambda c, xs: fh.scan(step, c, xs), in_dims=(0, in_dims))


def twice(f: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Tensor], Any]:
    return scan(lambda c, x: (f(c, x),) * 2)


def lorenz(y: Tensor) -> Tensor:
    a, b, c = y
    return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c])


def filtered(a: Tensor, c: Tensor, ys: Tensor) -> Any:
    """A Kalman filter whose covariance is the same in all lanes."""

    def run(y: Tensor) -> Any:
        def step(carry: Any, y: Tensor) -> Any:
            x, p = carry
            x, p = a @ x, a @ p @ a.T + torch.eye(N)
            residual, spread = y - c @ x, c @ p @ c + 1
            gain = p @ c / spread
            return (x + gain * residual, p - torch.outer(gain, c @ p)), residual / spread

        return fh.scan(step, (torch.zeros(N), torch.eye(N)), y)

    return fh.vmap(run)(ys)


def nested(c: Tensor, x: Tensor) -> Any:
    """What the loops inside read and stack is from before and after one another."""
    first = c + x
    c, sums = fh.scan(lambda c, v: (c * 0.5 + v * first, c.sum()), first, torch.stack([x, first, x * 2]))
    c = fh.fori_loop(0, 2, lambda i, c: torch.tanh(c + x.flip(0)), c)
    return torch.tanh(c + sums.mean() * first), (sums, c)


def deeper(c: Tensor, x: Tensor) -> Any:
    """Loops in a loop inside, each of which stacks."""

    def middle(c: Tensor, v: Tensor) -> Any:
        c, ys = fh.scan(lambda c, u: (torch.tanh(c.flip(0) * 0.5 + u), c * 2), c, torch.stack([v, x]))
        return torch.tanh(c + ys[1]), c * 3

    c, ys = fh.scan(middle, c, torch.stack([x, x * 2]))
    return torch.tanh(c + ys[1]), ys[0]


def looked_up(c: Tensor, table: Tensor, i: Tensor) -> Any:
    """At a place of each lane; no lane behind the last one reads behind the table."""

    def step(carry: Any, _: None) -> Any:
        c, i = carry
        return (torch.tanh(c * c.sum(-1, True) + table[torch.arange(LANES) + i][:, None]), i + 1), c

    return fh.scan(step, (c, i), None, length=STEPS)


def halved(c: Tensor, x: Tensor) -> Any:
    c = fh.while_loop(lambda c: c.abs().sum() > 0.5, lambda c: c * 0.6 + 0.01 * x.flip(0), c + x)
    return c, c.amax()


SYSTEMS: dict[str, Program] = {
    "sum": (twice(lambda c, x: torch.tanh(c * c.sum() + x) * torch.sin(c.amax() * c.amin() + c.prod())), (C, XS)),
    "moments": (twice(lambda c, x: (c - c.mean() + x) / (1 + c.var())), (C, XS)),
    "softmax": (twice(lambda c, x: torch.softmax(c + x, 0) * x + torch.tanh(c)), (C, XS)),
    "place of the largest": (scan(lambda c, x: (torch.tanh(c.roll(1) * x) + c.argmin(), c.argmax())), (C, XS)),
    "places of NaN": (
        scan(lambda c, x: (torch.where(x > 1, torch.nan, c * 0.5 + x.flip(0) + c.sum() * 0), c.argmax())),
        (C, XS),
    ),
    "shifted": (
        twice(lambda c, x: torch.tanh(F.pad(c[1:], (1, 0)) + torch.cat([x[2:], c[:2]]) * x.flip(0)) * c.roll(1) + x),
        (C, XS),
    ),
    "matrix for all": (lambda a, c, xs: twice(lambda c, x: torch.tanh(a @ c + x))(c, xs), (A, C, XS)),
    "matrix of each": (twice(lambda c, x: torch.tanh((c[:, None] * x) @ x + c.sum())), (C, XS)),
    "Lorenz": (
        fh.vmap(lambda y: fh.scan(lambda y, _: (y + 0.01 * lorenz(y + 0.005 * lorenz(y)), y), y, length=STEPS)),
        (normal(LANES, 3),),
    ),
    "Kalman": (filtered, (A, normal(N), normal(LANES, STEPS))),
    "state space": (
        lambda a, x, b: fh.scan(lambda h, r: ((h * a + r[0][:, None] * r[1]).tanh(), h @ r[1]), a, (x, b)),
        (0.3 * C, normal(STEPS, LANES), normal(STEPS, N)),
    ),
    "lanes behind": (
        lambda c, xs: fh.scan(lambda c, x: (torch.cat([c[1:], c[:1] * x.tanh()]), c.amax(0)), c, xs),
        (C.T.contiguous(), normal(STEPS, LANES)),
    ),
    "lanes of two dimensions": (
        fh.vmap(fh.vmap(lambda y: fh.scan(lambda y, _: (y + 0.01 * lorenz(y), y), y, length=STEPS))),
        (normal(4, 8, 3),),
    ),
    "count for all": (
        lambda c, xs: fh.scan(
            lambda c, x: ((torch.tanh(c[0]) * c[0].sum(-1, True) + x, c[1] + 1), c[0] * c[1]), (c, 1), xs
        ),
        (C, XS),
    ),
    "dtypes": (
        lambda c, n, xs: fh.scan(
            lambda c, x: (
                (c[0] * c[0].mean(-1, True) + x, c[1] + c[2].sum(-1, True), c[2].roll(1, -1) ^ (x > 0)),
                (c[2].any(-1), c[1].sum(-1), c[2]),
            ),
            (c, n, c > 0),
            xs,
        ),
        (C, torch.arange(LANES * N).reshape(LANES, N), XS),
    ),
    "double": (twice(lambda c, x: torch.tanh(c.sum() * x + c)), (C.double(), XS.double())),
    "bfloat16": (twice(lambda c, x: torch.tanh(c.flip(0) * x + c) * 0.5), (C.bfloat16(), XS.bfloat16())),
    "many lanes": (twice(lambda c, x: torch.tanh(c.sum() * x + c)), (normal(700, 3), normal(2, 700, 3))),
    "reverse": (
        lambda c, xs: fh.scan(lambda c, x: (torch.tanh(c.sum(-1, True) * x + c), (c, x)), c, xs, reverse=True),
        (C, XS),
    ),
    "loops inside": (scan(nested), (C, XS)),
    "loops in loops inside": (scan(deeper), (C, XS)),
    "table": (looked_up, (C, normal(LANES + STEPS - 1), torch.tensor(0))),
    "while inside": (scan(halved), (C, XS)),
    "while": (
        fh.vmap(lambda c: fh.while_loop(lambda c: c.norm() > 0.5, lambda c: 0.8 * c + 0.01 * c.flip(0), c)),
        (C,),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_lanes_of_several_numbers(name: str) -> None:
    f, args = SYSTEMS[name]
    assert set(taken(check(f, *args))) == {"lanes"}


def test_a_step_of_all_that_a_lane_may_do() -> None:
    def step(c: Tensor, x: Tensor) -> Any:
        c = torch.tanh((c[:, None] * x) @ c + F.pad(x[1:], (0, 1)) * torch.softmax(c, 0))
        return fh.fori_loop(0, 2, lambda i, c: c * 0.5 + x * c.sum(), c), c.argmax()

    assert taken(check(scan(step), C, XS)) == ["lanes", "lanes"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["softmax", "loops inside", "Lorenz"])
def test_gradients_are_loops_over_lanes_too(name: str) -> None:
    f, args = SYSTEMS[name]

    def loss(*args: Tensor) -> Any:
        return sum(x.sin().sum() for x in optree.tree_leaves(f(*args)))  # type: ignore[arg-type]

    reports = check(fh.grad(loss, argnums=tuple(range(len(args)))), *args, rtol=1e-4, atol=1e-4)
    assert set(taken(reports)) == {"lanes"}


OTHERS: dict[str, Program] = {
    "another lane": (
        lambda c, xs: fh.scan(lambda c, x: (torch.tanh(c.roll(1, 0) * c.sum(-1, True) + x), c), c, xs),
        (C, XS),
    ),
    "all lanes": (lambda c, xs: fh.scan(lambda c, x: (torch.tanh(c * c.sum(0) + x), c), c, xs), (C, XS)),
    "one lane": (lambda c, xs: fh.scan(lambda c, x: (torch.tanh(c * c[:1] + x).flip(-1), c), c, xs), (C, XS)),
    "few lanes": (twice(lambda c, x: torch.tanh(c.sum() * x + c)), (C[:5], XS[:, :5])),
    "large product": (
        lambda c, xs: fh.scan(lambda c, x: (torch.tanh(c @ x), c), c, xs),
        (normal(32, 16), normal(3, 16, 16)),
    ),
    "a matrix of as many elements as there are lanes": (
        lambda w, c, xs: fh.scan(lambda c, x: (torch.tanh(c @ w) @ w.mT + x, c), c, xs),
        (normal(4, 16), normal(64, 4), normal(3, 64, 4, seed=1)),
    ),
    "little work": (twice(lambda c, x: c.flip(0) + x), (C, XS)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_loops_are_functions_of_all_lanes(name: str) -> None:
    f, args = OTHERS[name]
    assert taken(check(f, *args)) == ["steps"]


def test_what_prevents_both_ways_is_told() -> None:
    f, args = OTHERS["little work"]
    (loop,) = plan(f, *args).loops
    assert "is accessed at another lane" in str(loop.reason) and "little is computed" in str(loop.reason)


def test_no_code_is_made_of_lanes_of_many_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a block would hold is known once every number has its place; code takes far longer than that."""
    made: list[Any] = []
    monkeypatch.setattr(systems, "loop_code", lambda *args: made.append(args))
    c, xs = normal(64, 128), normal(STEPS, 64, 128, seed=1)
    (loop,) = plan(twice(lambda c, x: c * c.sum() + x), c, xs).loops
    assert loop.taken == "steps" and "a lane has many numbers" in str(loop.reason) and not made


def test_lanes_whose_carries_are_many_numbers_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """To replay a step for all numbers of a lane takes seconds."""
    tried, step = list[int](), systems.Step
    monkeypatch.setattr(systems, "Step", lambda block, *args: tried.append(block.lanes) or step(block, *args))
    c, xs = normal(16, 600), normal(STEPS, 16, 600, seed=1)
    (loop,) = plan(twice(lambda c, x: c * c.sum() + x), c, xs).loops
    assert loop.taken == "steps" and "a lane has many numbers" in str(loop.reason)
    assert 600 in tried and 16 not in tried


def test_no_node_is_replayed_at_more_numbers_than_a_lane_may_have() -> None:
    """What no lane owns is shared by all, of whatever size it is."""
    ran: list[Any] = []
    handler = SimpleNamespace(values={}, run=ran.append)
    with pytest.raises(Refused, match="a step of one lane is long"):
        work_of(Scope(1536, 256, {}, {}, {}), handler, None, [8, 64, 24], [], [])
    assert not ran


def test_parts_and_pads_of_half_precision() -> None:
    """What is read under a condition known to be false has a dtype, too."""
    f = twice(lambda c, x: torch.tanh(F.pad(c[1:], (0, 1), value=0.5) * x.sum() + torch.cat([x[1:], c[:1]])))
    assert taken(check(f, C.bfloat16(), XS.bfloat16())) == ["lanes"]


@pytest.mark.parametrize("lanes", [40, 300])
def test_lanes_without_numbers(lanes: int) -> None:
    c, xs = torch.zeros(lanes, 0), torch.zeros(STEPS, lanes, 0)
    assert taken(check(twice(lambda c, x: c * c.sum() + x), c, xs)) == ["steps"]


@pytest.mark.parametrize("shape", [(5, 16), (16, 5), (3, 16, 2), (4, 4, 3), (16,), (7,)])
def test_every_element_is_one_number_of_one_lane(shape: tuple[int, ...]) -> None:
    rows = rows_of(shape, 16)
    places = [rows.index(i) for i in range(rows.size)]
    assert [rows.number(place) for place in places] == list(range(rows.size))
    found = sorted(int(place.subs(LANE, lane)) for place in places for lane in range(16 if rows.step else 1))
    assert found == list(range(torch.Size(shape).numel()))


def test_no_place_of_another_lane_is_one_s_own() -> None:
    rows = Rows(lanes=16, step=3, size=6)
    assert [rows.number(3 * LANE + i) for i in (-1, 0, 2, 3, 47, 48, 50, 51)] == [None, 0, 2, None, None, 3, 5, None]
    assert rows.number(LANE) is rows.number(LANE * 0 + 1) is None
