"""Reverse mode through loops whose trip count only a run knows, with everything saved and with ``checkpoints``."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functorch_hops as fh
from functorch_hops.ops.while_loop.reuse import reusing
from functorch_hops.ops.while_loop.schedule import empty_table, latest, offer, written

F64 = torch.float64

with_and_without = pytest.mark.parametrize("loop", [None, 2], indirect=True, ids=["all saved", "checkpoints"])


@pytest.fixture
def loop(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return functools.partial(fh.while_loop, checkpoints=request.param)


def python_loop(cond_fn: Any, body_fn: Any, value: Any, max_steps: int | None = None) -> Any:
    steps = 0
    while (max_steps is None or steps < max_steps) and cond_fn(value):
        value, steps = body_fn(value), steps + 1
    return value


def jitted(f: Callable[..., Any]) -> Callable[..., Any]:
    return fh.jit(f, backend="eager")


def same(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def by_lanes(f: Callable[..., Tensor], *args: Tensor) -> Tensor:
    return torch.stack([f(*lane) for lane in zip(*args, strict=True)])


# ---------------------------------------------------------------------------------------------------------------------
# how often the body runs


ticks = 0


@torch.library.custom_op("functorch_hops_tests::tick", mutates_args=())
def tick(n: Tensor) -> Tensor:
    global ticks
    ticks += 1
    return n + 1


@tick.register_fake
def _(n: Tensor) -> Tensor:
    return torch.empty_like(n)


def counted(x: Tensor, trips: Tensor, k: int) -> Tensor:
    """Each step needs its tick, for its value and for its derivative."""

    def body(state: Any) -> Any:
        n = tick(state[0])
        return n, torch.sin(state[1] + 0.01 * state[1] * n)

    return fh.while_loop(lambda s: s[0] < trips, body, (torch.tensor(0), x), checkpoints=k)[1].sum()


def counted_oracle(x: Tensor, trips: int) -> Tensor:
    for n in range(1, trips + 1):
        x = torch.sin(x + 0.01 * x * n)
    return x.sum()


def repetitions(k: int, trips: int) -> int:
    """The least r with C(k + r, r) >= trips."""
    r = 0
    while math.comb(k + r, r) < trips:
        r += 1
    return r


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_the_body_runs_no_more_often_than_promised(k):
    global ticks
    gradient = jitted(lambda x, trips: fh.grad(counted)(x, trips, k))
    x = torch.tensor([0.5, -1.2], dtype=F64)
    for trips in (0, 1, 2, 3, 5, 11, 30):
        ticks = 0
        got = gradient(x, torch.tensor(trips))
        assert ticks <= (repetitions(k, trips) + 1) * trips
        same(got, torch.func.grad(counted_oracle)(x, trips))
    assert gradient.cache_info().misses == 1


def runs_of_the_schedule(k: int, trips: int) -> list[int]:
    """How often each step runs, forwards and backwards, if ``offer`` and ``latest`` decide what is saved."""
    runs = [0] * trips
    steps, levels = empty_table(k)
    slots, init = [torch.full((k,), -1)], [torch.tensor(0)]  # a slot holds the number of its step

    def take(step: int, wanted: bool) -> None:
        nonlocal steps, levels, slots
        number = torch.tensor(step)
        place, taken, steps, levels = offer(number, torch.tensor(wanted), steps, levels)
        slots = written(place, taken, [number], slots)

    for t in range(trips):
        take(t, t > 0)
        runs[t] += 1
    for end in range(trips, 0, -1):
        at, steps, levels, values = latest(torch.tensor(end), steps, slots, init)
        assert values[0] == at < end
        for t in range(int(at), end):
            take(t, t > int(at))
            runs[t] += t < trips - 1  # the residuals of the last step are at hand
    return runs


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_no_step_is_repeated_more_often_than_the_theory_says(k):
    """Wang, Moin and Iaccarino 2009, for every trip count up to where r reaches 3 or 4."""
    for trips in range(1, min(math.comb(k + 3, 3) + 2, 30)):
        assert max(runs_of_the_schedule(k, trips)) <= repetitions(k, trips) + 1


# ---------------------------------------------------------------------------------------------------------------------
# how much is kept


def saved_bytes(f: Callable[..., Tensor], *args: Tensor) -> int:
    """Of what autograd keeps for the backward pass, the operands included."""
    storages: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        f(*(a.clone().requires_grad_() for a in args))
    return sum(storages.values())


def test_what_is_kept_does_not_grow_with_the_trip_count():
    def f(x: Tensor, trips: int) -> Tensor:
        body = lambda s: (s[0] + 1, torch.tanh(s[1] * 1.1))
        return fh.while_loop(lambda s: s[0] < trips, body, (0, x), checkpoints=5)[1].sum()

    x = torch.rand(1000, dtype=F64)
    few, many = (saved_bytes(lambda x, n=n: f(x, n), x) for n in (10, 200))
    assert few == many <= 8 * 8000  # five slots, the operand, a residual of the last step, the table


def test_a_gradient_that_nobody_differentiates_stacks_nothing():
    """Functorch prepares every gradient for another one; what that would read is pruned, or never stacked."""
    gradient = jitted(
        fh.grad(lambda x: fh.while_loop(lambda v: v.sum() < 99, lambda v: v * 1.3, x, checkpoints=2).sum())
    )
    text = gradient.lower(torch.ones(3)).as_text()
    assert text.count("while_loop[") == 2
    assert text.count("flags=()") == 2
    forward_only = jitted(lambda x: fh.while_loop(lambda v: v.sum() < 99, lambda v: v * 1.3, x, checkpoints=2))
    assert "checkpoint[" not in forward_only.lower(torch.ones(3)).as_text()


# ---------------------------------------------------------------------------------------------------------------------
# nesting and composition


WEIGHT = torch.linspace(-0.6, 0.7, 9, dtype=F64).reshape(3, 3)
LANES = torch.tensor([[0.5, -0.9, 0.2], [0.3, 0.6, -0.1], [-0.8, -0.4, -0.7], [1.1, 0.7, 0.9]], dtype=F64)


def in_scan(loop: Any, scan: Any, cond: Any, x: Tensor) -> Tensor:
    def step(c: Tensor, a: Tensor) -> Any:
        v = loop(lambda v: (v**2).sum() < 6, lambda v: v * 1.4 + 0.1 * torch.tanh(WEIGHT @ v), c * 0.3 + a)
        return v, v.sum()

    return scan(step, x, torch.stack([x, x * 2, x - 1]))[1].sum()


def in_branch(loop: Any, scan: Any, cond: Any, x: Tensor) -> Tensor:
    grow = lambda v: loop(lambda v: (v**2).sum() < 6, lambda v: v * 1.4 + 0.1 * torch.tanh(WEIGHT @ v), v)
    return cond(x.sum() > 0, grow, lambda v: torch.log(1 + v * v), x).sum()


def in_while(loop: Any, scan: Any, cond: Any, x: Tensor) -> Tensor:
    def body(state: Any) -> Any:
        n, v = state
        u = loop(lambda u: (u**2).sum() < 3, lambda u: u * 1.5 + 0.1 * torch.cos(u), v)
        return n + 1, u * 0.4 + 0.2 * torch.sin(WEIGHT @ v)

    return loop(lambda s: (s[1].sum() < 2.0) & (s[0] < 4), body, (torch.tensor(0), x))[1].sum()


def around_scan_and_branch(loop: Any, scan: Any, cond: Any, x: Tensor) -> Tensor:
    def body(v: Tensor) -> Tensor:
        c, ys = scan(lambda c, a: (c * 0.9 + a, (c * a).sum()), v, torch.stack([v, x]))
        return cond(c.sum() > 0.3, lambda c: c * 1.7, lambda c: c + 0.5 * torch.cosh(c), c) + 0.01 * ys.sum()

    return loop(lambda v: (v**2).sum() < 5, body, x).sum()


def python_scan(f: Any, carry: Any, xs: Tensor) -> Any:
    ys = []
    for x in xs:
        carry, y = f(carry, x)
        ys.append(y)
    return carry, torch.stack(ys)


def python_cond(pred: Any, true_fn: Any, false_fn: Any, *operands: Any) -> Any:
    return true_fn(*operands) if pred else false_fn(*operands)


SLOW_NESTS = [pytest.param(nest, marks=pytest.mark.slow) for nest in (in_branch, around_scan_and_branch)]
every_nest = pytest.mark.parametrize("nest", [in_scan, in_while, *SLOW_NESTS], ids=lambda nest: nest.__name__)


def lowered(nest: Any, loop: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: nest(loop, fh.scan, fh.cond, x)


def oracle_of(nest: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: nest(python_loop, python_scan, python_cond, x)


@with_and_without
@every_nest
def test_nests_and_lanes(nest, loop):
    f = lowered(nest, loop)
    expected = by_lanes(torch.func.grad(oracle_of(nest)), LANES)
    same(jitted(fh.vmap(fh.grad(f)))(LANES), expected)
    x = LANES.clone().requires_grad_()
    fh.vmap(jitted(f))(x).sum().backward()
    same(x.grad, expected)


@pytest.mark.slow
@with_and_without
@every_nest
def test_nests_twice_differentiated(nest, loop):
    f, x = lowered(nest, loop), LANES[1]
    expected = torch.func.hessian(oracle_of(nest))(x)
    with fh.eager_capture():
        same(fh.jacfwd(fh.grad(f))(x), expected)  # forward over reverse
        same(fh.jacrev(fh.grad(f))(x), expected)  # reverse over reverse
        same(fh.grad(lambda x: fh.jvp(f, (x,), (x,))[1])(x), torch.func.grad(lambda x: _slope(nest, x))(x))


def _slope(nest: Any, x: Tensor) -> Tensor:
    slope: Tensor = torch.func.jvp(oracle_of(nest), (x,), (x,))[1]
    return slope


def growing(x: Tensor, loop: Any = python_loop) -> Tensor:
    return loop(lambda v: v < 3, lambda v: v * v * 0.1 + v * 1.5, x)


LANES_OF_LANES = torch.tensor([[0.1, 0.5], [1.0, 1.7]], dtype=F64)


def each(f: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.stack([by_lanes(f, row) for row in LANES_OF_LANES])


@with_and_without
def test_lanes_within_lanes(loop):
    """A lane of the outer vmap that has finished borrows the rows of another one, the masks of its inner lanes too."""
    f = functools.partial(growing, loop=loop)
    same(fh.vmap(fh.vmap(fh.grad(f)))(LANES_OF_LANES), each(torch.func.grad(growing)))
    per_row = fh.vmap(fh.grad(lambda row: fh.vmap(f)(row).sum()))
    same(per_row(LANES_OF_LANES), each(torch.func.grad(growing)))


@pytest.mark.slow
@with_and_without
def test_lanes_within_lanes_twice_differentiated(loop):
    f = functools.partial(growing, loop=loop)
    expected = each(torch.func.grad(torch.func.grad(growing)))
    forward_over_reverse = lambda v: fh.jvp(fh.grad(f), (v,), (torch.ones((), dtype=F64),))[1]
    same(fh.vmap(fh.vmap(forward_over_reverse))(LANES_OF_LANES), expected)
    same(fh.vmap(fh.vmap(fh.grad(fh.grad(f))))(LANES_OF_LANES), expected)


def only_above_one(x: Tensor, loop: Any = python_loop) -> Tensor:
    """The body divides by zero, or takes the root of a negative number, where the condition does not hold."""
    return loop(lambda v: v > 1, lambda v: torch.sqrt(v - 1) * 0.7 + 0.01 * v, x)


NEVER_OR_DONE = torch.tensor([-2.0, 1.0, 3.0, 40.0, 0.0], dtype=F64)


@with_and_without
def test_lanes_that_never_start_and_lanes_that_are_done(loop):
    f = functools.partial(only_above_one, loop=loop)
    expected = by_lanes(torch.func.grad(only_above_one), NEVER_OR_DONE)
    same(fh.vmap(fh.grad(f))(NEVER_OR_DONE), expected)
    same(fh.grad(lambda x: fh.vmap(f)(x).sum())(NEVER_OR_DONE), expected)


@pytest.mark.slow
@with_and_without
def test_lanes_that_never_start_twice_differentiated(loop):
    f = functools.partial(only_above_one, loop=loop)
    expected = by_lanes(torch.func.grad(torch.func.grad(only_above_one)), NEVER_OR_DONE)
    same(fh.vmap(fh.hessian(f))(NEVER_OR_DONE), expected)
    same(fh.hessian(lambda x: fh.vmap(f)(x).sum())(NEVER_OR_DONE).diagonal(), expected)


@with_and_without
def test_constants_of_a_lane_that_never_started(loop):
    """With this lane's own constant, the inner loop would never end, forwards or run again backwards."""

    def f(x: Tensor, c: Tensor, loop: Any = loop) -> Tensor:
        climb = lambda v: loop(lambda u: u < 1, lambda u: u + c * c, v)
        return loop(lambda s: (s[0] < 2) & (c > 0), lambda s: (s[0] + 1, climb(s[1]) * 0.5), (torch.tensor(0), x))[1]

    x, c = torch.tensor([0.1, 0.3, 0.4], dtype=F64), torch.tensor([0.6, 0.0, 0.9], dtype=F64)
    slopes = torch.func.grad(functools.partial(f, loop=python_loop), argnums=(0, 1))
    rows = [slopes(*lane) for lane in zip(x, c)]
    expected = tuple(torch.stack(column) for column in zip(*rows))
    same(fh.vmap(fh.grad(f, argnums=(0, 1)))(x, c), expected)
    same(fh.grad(lambda x, c: fh.vmap(f)(x, c).sum(), argnums=(0, 1))(x, c), expected)


