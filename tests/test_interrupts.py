"""Ctrl-C or an alarm in a capture leaves nothing behind: wherever it comes, the next call works."""

import itertools
import signal
from collections.abc import Iterator

import pytest
import torch

import functorch_hops as fh
from functorch_hops.trace.effects import Effects
from functorch_hops.trace.lifting import Lifting
from leftovers import nothing_left_behind, state


@pytest.fixture(autouse=True)
def interrupts_raise() -> Iterator[None]:
    """As in a terminal; a shell starts what it runs in the background with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler), signal.signal(signal.SIGALRM, _out_of_time)
    yield
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGALRM, before[1])


def _out_of_time(number, frame) -> None:
    """As time limits do, such as those of test runners."""
    assert frame is not None
    raise TimeoutError


def _program(x):
    y = fh.scan(lambda c, a: (torch.tanh(c * a), c + a), x[0], x)[1]
    return fh.cond(y.sum() > 0, lambda v: v.sin().sum(), lambda v: v.cos().sum(), y)


def _call():
    return fh.jit(fh.grad(_program), backend="eager")(torch.linspace(0.1, 1, 3))


def _raise() -> None:
    raise KeyboardInterrupt


def _interrupt_each(mode, name, interrupt, monkeypatch) -> None:
    """Interrupt each call of a mode's method in turn; the next call of the program is right."""
    original, before = getattr(mode, name), state()
    for n in itertools.count(1):
        calls = itertools.count(1)

        def __torch_dispatch__(self, *args, n=n, calls=calls, **kwargs):
            if next(calls) == n:
                interrupt()
            return original(self, *args, **kwargs)

        monkeypatch.setattr(mode, name, __torch_dispatch__)
        try:
            _call()
            break
        except (KeyboardInterrupt, TimeoutError):
            assert state() == before, n
    assert n > 10
    monkeypatch.undo()
    with nothing_left_behind():
        torch.testing.assert_close(_call(), fh.grad(_program)(torch.linspace(0.1, 1, 3)))


def _signal() -> None:
    signal.raise_signal(signal.SIGINT)


def _alarm() -> None:
    signal.raise_signal(signal.SIGALRM)


@pytest.mark.parametrize("interrupt", [_raise, _signal, _alarm])
def test_at_every_function_of_a_capture(interrupt, monkeypatch) -> None:
    _interrupt_each(Lifting, "__torch_function__", interrupt, monkeypatch)


@pytest.mark.parametrize("interrupt", [_signal, _alarm])
def test_at_every_operator_of_a_capture(interrupt, monkeypatch) -> None:
    """By a signal, which waits: the process would not survive an exception amid torch's engine."""
    _interrupt_each(Effects, "__torch_dispatch__", interrupt, monkeypatch)


def test_two_signals_amid_torch_are_both_handled(monkeypatch) -> None:
    original = Effects.__torch_dispatch__

    def __torch_dispatch__(self, *args, **kwargs):
        _signal()
        _alarm()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Effects, "__torch_dispatch__", __torch_dispatch__)
    with nothing_left_behind(), pytest.raises(TimeoutError) as raised:
        _call()
    assert isinstance(raised.value.__context__, KeyboardInterrupt)


def test_a_handler_that_the_function_sets_stays() -> None:
    def f(x):
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        return x + 1

    with nothing_left_behind(), pytest.warns(RuntimeWarning, match="signal.signal"):
        fh.make_graph(f)(torch.ones(2))
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_IGN


def test_a_signal_amid_torch_waits_for_the_function() -> None:
    """What torch has begun is finished; then the function is interrupted at its next call of torch."""
    seen = []

    class Signals(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is torch.sin:
                signal.raise_signal(signal.SIGINT)
                seen.append("goes on")
            return func(*args, **(kwargs or {}))

    def f(x):
        with Signals():
            y = torch.sin(x)
        seen.append("after it")
        return torch.cos(y)

    with nothing_left_behind(), pytest.raises(KeyboardInterrupt):
        fh.jit(f, backend="eager")(torch.ones(2))
    assert seen == ["goes on"]


def test_a_signal_in_the_users_own_code_comes_at_once() -> None:
    reached = []

    def f(x):
        signal.raise_signal(signal.SIGINT)
        reached.append(x)
        return x

    before = signal.getsignal(signal.SIGINT)
    with nothing_left_behind(), pytest.raises(KeyboardInterrupt):
        fh.jit(lambda x: fh.scan(lambda c, _: (f(c), None), x, length=2), backend="eager")(torch.ones(2))
    assert not reached
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("mode", [Lifting, Effects])
def test_while_a_mode_leaves(mode, monkeypatch) -> None:
    """Then torch's stack still has it."""
    original, calls = mode.__exit__, itertools.count()

    def interrupted(self, *args):
        if next(calls) == 0:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(mode, "__exit__", interrupted)
    with nothing_left_behind(), pytest.raises(BaseException):  # noqa: B017 - torch may complain about its stack
        _call()


def test_while_torch_makes_the_text_of_an_operand(monkeypatch) -> None:
    """In a kernel's fake version. The object that keeps functorch off there lives as long as the traceback."""

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    x = torch.linspace(0.1, 1, 3)
    f = lambda x: fh.jvp(lambda c: (c * 2).lerp_(c, c.cos()), (x,), (x,))[1]
    with nothing_left_behind():
        monkeypatch.setattr(torch._tensor_str, "_str_intern", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fh.jit(f, backend="eager")(x)
        monkeypatch.undo()
        torch.testing.assert_close(fh.jit(f, backend="eager")(x), f(x))
