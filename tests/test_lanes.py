"""Which lanes and leaves count, in plain eager, captured and under jit: fixpoints, predicates, NaN in other lanes."""

from __future__ import annotations

import pytest
import torch

import functorch_hops as fh
from modes import every_mode, gradients, plain, same, while_capturing

F64 = torch.float64


# ---------------------------------------------------------------------------------------------------------------------
# fixpoints


@every_mode
def test_a_carry_that_is_reached_after_several_iterations(run):
    """vmap, jvp and grad reach leaf k of the carry only after k iterations; the leaves shift in each."""
    w = torch.tensor([0.5, 1.5], dtype=F64)
    shifted = lambda c: (c[3], c[0] * w[0], c[1] * c[1], c[2] + 1)
    steps = {
        "scan": lambda x: fh.scan(lambda c, _: (shifted(c), None), _init(x), length=6)[0],
        "while": lambda x: fh.while_loop(lambda s: s[0] < 6, lambda s: (s[0] + 1, shifted(s[1])), (0, _init(x)))[1],
    }

    def _init(x):
        one = torch.ones((), dtype=F64)
        return (x, one, one * 2, one * 3)

    def oracle(x):
        c = _init(x)
        for _ in range(6):
            c = (c[3], c[0] * w[0], c[1] * c[1], c[2] + 1)
        return c

    x = torch.tensor([0.3, 0.9], dtype=F64)
    for f in steps.values():
        same(run(fh.vmap(f), x), tuple(torch.stack(column) for column in zip(*map(oracle, x))))
        same(run(fh.jacfwd(f), x[0]), torch.func.jacfwd(oracle)(x[0]))
        same(run(fh.jacrev(f), x[0]), torch.func.jacrev(oracle)(x[0]))
        same(
            gradients(run, lambda x: f(x)[2] * f(x)[0], x[0]),
            gradients(plain, lambda x: oracle(x)[2] * oracle(x)[0], x[0]),
        )


@every_mode
def test_a_weight_that_enters_late(run):
    """The carry is not batched, nor active, until a closed-over weight reaches it in the second iteration."""

    def f(w):
        def step(c, _):
            a, b = c
            return (b, a + w * b.sum()), a

        z = torch.ones(2, dtype=F64)
        return fh.scan(step, (z, z * 0), length=3)

    def oracle(w):
        a, b, ys = torch.ones(2, dtype=F64), torch.zeros(2, dtype=F64), []
        for _ in range(3):
            ys.append(a)
            a, b = b, a + w * b.sum()
        return (a, b), torch.stack(ys)

    w = torch.tensor([0.5, 2.0], dtype=F64)
    expected = [oracle(v) for v in w]
    got = run(fh.vmap(f), w)
    same(got[1], torch.stack([e[1] for e in expected]))
    same(got[0][1], torch.stack([e[0][1] for e in expected]))
    same(run(fh.jacrev(f), w[0]), torch.func.jacrev(oracle)(w[0]))
    same(run(fh.jacfwd(f), w[0]), torch.func.jacfwd(oracle)(w[0]))


# ---------------------------------------------------------------------------------------------------------------------
# predicates


@every_mode
@pytest.mark.parametrize(
    "pred",
    [
        torch.tensor(2.5),
        torch.tensor([[1]]),
        torch.tensor([-1], dtype=torch.int8),
        torch.tensor(1j),
        True,
        3,
        0.1,
    ],
    ids=str,
)
def test_predicates_of_any_kind(run, pred):
    for value, expected in [(pred, 2.0), (pred * 0, -2.0)]:
        x = torch.tensor(2.0)
        f = lambda v: fh.cond(value, lambda v: v * 1, lambda v: v * -1, v)
        same(run(f, x), torch.tensor(expected))


@while_capturing
def test_a_python_predicate_is_static(run):
    """Only the branch that it takes is captured."""

    def refuse(v):
        raise AssertionError("the other branch must not run")

    same(run(lambda x: fh.cond(True, torch.neg, refuse, x), torch.ones(2)), -torch.ones(2))
    same(run(lambda x: fh.cond(0, refuse, torch.neg, x), torch.ones(2)), -torch.ones(2))
    same(run(lambda x: fh.switch(1, [refuse, torch.neg, refuse], x), torch.ones(2)), -torch.ones(2))