@with_and_without
def test_jacobians_of_closures(loop):
    """``jacrev`` pulls back under vmap; the weights are closed over, by the condition as well."""

    def f(w: Tensor, x: Tensor, loop: Any = loop) -> Tensor:
        return loop(lambda v: v.sum() < w.abs().sum(), lambda v: v * 1.2 + torch.tanh(w @ v) + 0.3, x)

    arguments = WEIGHT, LANES[0]
    expected = torch.func.jacrev(functools.partial(f, loop=python_loop), argnums=(0, 1))(*arguments)
    same(fh.jacrev(f, argnums=(0, 1))(*arguments), expected)
    same(jitted(fh.jacrev(f, argnums=(0, 1)))(*arguments), expected)
    same(fh.jacfwd(f, argnums=(0, 1))(*arguments), expected)


# ---------------------------------------------------------------------------------------------------------------------
# carries


@with_and_without
def test_a_carry_of_everything(loop):
    """Integers, bools and complex numbers in a tree; a leaf that moves, one that stays, one that becomes active."""

    def f(x: Tensor, w: Tensor, loop: Any = loop) -> Any:
        def body(s: Any) -> Any:
            z = s["z"] * torch.exp(1j * s["v"].sum())
            moved = torch.where(s["flag"], w, s["v"])
            return {
                "n": s["n"] + 1,
                "flag": ~s["flag"],
                "v": s["v"] * 1.3 + moved,
                "z": z,
                "pair": (s["v"], s["pair"][1]),
            }

        init = {"n": torch.tensor(0, dtype=torch.int32), "flag": torch.tensor(True), "v": x}
        init |= {"z": torch.ones((), dtype=torch.complex128), "pair": (torch.zeros(3, dtype=F64), x * 2)}
        out = loop(lambda s: (s["v"] ** 2).sum() < 80, body, init)
        return (
            (out["v"] * out["n"]).sum() + torch.view_as_real(out["z"]).sum() + (out["pair"][0] * out["pair"][1]).sum()
        )

    arguments = LANES[3], LANES[0]
    expected = torch.func.grad(functools.partial(f, loop=python_loop), argnums=(0, 1))(*arguments)
    same(fh.grad(f, argnums=(0, 1))(*arguments), expected)
    same(jitted(fh.grad(f, argnums=(0, 1)))(*arguments), expected)


