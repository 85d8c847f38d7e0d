"""``fh.debug``: what happens in plain Python happens in captured and compiled code, once, in order, in these lanes."""

from __future__ import annotations

import math

import pytest
import torch

import functorch_hops as fh
from modes import compiled, every_mode, every_way, same, while_capturing

XS = torch.tensor([1.0, 2.0, 3.0])


class Log:
    """What was seen, in order."""

    def __init__(self) -> None:
        self.entries: list[object] = []

    def __call__(self, *values) -> None:
        self.entries.append(tuple(v.item() if isinstance(v, torch.Tensor) else v for v in values))

    def taken(self) -> list[object]:
        entries, self.entries = self.entries, []
        return entries


log = Log()


@pytest.fixture(autouse=True)
def _nothing_is_left() -> None:
    log.taken()


def step(c, x):
    fh.debug.callback(log, c, x)
    return c * x, c


def scanned(xs):
    return fh.scan(step, torch.tensor(1.0), xs)[0]


STEPS = [(1.0, 1.0), (1.0, 2.0), (2.0, 3.0)]


LOOPS = {
    "scan": scanned,
    "unrolled": lambda xs: fh.scan(step, torch.tensor(1.0), xs, unroll=2)[0],
    "remat": lambda xs: fh.scan(step, 1.0, xs, remat="step")[0],
    "fori_loop": lambda xs: fh.fori_loop(0, 3, lambda i, c: step(c, xs[i])[0], torch.tensor(1.0)),
    "while_loop": lambda xs: fh.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, step(s[1], xs[s[0]])[0]), (0, 1.0))[
        1
    ],
    "checkpoint": fh.checkpoint(scanned),
}
TRANSFORMS = {
    "value": lambda f: f,
    "grad": fh.grad,
    "jvp": lambda f: lambda xs: fh.jvp(f, (xs,), (xs,)),
    "grad of grad": lambda f: fh.grad(lambda xs: fh.grad(f)(xs).square().sum()),
}


@every_mode
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("loop", LOOPS)
def test_each_step_happens_once_and_in_order(run, loop, transform) -> None:
    change = TRANSFORMS[transform]
    same(run(change(LOOPS[loop]), XS), change(torch.prod)(XS))
    assert log.taken() == STEPS


@pytest.mark.parametrize("loop", LOOPS)
def test_each_step_happens_once_and_in_order_for_a_backend(loop) -> None:
    same(compiled(fh.value_and_grad(LOOPS[loop]), XS), fh.value_and_grad(torch.prod)(XS))
    # A scan of torch's 2.11 that is interpreted runs its first step once more, for the shapes.
    again = torch.__version__ < (2, 12) and loop != "while_loop"
    assert log.taken() == STEPS[:again] + STEPS


@every_way
def test_a_backward_pass_repeats_nothing(run) -> None:
    for f in (scanned, fh.checkpoint(scanned), lambda xs: fh.scan(step, 1.0, xs, remat="sqrt")[0]):
        xs = XS.clone().requires_grad_()
        run(f, xs).backward()
        same(xs.grad, torch.tensor([6.0, 3.0, 2.0]))
        assert log.taken() == STEPS


@while_capturing
def test_a_checkpointed_while_loop_repeats_nothing(run) -> None:
    def f(x):
        def body(s):
            fh.debug.callback(log, s[1])
            return s[0].sin(), s[1] + 1

        return fh.while_loop(lambda s: s[1] < 5, body, (x, 0), checkpoints=2)[0]

    run(fh.grad(f), torch.tensor(1.0))
    assert log.taken() == [(i,) for i in range(5)]


def collatz(n):
    def body(state):
        n, count = state
        fh.debug.callback(log, "step", n)

        def even(n):
            fh.debug.callback(log, "even", n)
            return n // 2

        return fh.cond(n % 2 == 0, even, lambda n: 3 * n + 1, n), count + 1

    def running(state):
        fh.debug.callback(log, "test", state[0])
        return state[0] != 1

    return fh.while_loop(running, body, (n, 0))[1]


def by_lane(entries, lanes):
    """The entries of each lane, told apart by the numbers that it goes through."""
    return [[e for e in entries if e[1] in numbers] for numbers in lanes]