@every_mode
def test_switch_clamps(run):
    branches = [lambda v: v, lambda v: v * 2, lambda v: v * 3]
    for index, factor in [(-5, 1), (0, 1), (1, 2), (2, 3), (9, 3)]:
        for i in (index, torch.tensor(index), torch.tensor([index], dtype=torch.int32)):
            same(run(lambda x: fh.switch(i, branches, x), torch.ones(2)), torch.ones(2) * factor)


@every_mode
def test_branches_that_disagree_about_gradients(run):
    """pytorch/pytorch 141259: one branch returns a constant, or only part depends on a weight."""
    w = torch.tensor(3.0)

    def f(x, w):
        return fh.cond(x > 0, lambda v: (v * 0).detach() + 5.0, lambda v: v * w, x)

    same(gradients(run, f, torch.tensor(-2.0), w), (torch.tensor(3.0), torch.tensor(-2.0)))
    x, w = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    out = run(f, x, w)
    if out.requires_grad:
        same(torch.autograd.grad(out, (x, w), materialize_grads=True), (torch.tensor(0.0), torch.tensor(0.0)))


# ---------------------------------------------------------------------------------------------------------------------
# lanes and NaN


def _by_lanes(f, x):
    return torch.stack([f(v) for v in x])


NAN_BRANCHES = {
    "sqrt": (lambda v: v > 0, torch.sqrt, lambda v: v * 2, [4.0, 0.0, 9.0]),
    "log": (lambda v: v > 0, torch.log, lambda v: v * v, [2.0, -1.0, 0.0]),
    "division": (lambda v: v != 0, lambda v: torch.sin(v) / v, lambda v: 1 - v**2 / 6, [0.5, 0.0, 2.0]),
    "no lane": (lambda v: v > 100, torch.log, lambda v: v**3, [-2.0, 0.0, -1.0]),
    "all lanes": (lambda v: v > -100, lambda v: v**3, torch.log, [-2.0, 0.0, -1.0]),
    "power": (lambda v: v > 0, lambda v: v**0.5 * v.log(), lambda v: v * 0.5, [3.0, -2.0, 0.0]),
}


@every_mode
@pytest.mark.parametrize("case", NAN_BRANCHES)
def test_the_branch_not_taken_poisons_nothing(run, case):
    """jax-ml/jax 5658: value, tangent and gradient of each lane, to second order."""
    pred, yes, no, lanes = NAN_BRANCHES[case]
    x = torch.tensor(lanes, dtype=F64)
    f = lambda v: fh.cond(pred(v), yes, no, v)
    oracle = lambda v: yes(v) if pred(v) else no(v)
    same(run(fh.vmap(f), x), _by_lanes(oracle, x))
    for transform in (
        fh.grad,
        fh.jacfwd,
        lambda g: fh.grad(fh.grad(g)),
        lambda g: fh.jacfwd(fh.grad(g)),
        fh.hessian,
    ):
        order = 1 if transform in (fh.grad, fh.jacfwd) else 2
        slope = torch.func.grad(oracle) if order == 1 else torch.func.grad(torch.func.grad(oracle))
        same(run(fh.vmap(transform(f)), x), _by_lanes(slope, x))
    whole = lambda x: fh.vmap(f)(x).sum()
    same(run(fh.grad(whole), x), _by_lanes(torch.func.grad(oracle), x))
    same(run(fh.hessian(whole), x), torch.diag(_by_lanes(torch.func.grad(torch.func.grad(oracle)), x)))
    same(gradients(run, lambda x: fh.vmap(f)(x), x)[0], _by_lanes(torch.func.grad(oracle), x))