@with_and_without
@pytest.mark.parametrize("trips", [0, 1, 2])
def test_few_trips(loop, trips):
    f = lambda x, n: loop(lambda s: s[0] < n, lambda s: (s[0] + 1, torch.sin(s[1]) * x), (0, x))[1].sum()
    oracle = lambda x: python_loop(lambda s: s[0] < trips, lambda s: (s[0] + 1, torch.sin(s[1]) * x), (0, x))[1].sum()
    x = LANES[0]
    same(fh.grad(f)(x, torch.tensor(trips)), torch.func.grad(oracle)(x))
    same(fh.hessian(f)(x, torch.tensor(trips)), torch.func.hessian(oracle)(x))


@with_and_without
def test_max_steps(loop):
    for most in (0, 1, 4):
        f = lambda x, loop=loop, most=most: loop(lambda v: v < 50, lambda v: v * v * 0.2 + v, x, max_steps=most)
        slope = torch.func.grad(functools.partial(f, loop=python_loop))
        x = torch.tensor([1.0, 6.0, 70.0], dtype=F64)
        same(fh.vmap(fh.grad(f))(x), by_lanes(slope, x))
        same(jitted(fh.grad(lambda x, f=f: fh.vmap(f)(x).sum()))(x), by_lanes(slope, x))


