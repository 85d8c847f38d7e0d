"""Effects in the kernels of loops: what is printed, checked and called back, in the order of Python's loop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import functorch_hops as fh
from modes import same

XS = torch.tensor([1.0, 2.0, 3.0])


class Log:
    """What happened, in order."""

    def __init__(self) -> None:
        self.entries: list[object] = []

    def __call__(self, *values: Any) -> None:
        self.entries.append(tuple(v.tolist() if isinstance(v, Tensor) else v for v in values))

    def taken(self) -> list[object]:
        entries, self.entries = self.entries, []
        return entries


log = Log()


def step(c, x):
    """Of numbers that are exact in float32, whatever computes them."""
    fh.debug.callback(log, "step", c, x)
    fh.debug.print("{iteration} {lane} {c:.3f}", c=c)
    return (c * x) * 0.25 + 1, c


def nested(xs):
    """Loops in a loop, one of them of no carry, effects before, between and behind them, of several dtypes."""

    def outer(c, x):
        fh.debug.print("outer {iteration} {x:.1f}", x=x)
        c, ys = fh.scan(step, c, xs * x)
        fh.debug.callback(log, "rows", ys, x > 1, ys.half())
        fh.scan(lambda none, y: (fh.debug.print("  {iteration} {y:.2f}", y=y), (None, None))[1], None, ys)
        fh.debug.print("end of outer {iteration}")
        return c, ys.sum()

    fh.debug.print("begin {}", xs.sum())
    out = fh.scan(outer, torch.tensor(0.5), xs)
    fh.debug.print("end {}", out[0])
    return out


def collatz(n):
    """Whose lanes take branches and numbers of steps of their own."""

    def body(state):
        n, count = state

        def even(n):
            fh.debug.print("even {iteration} {lane} {n}", n=n)
            fh.debug.check(n % 2 == 0, "not even")
            return n // 2

        def odd(n):
            fh.debug.check(n % 2 == 1, "not odd")
            return 3 * n + 1

        return fh.cond(n % 2 == 0, even, odd, n), count + 1

    def running(state):
        fh.debug.callback(log, "test", state[0])
        return state[0] != 1

    return fh.while_loop(running, body, (n, 0))[1]


def in_pieces(xs):
    """One loop of the user's that is several."""
    unrolled = fh.scan(step, torch.tensor(1.0), torch.cat([xs, xs[:2]]), unroll=2)[0]
    again = fh.scan(step, torch.tensor(0.5), torch.cat([xs, xs[:2]]), remat=2)[0]
    return unrolled + again + fh.fori_loop(2, 5, lambda i, c: step(c, i * 0.5)[0], torch.tensor(1.0))


def unread(xs):
    fh.scan(step, torch.tensor(1.0), xs)
    fh.fori_loop(0, 2, lambda i, c: (fh.debug.print("{i} of 2", i=i), c)[1], 0)
    return xs.sum()


def twice(xs):
    """Equal loops with equal operands happen as often as they stand there."""
    return sum(fh.scan(step, torch.tensor(1.0), xs)[0] for _ in range(2))


def of_complex_numbers(xs):
    def body(z, x):
        fh.debug.print("{iteration} {lane}: {}, {}, {}", x, z, z.abs() > 1)
        fh.debug.callback(log, z, x)
        fh.debug.check(z == z, "{}", z)
        return z * 0.5j + x, z.conj()

    return fh.scan(body, torch.tensor(1 + 2j), xs)