@every_mode
def test_closed_over_tensors_are_not_poisoned(run):
    """The gradient of a closed-over weight, batched and not, is that of the lanes that took its branch."""
    x = torch.tensor([4.0, 0.0, -3.0], dtype=F64)
    u = torch.tensor([2.0, 0.0, -5.0], dtype=F64)
    w = torch.tensor(0.5, dtype=F64)

    def f(x, u, w):
        return fh.cond(x > 0, lambda: torch.sqrt(x) * torch.log(u) * torch.sqrt(w * u), lambda: x * u * w)

    def oracle(x, u, w):
        return torch.sqrt(x) * torch.log(u) * torch.sqrt(w * u) if x > 0 else x * u * w

    whole = lambda x, u, w: fh.vmap(f, in_dims=(0, 0, None))(x, u, w).sum()
    total = lambda x, u, w: sum(oracle(a, b, w) for a, b in zip(x, u))
    same(run(fh.grad(whole, argnums=(0, 1, 2)), x, u, w), torch.func.grad(total, argnums=(0, 1, 2))(x, u, w))
    same(gradients(run, whole, x, u, w), torch.func.grad(total, argnums=(0, 1, 2))(x, u, w))
    second = lambda g: lambda x, u, w: torch.stack([s.sum() for s in g(x, u, w)]).sum()
    slopes = fh.grad(second(fh.grad(whole, argnums=(0, 1, 2))), argnums=(0, 1, 2))
    expected = torch.func.grad(second(torch.func.grad(total, argnums=(0, 1, 2))), argnums=(0, 1, 2))
    same(run(slopes, x, u, w), expected(x, u, w))


@every_mode
def test_branches_under_vmap_of_vmap(run):
    """The inner predicate depends on both lanes, the outer one on one; each untaken branch has a NaN gradient."""

    def f(a, b):
        inner = lambda v: fh.cond(v + b > 0, lambda s: torch.sqrt(s + b), lambda s: s * b, v)
        return fh.cond(a > 0, lambda v: inner(v) * torch.log(v), lambda v: torch.exp(v) * b, a)

    def oracle(a, b):
        if a > 0:
            return (torch.sqrt(a + b) if a + b > 0 else a * b) * torch.log(a)
        return torch.exp(a) * b

    a, b = torch.tensor([0.0, 2.0, -1.0], dtype=F64), torch.tensor([-2.0, 0.0, 1.0, -5.0], dtype=F64)
    both = lambda f: fh.vmap(fh.vmap(f, in_dims=(None, 0)), in_dims=(0, None))
    rows = lambda f: torch.stack([torch.stack([f(x, y) for y in b]) for x in a])
    same(run(both(f), a, b), rows(oracle))
    same(run(both(fh.grad(f)), a, b), rows(torch.func.grad(oracle)))
    same(run(both(fh.grad(f, argnums=1)), a, b), rows(torch.func.grad(oracle, argnums=1)))


def _newton(x):
    """The square root of x by Newton's rule; x = 0 finishes at once, and would divide by zero afterwards."""

    def body(state):
        y, _ = state
        new = y - (y * y - x) / (2 * y)
        return new, (new - y).abs()

    init = (x, x.abs())
    return fh.while_loop(lambda s: s[1] > 1e-6, body, init)[0]


def _newton_oracle(x):
    y, change = x, x.abs()
    while change > 1e-6:
        new = y - (y * y - x) / (2 * y)
        y, change = new, (new - y).abs()
    return y


@every_mode
def test_finished_lanes_poison_nothing(run):
    x = torch.tensor([0.0, 2.0, 1e-3, 400.0], dtype=F64)
    same(run(fh.vmap(_newton), x), _by_lanes(_newton_oracle, x))
    slope = torch.func.grad(_newton_oracle)
    same(run(fh.vmap(fh.grad(_newton)), x), _by_lanes(slope, x))
    same(run(fh.vmap(fh.jacfwd(_newton)), x), _by_lanes(slope, x))
    same(run(fh.grad(lambda x: fh.vmap(_newton)(x).sum()), x), _by_lanes(slope, x))
    curvature = torch.func.grad(slope)
    same(run(fh.vmap(fh.grad(fh.grad(_newton))), x), _by_lanes(curvature, x))
    same(run(fh.vmap(fh.hessian(_newton)), x), _by_lanes(curvature, x))