@with_and_without
def test_modules_and_backward(loop):
    cell, x = nn.Linear(3, 3, dtype=F64), LANES[0]

    def f(loop: Any) -> Tensor:
        out: Tensor = loop(lambda s: s[0] < 6, lambda s: (s[0] + 1, torch.tanh(cell(s[1])) + x), (torch.tensor(0), x))[
            1
        ]
        return out.square().sum()

    f(python_loop).backward()
    expected = [p.grad.clone() for p in cell.parameters()]
    cell.zero_grad()
    f(loop).backward()
    same([p.grad for p in cell.parameters()], expected)

    def of_parameters(parameters: Any) -> Tensor:
        step = lambda s: (s[0] + 1, torch.tanh(torch.func.functional_call(cell, parameters, (s[1],))) + x)
        return loop(lambda s: s[0] < 6, step, (torch.tensor(0), x))[1].square().sum()

    gradients = fh.grad(of_parameters)({k: p.detach() for k, p in cell.named_parameters()})
    same(list(gradients.values()), expected)


def test_integer_results_have_no_gradient():
    x = torch.tensor(2.0, requires_grad=True)
    n, _ = fh.while_loop(lambda s: s[1] < 50, lambda s: (s[0] + 1, s[1] * 2), (0, x), checkpoints=2)
    assert n == 5
    assert not n.requires_grad