@every_way
def test_lanes_that_take_a_step_and_a_branch(run) -> None:
    alone = []
    for n in (4, 3):
        collatz(torch.tensor(n))
        alone.append(log.taken())
    same(run(fh.vmap(collatz), torch.tensor([4, 3])), torch.tensor([2, 7]))
    entries = log.taken()
    assert sorted(entries) == sorted(alone[0] + alone[1])
    own = {10, 5, 16, 8, 3}
    assert by_lane(entries, [own]) == by_lane(alone[1], [own])
    # In the first step, lane by lane; the second branch is taken by one of them.
    assert [e for e in entries if e[0] != "test"][:3] == [("step", 4), ("step", 3), ("even", 4)]


@every_way
def test_nested_lanes_and_what_does_not_differ(run) -> None:
    def f(x, y):
        inner = lambda y: (fh.debug.callback(log, "both", x, y), x * y)[1]
        result = fh.cond(x > 0, lambda: fh.vmap(inner)(y), lambda: y)
        fh.debug.callback(log, "none")
        return result

    got = run(fh.vmap(f, in_dims=(0, None)), torch.tensor([1.0, -1.0, 2.0]), torch.tensor([3.0, 4.0]))
    same(got, torch.tensor([[3.0, 4.0], [3.0, 4.0], [6.0, 8.0]]))
    both = [("both", x, y) for x in (1.0, 2.0) for y in (3.0, 4.0)]
    assert log.taken() == [*both, ("none",), ("none",), ("none",)]


def test_any_number_of_lanes_by_one_trace() -> None:
    def f(x):
        fh.debug.callback(log, "no operands")
        halve = lambda v: (fh.debug.callback(log, v), v / 2)[1]
        return fh.while_loop(lambda v: v > 1, halve, x)

    run = fh.jit(fh.vmap(f), backend="eager", dynamic=True)
    for xs in ([3.0, 1.0], [2.0, 1.0, 8.0, 4.0], [1.0, 1.0, 6.0]):
        same(run(torch.tensor(xs)), torch.tensor([x / 2 ** max(math.ceil(math.log2(x)), 0) for x in xs]))
        steps = [sorted(x / 2**k for x in xs if x / 2**k > 1) for k in range(3)]
        entries = log.taken()
        assert entries[: len(xs)] == [("no operands",)] * len(xs)
        assert sorted(entries[len(xs) :]) == sorted((v,) for values in steps for v in values)
    assert run.cache_info().misses == 1


@every_way
def test_a_loop_that_all_lanes_share_happens_in_each(run) -> None:
    run(fh.vmap(lambda x: x * scanned(XS)), torch.ones(2))
    assert log.taken() == [entry for entry in STEPS for _ in range(2)]


@every_way
def test_printed_with_step_and_lane(run, capsys: pytest.CaptureFixture[str]) -> None:
    def f(xs):
        def outer(c, x):
            inner = lambda i, v: (
                fh.debug.print("{iteration} {lane}: {:.1f} {tree[a]} {name}", v, tree={"a": x}, name="x"),
                v + x,
            )[1]
            return fh.fori_loop(0, 2, inner, c), None

        return fh.scan(outer, 0.0, xs)[0]

    run(f, torch.tensor([0.5, 1.0]))
    assert capsys.readouterr().out.splitlines() == [
        "(0, 0) None: 0.0 0.5 x",
        "(0, 1) None: 0.5 0.5 x",
        "(1, 0) None: 1.0 1.0 x",
        "(1, 1) None: 2.0 1.0 x",
    ]
    run(fh.vmap(f), torch.ones(2, 1))
    assert capsys.readouterr().out.splitlines() == [f"(0, {i}) {lane}: {i}.0 1.0 x" for i in (0, 1) for lane in (0, 1)]


@every_way
def test_a_check_that_fails_says_where(run) -> None:
    def f(xs):
        def body(c, x):
            fh.debug.check(x < 3, "{} is too large in step {iteration}", x)  # HERE
            return c + x, None

        return fh.scan(body, 0.0, xs)[0]

    same(run(f, XS - 1), torch.tensor(3.0))
    for g, lane, args in ((f, None, XS), (fh.grad(f), None, XS), (fh.vmap(f), 1, torch.stack([XS - 1, XS]))):
        with pytest.raises(fh.CheckError, match=r"^3\.0 is too large in step 2\n  iteration: 2") as caught:
            run(g, args)
        assert (caught.value.iteration, caught.value.lane) == (2, lane)
        assert f"at {__file__}:" in str(caught.value) and "# HERE" in str(caught.value)
        assert isinstance(caught.value, AssertionError)
    same(run(f, XS - 1), torch.tensor(3.0))