PROGRAMS: dict[str, tuple[Callable[..., Any], Tensor]] = {
    "nested": (nested, XS),
    "lanes": (fh.vmap(collatz), torch.tensor([4, 3, 1])),
    "in pieces": (in_pieces, XS),
    "gradient": (fh.value_and_grad(in_pieces), XS),
    "unread": (unread, XS),
    "twice": (twice, XS),
    "complex numbers": (of_complex_numbers, XS),
    "complex numbers in lanes": (fh.vmap(of_complex_numbers), torch.stack([XS, XS + 1])),
    "a vmap over loops in a loop": (fh.vmap(lambda xs: nested(xs)[0]), torch.stack([XS, XS + 1])),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_what_happens_in_a_kernel_is_what_happens_in_python(name, capsys: pytest.CaptureFixture[str]) -> None:
    f, argument = PROGRAMS[name]
    same(fh.jit(f, backend="eager")(argument), f(argument))
    log.taken()
    capsys.readouterr()
    expected = fh.jit(f, backend="eager")(argument)
    events, printed = log.taken(), capsys.readouterr().out
    jitted = fh.jit(f)
    for _ in range(2):
        same(jitted(argument), expected)
        assert (log.taken(), capsys.readouterr().out) == (events, printed)
    assert printed
    assert {loop.lowering for loop in fh.explain(jitted)(argument).loops} <= {"steps", "inside", "lanes"}


def bounded(xs):
    def body(c, x):
        fh.debug.check(x < 3, "{} is too large in step {iteration}", x)
        return c + x // (3 - x).long(), c

    return fh.scan(body, torch.tensor(0.0), xs)


def test_a_check_in_a_kernel_raises_before_what_comes_behind_it() -> None:
    """An integer division by zero would end the process."""
    jitted = fh.jit(bounded)
    assert [loop.lowering for loop in fh.explain(jitted)(XS).loops] == ["steps"]
    same(jitted(XS - 1), bounded(XS - 1))
    for _ in range(2):
        with pytest.raises(fh.CheckError, match=r"^3\.0 is too large in step 2\n  iteration: 2\n  at ") as caught:
            jitted(XS)
        assert (caught.value.iteration, caught.value.lane) == (2, None)
    same(jitted(XS - 1), bounded(XS - 1))

    def run() -> None:
        with pytest.raises(fh.CheckError) as caught:
            jitted(XS)
        found.append(caught.value.iteration)

    found: list[object] = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [2]


class Interruption(BaseException):
    def __str__(self) -> str:
        raise TypeError("it has no words")


def interrupting(xs, n):
    """Each step computes without Python; a signal that comes meanwhile is handled where Python is called next."""

    def body(c, x):
        fh.debug.callback(log, "step", x)
        c = fh.fori_loop(0, n, lambda i, c: torch.sin(c + x), c)
        fh.debug.callback(log, "behind", x)
        return c, None

    return fh.scan(body, torch.tensor(0.5), xs)[0]


def raising(make: Callable[[], None], xs: Tensor) -> BaseException:
    def body(c, x):
        fh.debug.callback(make)
        return c + x, None

    with pytest.raises(BaseException) as caught:
        fh.jit(lambda xs: fh.scan(body, 0.0, xs)[0])(xs)
    return caught.value


def interrupted() -> None:
    raise Interruption


def caused() -> None:
    raise ValueError("an effect") from KeyError("its cause")


def test_what_is_raised_in_a_kernel_arrives_as_it_is() -> None:
    assert type(raising(interrupted, XS)) is Interruption
    error = raising(caused, XS)
    assert type(error) is ValueError
    assert type(error.__cause__) is KeyError


@pytest.mark.parametrize(("n", "delay"), [(500_000, 0.002), (10_000_000, 0.02)])
def test_a_signal_in_a_kernel_with_effects_is_raised(n: int, delay: float) -> None:
    """Where an effect calls Python, or where the kernel looks for it; nothing happens behind."""
    jitted = fh.jit(interrupting)
    jitted(XS, torch.tensor(1))

    def handler(*_: object) -> None:
        raise Interruption

    before = signal.signal(signal.SIGALRM, handler)
    log.taken()
    try:
        signal.setitimer(signal.ITIMER_REAL, delay)
        with pytest.raises(Interruption):
            jitted(XS, torch.tensor(n))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert log.taken() in ([], [("step", 1.0)])
    jitted(XS, torch.tensor(1))
    assert len(log.taken()) == 2 * len(XS)