def test_buffers_written_in_place():
    """Equinox's tests write ``val.at[step % 8].set(real)`` in a checkpointed loop."""

    def f(x: Tensor, loop: Any) -> Tensor:
        def body(state: Any) -> Any:
            n, z, buffer = state
            z = torch.stack([z[0] * z[1].cos(), z[1] + 0.3 * z[0].sin()])
            buffer = buffer.clone()
            buffer[n % 3] = z[0]
            return n + 1, z, buffer

        return loop(lambda s: s[0] < 8, body, (torch.tensor(0), x, torch.zeros(5, dtype=F64)))[2].square().sum()

    x = torch.tensor([0.7, 0.4], dtype=F64)
    for k in (None, 1, 4):
        loop = functools.partial(fh.while_loop, checkpoints=k)
        same(jitted(fh.grad(lambda x, loop=loop: f(x, loop)))(x), torch.func.grad(lambda x: f(x, python_loop))(x))


def reads_nothing_afterwards(n: Tensor, b: Tensor) -> Tensor:
    return b.index_put((n,), b.sum())


def reads_the_old_value_afterwards(n: Tensor, b: Tensor) -> Tensor:
    new = b.index_put((n,), b.sum())
    return new + b.flip(0)


def holds_a_view(n: Tensor, b: Tensor) -> Tensor:
    view = b[1:]
    new = b.index_put((n,), b.sum())
    return new.index_put((n * 0,), view.sum())


def holds_an_untracked_view(n: Tensor, b: Tensor) -> Tensor:
    with torch.no_grad():
        view = b.detach().reshape(3, 1)
    return b.index_put((n,), b.sum()) * view.sum()


@pytest.mark.parametrize(
    ("write", "in_place"),
    [
        (reads_nothing_afterwards, True),
        (reads_the_old_value_afterwards, False),
        (holds_a_view, False),
        (holds_an_untracked_view, False),
    ],
)
def test_buffers_are_written_in_place_where_nobody_can_tell(write, in_place):
    def f(b: Tensor) -> Tensor:
        return fh.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, write(*s)), (torch.tensor(0), b))[1]

    b = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    got, kept = jitted(f)(b), b.clone()
    for n in range(3):
        kept = write(torch.tensor(n), kept)
    same(got, kept)
    same(b, torch.tensor([1.0, 2.0, 3.0], dtype=F64))
    (node,) = [n for n in jitted(f).lower(b).graph.graph.nodes if n.name == "while_loop"]
    body = getattr(jitted(f).lower(b).graph, str(node.args[0].target)).body
    assert reusing(body, 2).owned == (False, in_place)


# ---------------------------------------------------------------------------------------------------------------------
# what is refused


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (0, fh.ArgumentValueError),
        (-3, fh.ArgumentValueError),
        (2.0, fh.ArgumentTypeError),
        (True, fh.ArgumentTypeError),
    ],
)
def test_checkpoints_is_a_positive_int(value, error):
    with pytest.raises(error, match=r"(?s)while_loop: .*where: checkpoints.*expected: an int >= 1"):
        fh.while_loop(lambda x: x < 3, lambda x: x + 1, torch.ones(()), checkpoints=value)