@every_mode
def test_lanes_of_lanes_end_by_themselves(run):
    """A row has finished before its neighbour does, and in it some lanes before others; rates belong to rows alone."""

    def f(x, rate):
        body = lambda s: (s[0] - rate * (s[0] - x / s[0]), (s[0] * s[0] - x).abs())
        return fh.while_loop(lambda s: s[1] > 1e-6, body, (x, x.abs()))[0]

    def oracle(x, rate):
        y, error = x, x.abs()
        while error > 1e-6:
            y, error = y - rate * (y - x / y), (y * y - x).abs()
        return y

    x, rate = torch.tensor([[0.0, 0.0, 0.0], [0.0, 2.0, 1e-3]], dtype=F64), torch.tensor([0.5, 0.4], dtype=F64)
    lanes = lambda f: fh.vmap(fh.vmap(f, in_dims=(0, None)))
    rows = lambda f: torch.stack([torch.stack([f(v, r) for v in row]) for row, r in zip(x, rate)])
    total = lambda f: lambda x, rate: f(x, rate).sum()
    slope, curvature = torch.func.grad(oracle), torch.func.hessian(oracle)
    same(run(lanes(f), x, rate), rows(oracle))
    same(run(lanes(fh.grad(f)), x, rate), rows(slope))
    same(run(fh.grad(total(lanes(f))), x, rate), rows(slope))
    same(run(fh.grad(total(lanes(f)), argnums=1), x, rate), rows(torch.func.grad(oracle, argnums=1)).sum(1))
    same(run(lanes(fh.jacfwd(f)), x, rate), rows(slope))
    same(run(lanes(fh.hessian(f)), x, rate), rows(curvature))
    same(run(fh.grad(total(fh.grad(total(lanes(f))))), x, rate), rows(curvature))
    deep = fh.vmap(lanes(f), in_dims=(0, None))
    same(run(deep, torch.stack([x, x.flip(1)]), rate), torch.stack([rows(oracle), rows(oracle).flip(1)]))


@every_mode
def test_a_loop_with_a_mask_of_its_own(run):
    """Its lanes end when no element of their first carry is true; a mask that is any number grows again."""
    f = lambda n, x: fh.while_loop(
        lambda s: s[0].any(), lambda s: (s[0].roll(1) - s[0].sign(), s[1] * 2 - s[0]), (n, x)
    )

    def oracle(n, x):
        steps = 0
        while n.any():
            n, x, steps = n.roll(1) - n.sign(), x * 2 - n, steps + 1
            assert steps < 50
        return n, x

    n, x = torch.tensor([[0, 0], [1, 1], [3, 3]]), torch.ones(3, 2, dtype=F64)
    expected = [oracle(*lane) for lane in zip(n, x)]
    same(run(fh.vmap(f), n, x), tuple(map(torch.stack, zip(*expected))))
    same(run(fh.vmap(fh.vmap(f)), n[None], x[None]), tuple(torch.stack(column)[None] for column in zip(*expected)))


@every_mode
def test_finished_lanes_stop_growing(run):
    """A lane that went on would overflow to inf, and inf * 0 is NaN in the gradient."""

    def f(x, n):
        return fh.while_loop(lambda s: s[0] < n, lambda s: (s[0] + 1, s[1] ** 3), (0, x))[1]

    x, n = torch.tensor([3.0, 1.01], dtype=F64), torch.tensor([2, 9])
    power = 3.0**n
    same(run(fh.vmap(f), x, n), x**power)
    same(run(fh.vmap(fh.grad(f)), x, n), power * x ** (power - 1))
    same(run(fh.grad(lambda x: fh.vmap(f)(x, n).sum()), x), power * x ** (power - 1))


@every_mode
def test_a_loop_in_a_branch_ends(run):
    """jax-ml/jax 2947: for lanes that do not take the branch the loop would never end."""

    def f(x):
        loop = lambda v: fh.while_loop(lambda s: s < 10, lambda s: s * 2, v)
        return fh.cond(x > 0, loop, lambda v: v, x)

    x = torch.tensor([1.0, 0.0, -1.0, 3.0], dtype=F64)
    same(run(fh.vmap(f), x), torch.tensor([16.0, 0.0, -1.0, 12.0], dtype=F64))
    same(run(fh.vmap(fh.grad(f)), x), torch.tensor([16.0, 1.0, 1.0, 4.0], dtype=F64))
    same(run(fh.grad(lambda x: fh.vmap(f)(x).sum()), x), torch.tensor([16.0, 1.0, 1.0, 4.0], dtype=F64))
    same(run(fh.vmap(f), x[1:3]), x[1:3])