@every_way
def test_an_exception_of_a_callback_arrives(run) -> None:
    def fails(c):
        if c == 2:
            raise KeyError("two")

    f = lambda xs: fh.scan(lambda c, x: (fh.debug.callback(fails, c), (c + x, None))[1], 0.0, xs)[0]
    with pytest.raises(KeyError, match="two"):
        run(f, torch.ones(4))
    same(run(f, torch.ones(2)), torch.tensor(2.0))


@every_way
def test_a_callback_may_run_the_same_loop(run, capsys: pytest.CaptureFixture[str]) -> None:
    inner = fh.jit(lambda xs: fh.map(lambda x: (fh.debug.print("in {iteration}"), x)[1], xs), backend="eager")

    def f(xs):
        def body(c, x):
            fh.debug.callback(lambda: inner(torch.ones(2)))
            fh.debug.print("out {iteration}")
            return c + x, None

        return fh.scan(body, 0.0, xs)[0]

    run(f, torch.ones(2))
    assert capsys.readouterr().out.split() == ["in", "0", "in", "1", "out", "0", "in", "0", "in", "1", "out", "1"]


@every_way
def test_values_are_copies_without_gradients(run) -> None:
    kept = []

    def f(x):
        y = x * 2
        fh.debug.callback(kept.append, {"y": y, "n": 3}["y"])
        return y.sin().sum()

    x = torch.ones(2, requires_grad=True)
    run(f, x).backward()
    (y,) = kept
    same(y, torch.full((2,), 2.0))
    assert not y.requires_grad and x.grad is not None


@every_way
def test_a_breakpoint_stops_with_the_values(run, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    stops = []
    monkeypatch.setattr(sys, "breakpointhook", lambda: stops.append(dict(sys._getframe(1).f_locals)))
    run(lambda xs: fh.map(lambda x: (fh.debug.breakpoint(x, twice=x * 2), x)[1], xs), XS)
    assert [(s["args"][0].item(), s["kwargs"]["twice"].item(), s["iteration"]) for s in stops] == [
        (1.0, 2.0, 0),
        (2.0, 4.0, 1),
        (3.0, 6.0, 2),
    ]


@while_capturing
def test_values_and_gradients_are_the_same_bits(run) -> None:
    def loss(watch, xs):
        def body(c, x):
            if watch:
                fh.debug.callback(log, c)
                fh.debug.check(c < 1e9, "too large")
            return (c * x).tanh() + x.exp(), c.sin()

        c, ys = fh.scan(body, xs[0], xs)
        return c + ys.sum()

    xs = torch.randn(7)
    for f in (lambda w: lambda xs: loss(w, xs), lambda w: fh.grad(lambda xs: loss(w, xs))):
        assert torch.equal(run(f(True), xs), run(f(False), xs))


def test_numbers_that_are_traced_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    f = fh.jit(lambda x, scale: (fh.debug.print("{} {}", scale, x.shape[0]), x * scale)[1], backend="eager")
    f(XS, 0.5)
    f(XS, 0.25)
    assert f.cache_info().misses == 1
    assert capsys.readouterr().out == "0.5 3\n0.25 3\n"


def test_explain_says_what_a_kernel_waits_for() -> None:
    (loop,) = fh.explain(scanned)(XS).loops
    assert loop.lowering == "steps" and "all its lanes" in str(loop.reason)


def test_an_exported_program_has_no_effects() -> None:
    with pytest.raises(fh.CaptureError, match="can't print"):
        fh.export(scanned, (XS,))


@pytest.mark.slow
@pytest.mark.parametrize("around", [lambda f: f, fh.grad, fh.vmap], ids=["value", "grad", "vmap"])
def test_in_order_under_inductor(around) -> None:
    def f(xs):
        fh.debug.callback(log, "begin", xs.sum())
        total = scanned(xs)
        fh.debug.callback(log, "end", total)
        return total

    argument = torch.stack([XS, XS + 1]) if around is fh.vmap else XS
    same(fh.jit(around(f))(argument), around(f)(argument))
    entries = log.taken()
    n = len(entries) // 2
    assert entries[:n] == entries[n:] and n >= 5


@pytest.mark.slow
def test_lanes_under_inductor() -> None:
    numbers = torch.tensor([4, 3, 1])
    same(fh.jit(fh.vmap(collatz))(numbers), fh.vmap(collatz)(numbers))
    entries = log.taken()
    assert entries[: len(entries) // 2] == entries[len(entries) // 2 :]