def test_hooks_on_saved_tensors_do_not_reach_into_captures():
    """Torch's own offloading and checkpointing around a loop: functorch, which derives graphs, refuses hooks."""
    f = lambda x: fh.while_loop(lambda v: v.sum() < 50, lambda v: v * v * 0.3 + v, x, checkpoints=2).sum()
    x = torch.ones(3, dtype=F64, requires_grad=True)
    with torch.autograd.graph.save_on_cpu():
        f(x).backward()
    got = x.grad.clone()
    x.grad = None
    torch.utils.checkpoint.checkpoint(f, x, use_reentrant=False).backward()
    same(x.grad, got)


def test_forward_mode_of_plain_autograd():
    """Torch has one dual level; functorch's jvp, which derives graphs, would open another."""
    f = lambda x: fh.while_loop(lambda v: v.sum() < 50, lambda v: v * v * 0.3 + v, x, checkpoints=2)
    x = torch.ones(3, dtype=F64, requires_grad=True)
    with torch.autograd.forward_ad.dual_level():
        tangent = torch.autograd.forward_ad.unpack_dual(f(torch.autograd.forward_ad.make_dual(x, x.detach()))).tangent
        (second,) = torch.autograd.grad(tangent.sum(), x)
    same((tangent.detach(), second), (fh.grad(lambda x: f(x).sum())(x.detach()), fh.hessian(f)(x.detach()).sum((0, 1))))


# ---------------------------------------------------------------------------------------------------------------------
# asked for elsewhere


@with_and_without
def test_jax_2469_reverse_mode_of_a_bounded_loop(loop):
    f = lambda x: loop(lambda v: v < 100, lambda v: v * 2, x, max_steps=20)
    same(fh.grad(f)(torch.tensor(1.0)), torch.tensor(128.0))


@with_and_without
def test_jax_13062_work_ends_with_the_condition(loop):
    """A bounded loop costs what it runs, not what it might: the bound here is astronomical."""
    f = lambda x: loop(lambda v: v < 100, lambda v: v * v, x, max_steps=1 << 40)
    same(fh.grad(f)(torch.tensor(3.0, dtype=F64)), torch.tensor(8 * 3.0**7, dtype=F64))


@with_and_without
def test_jax_650_jacfwd_through_while(loop):
    f = lambda x, loop=loop: loop(lambda v: v[0] <= 8, lambda v: v * v.flip(0), x)
    x = torch.tensor([1.1, 1.7, 2.0], dtype=F64)
    same(fh.jacfwd(f)(x), torch.func.jacfwd(functools.partial(f, loop=python_loop))(x))


@with_and_without
def test_mujoco_1207_and_3264_gradient_of_an_iterative_solver(loop):
    """A solver that iterates to a tolerance: reverse mode, for a batch whose members converge at different times."""

    def solve(a: Tensor, b: Tensor, loop: Any = loop) -> Tensor:
        def descend(state: Any) -> Any:
            x, _ = state
            residual = b - a @ x
            step = residual.dot(residual) / residual.dot(a @ residual)
            return x + step * residual, residual.norm()

        start = (torch.zeros_like(b), torch.ones((), dtype=F64))
        return loop(lambda s: s[1] > 1e-9, descend, start, max_steps=200)[0]

    generator = torch.Generator().manual_seed(0)
    half = torch.randn(3, 2, 2, generator=generator, dtype=F64)
    a = half @ half.mT + 2 * torch.eye(2, dtype=F64)
    b = torch.randn(3, 2, generator=generator, dtype=F64)
    gradients = fh.grad(lambda a, b: fh.vmap(solve)(a, b).square().sum(), argnums=(0, 1))(a, b)
    exact = torch.func.grad(lambda a, b: torch.linalg.solve(a, b).square().sum(), argnums=(0, 1))(a, b)
    torch.testing.assert_close(gradients, exact, rtol=1e-6, atol=1e-8)


@with_and_without
def test_jax_2947_a_loop_in_a_branch_not_taken_ends(loop):
    def f(x: Tensor) -> Tensor:
        return fh.cond(x > 0, lambda v: loop(lambda s: s < 10, lambda s: s * 2, v), lambda v: v, x)

    x = torch.tensor([1.0, 0.0, -1.0, 3.0], dtype=F64)
    same(fh.vmap(fh.grad(f))(x), torch.tensor([16.0, 1.0, 1.0, 4.0], dtype=F64))