@every_mode
def test_a_loop_in_a_loop_ends(run):
    """The inner loop would never end for a lane whose outer loop has finished."""

    def f(x):
        def body(s):
            n, v = s
            return n - 1, fh.while_loop(lambda u: u < 10 * n, lambda u: u + u * u, v) * 0.5

        return fh.while_loop(lambda s: s[0] > 0, body, ((x > 0).long() * 2, x))[1]

    def oracle(x):
        n = 2 if x > 0 else 0
        while n > 0:
            while x < 10 * n:
                x = x + x * x
            n, x = n - 1, x * 0.5
        return x

    x = torch.tensor([0.5, 0.0, -1.0, 2.0], dtype=F64)
    same(run(fh.vmap(f), x), _by_lanes(oracle, x))
    same(run(fh.vmap(fh.grad(f)), x), _by_lanes(torch.func.grad(oracle), x))


@every_mode
def test_backward_of_a_finished_lane_borrows_constants_too(run):
    """With its own constants and the rows of another lane its inner loop would not end."""

    def f(x, k, n):
        inner = lambda v: fh.while_loop(lambda u: u < 10, lambda u: u * k, v)
        return fh.while_loop(lambda s: s[0] > 0, lambda s: (s[0] - 1, inner(s[1]) * 0.3), (n, x))[1]

    x, k, n = torch.full((2,), 1.5, dtype=F64), torch.tensor([2.0, 1.0], dtype=F64), torch.tensor([2, 0])
    same(run(fh.vmap(fh.grad(f)), x, k, n), torch.tensor([2.88, 1.0], dtype=F64))


# ---------------------------------------------------------------------------------------------------------------------
# what is batched, and what is cached


def test_conditions_are_not_confused():
    """Rules are cached on the body; a condition that died must not stand in for a new one at its address."""
    body = lambda v: v + 1
    x = torch.tensor([1.0, 2.0, 3.0])
    keeps_the_body_alive = fh.jit(lambda v: fh.while_loop(lambda s: s < 100.0, body, v), backend="eager")
    same(fh.vmap(keeps_the_body_alive)(x), torch.full((3,), 100.0))
    for k in range(120):
        limit = 4.0 + k % 17
        got = fh.vmap(lambda v: fh.while_loop(lambda s: s < limit, body, v))(x)
        same(got, torch.full((3,), limit))


@every_mode
def test_counters_of_nested_loops_stay_unbatched(run):
    """What no lane reaches is the same for all: it may leave vmap with None in out_dims, or be a trip count."""

    def f(x):
        def outer(state):
            i, s = state
            j, s = fh.while_loop(lambda d: d[0] < 3, lambda d: (d[0] + 1, d[1] * 1.5), (torch.tensor(0), s))
            (k, s), count = fh.scan(lambda c, _: ((c[0] + 1, c[1] * x), c[0]), (j, s), None, 2)
            return fh.cond(i < 3, lambda i, s: (i + count.sum() - k, s), lambda i, s: (i + 1, s * x), i, s)

        return fh.while_loop(lambda c: c[0] < 9, outer, (torch.tensor(0), x))

    x = torch.tensor([0.9, 1.1], dtype=F64)
    count, value = run(fh.vmap(f, out_dims=(None, 0)), x)
    same(count, f(x[0])[0])
    same(value, torch.stack([f(v)[1] for v in x]))


def test_a_pull_function_outlives_its_transform():
    """What it saved is wrapped at a level that is gone, and must not ask for gradients there."""
    x = torch.tensor([0.3, 0.8], dtype=F64)
    f = lambda x: fh.scan(lambda c, _: (c * x.sin(), None), x, None, 3)[0]
    with fh.eager_capture():
        out, pull = fh.vjp(f, x)
        (gradient,) = pull(torch.ones(2, dtype=F64))
    same(gradient, torch.func.vjp(lambda x: x * x.sin() ** 3, x)[1](torch.ones(2, dtype=F64))[0])
    assert not out.requires_grad
    assert not gradient.requires_grad