@with_and_without
def test_pytorch_175522_vmap(loop):
    f = lambda x: loop(lambda x: x.sum() < 10, lambda x: x + 1, x)
    x = torch.tensor([[0.0, 1.0], [30.0, 1.0], [4.0, 4.0]], dtype=F64)
    expected = torch.tensor([[5.0, 6.0], [30.0, 1.0], [5.0, 5.0]], dtype=F64)
    same(fh.vmap(f)(x), expected)
    same(fh.grad(lambda x: (fh.vmap(f)(x) ** 2).sum())(x), 2 * expected)


# ---------------------------------------------------------------------------------------------------------------------
# from the suites of JAX (lax_control_flow_test) and equinox (test_while_loop)


@with_and_without
def test_what_is_batched(loop):
    """testWhileLoopCondConstsBatched, testWhileLoopBodyConstsBatched, and a fixed point over both, with slopes."""
    zero, two_three = torch.zeros((), dtype=F64), torch.tensor([2.0, 3.0], dtype=F64)
    until = lambda x, y: loop(lambda v: v < y, lambda v: v + 2, x)
    same(fh.vmap(until, in_dims=(None, 0))(zero, two_three), torch.tensor([2.0, 4.0], dtype=F64))
    by = lambda x, y: loop(lambda v: v < 3, lambda v: v + y, x)
    same(fh.vmap(by, in_dims=(None, 0))(zero, two_three), torch.tensor([4.0, 3.0], dtype=F64))
    same(fh.vmap(fh.grad(by, argnums=1), in_dims=(None, 0))(zero, two_three), torch.tensor([2.0, 1.0], dtype=F64))

    def both(i: Tensor, x: Tensor) -> Tensor:
        return loop(lambda s: s[0] < 5, lambda s: (s[0] + 1, s[1] * x), (i, torch.ones(3, dtype=F64)))[1].sum()

    i, x = torch.arange(4), LANES[:, :3].T
    expected = by_lanes(torch.func.grad(lambda i, x: (x ** (5 - i)).sum(), argnums=1), i, x.T)
    same(fh.vmap(fh.grad(both, argnums=1), in_dims=(0, 1))(i, x), expected)


@with_and_without
def test_tangents_that_grow_on_the_way(loop):
    """testWhileJVPWithGrowingNonzeroTangents, in reverse mode as well."""

    def f(x: Tensor, loop: Any = loop) -> Tensor:
        body = lambda s: (s[0] + 1, s[1] + s[3], s[1] * s[1], s[2] * s[2])
        return loop(lambda s: s[0] < 3, body, (torch.tensor(0), x, LANES[0], LANES[1]))[1].sum()

    oracle = functools.partial(f, loop=python_loop)
    x = LANES[2]
    same(fh.grad(f)(x), torch.func.grad(oracle)(x))
    same(fh.jvp(f, (x,), (x,)), torch.func.jvp(oracle, (x,), (x,)))
    same(fh.hessian(f)(x), torch.func.hessian(oracle)(x))


@with_and_without
def test_linearize(loop):
    """testWhileLinearize."""
    f = lambda x, loop=loop: loop(lambda v: v[0, 2] <= 8, lambda v: v * v, x)
    x = torch.arange(9.0, dtype=F64).reshape(3, 3)
    y, push = fh.linearize(f, x)
    same((y, push(x)), torch.func.jvp(functools.partial(f, loop=python_loop), (x,), (x,)))


@with_and_without
def test_carries_that_are_handed_on(loop):
    """test_while_readonly_carry_optimization, test_while_constification_correctness: permuted and constant leaves."""

    def f(w: Tensor, x: Tensor, n: Tensor, loop: Any = loop) -> Any:
        body = lambda s: (s[0] + 1, s[1] @ s[2], s[2], s[4], s[3] * 0.5 + s[1][0], s[5])
        init = (torch.tensor(0), x, w, x.sum(), x[0], torch.tensor(2.0, dtype=F64))
        out = loop(lambda s: s[0] < n, body, init)
        return out[1].sum() + (out[2] * out[5]).sum() + out[3] - 2 * out[4]

    n = torch.arange(4)
    gradient = fh.vmap(fh.grad(f, argnums=(0, 1)), in_dims=(None, 0, 0))(WEIGHT, LANES, n)
    oracle = torch.func.grad(functools.partial(f, loop=python_loop), argnums=(0, 1))
    rows = [oracle(WEIGHT, x, i) for x, i in zip(LANES, n)]
    same(gradient, tuple(torch.stack(column) for column in zip(*rows)))


@with_and_without
def test_loops_over_the_lower_triangle(loop):
    """testNestedWhileWithDynamicUpdateSlice: the inner trip count is the outer index. Its gradient is the triangle."""

    def f(a: Tensor) -> Tensor:
        def row(state: Any) -> Any:
            i, out = state

            def entry(s: Any) -> Any:
                j, out = s
                out = out.clone()
                out[i, j] = a[i, j] ** 2
                return j + 1, out

            return i + 1, loop(lambda s: s[0] <= i, entry, (torch.zeros_like(i), out))[1]

        return loop(lambda s: s[0] < 3, row, (torch.tensor(0), torch.zeros(3, 3, dtype=F64)))[1]

    same(jitted(f)(WEIGHT), (WEIGHT**2).tril())
    same(jitted(fh.grad(lambda a: f(a).sum()))(WEIGHT), (2 * WEIGHT).tril())


@with_and_without
def test_bounds_that_are_tensors(loop):
    """testForiLoopBatched, test_vmaps_of_while_loop (jax 3164); ``fori_loop`` has no checkpoints of its own."""
    power = lambda x, n: fh.fori_loop(0, n, lambda i, v: v * (x + i), torch.ones((), dtype=F64))
    x, n = torch.tensor([0.5, 1.5, 2.0], dtype=F64), torch.arange(4)
    oracle = lambda x, n: math.prod([x + i for i in range(n)], start=torch.ones((), dtype=F64) + 0 * x)
    table = lambda g: torch.stack([torch.stack([g(a, int(m)) for m in n]) for a in x])
    lanes = lambda g: fh.vmap(fh.vmap(g, in_dims=(None, 0)), in_dims=(0, None))(x, n)
    same(lanes(power), table(oracle))
    same(lanes(fh.grad(power)), table(torch.func.grad(oracle)))


@with_and_without
def test_an_outer_loop_that_continues_where_the_inner_one_stopped(loop):
    """Equinox's test_nested_loops: the shape of an ODE solver that saves at given times, for lanes out of step."""

    def f(v: Tensor, first: Tensor, ts: Tensor, last: Tensor, loop: Any = loop) -> Any:
        def outer(state: Any) -> Any:
            step, (a, saved) = state
            until = torch.floor(ts[step] + 1)

            def inner(s: Any) -> Any:
                step, (a, saved) = s
                a = a * (1 + 0.05 * torch.sin(100 * a + 3))
                saved = saved.clone()
                saved[step] = a
                return step + 1, (a, saved)

            return loop(lambda s: ts[s[0]] < until, inner, (step, (a * (1 + 0.05 * torch.sin(105 * a)), saved)))

        return loop(lambda s: s[0] < last, outer, (first, (v, torch.zeros(12, dtype=F64))))[1][1]

    v, first = torch.tensor([0.3, 0.6], dtype=F64), torch.tensor([0, 3])
    ts = torch.stack([torch.linspace(0, 5, 12, dtype=F64), torch.linspace(0, 3, 12, dtype=F64)])
    last = torch.tensor([10, 8])
    weights = torch.linspace(-1, 2, 12, dtype=F64)
    gradient = lambda loop: lambda *lane: (f(lane[0], *lane[1:], loop=loop) * weights).sum()
    got = fh.vmap(fh.grad(gradient(loop)))(v, first, ts, last)
    same(got, by_lanes(torch.func.grad(gradient(python_loop)), v, first, ts, last))


# ---------------------------------------------------------------------------------------------------------------------
# under Inductor


@pytest.mark.slow
@pytest.mark.parametrize("transform", ["value_and_grad", "vmap(grad)", "grad(vmap)"])
@pytest.mark.parametrize("checkpoints", [None, 2])
def test_compiled_by_inductor(transform, checkpoints):
    def f(x: Tensor, w: Tensor) -> Tensor:
        grow = lambda s: s * 1.3 + 0.1 * torch.tanh(w @ s)
        return fh.while_loop(lambda s: s.square().sum() < 30, grow, x, checkpoints=checkpoints).sum()

    derived = {
        "value_and_grad": fh.value_and_grad(f, argnums=(0, 1)),
        "vmap(grad)": fh.vmap(fh.grad(f), in_dims=(0, None)),
        "grad(vmap)": fh.grad(lambda x, w: fh.vmap(f, in_dims=(0, None))(x, w).sum(), argnums=(0, 1)),
    }[transform]
    w, x = WEIGHT.float(), LANES.float() if "vmap" in transform else LANES[0].float()
    torch.testing.assert_close(fh.jit(derived)(x, w), derived(x, w), rtol=1e-4, atol=1e-5)
