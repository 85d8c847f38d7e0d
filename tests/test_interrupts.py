"""Ctrl-C in a capture leaves nothing behind: wherever it comes, the next call works."""

import itertools

import pytest
import torch

import functorch_hops as fh
from functorch_hops.trace.effects import Effects
from functorch_hops.trace.lifting import Lifting
from leftovers import nothing_left_behind, state


def _program(x):
    y = fh.scan(lambda c, a: (torch.tanh(c * a), c + a), x[0], x)[1]
    return fh.cond(y.sum() > 0, lambda v: v.sin().sum(), lambda v: v.cos().sum(), y)


def _call():
    return fh.jit(fh.grad(_program), backend="eager")(torch.linspace(0.1, 1, 3))


def test_at_every_torch_function_of_a_capture(monkeypatch) -> None:
    original, before = Lifting.__torch_function__, state()
    for n in itertools.count(1):
        calls = itertools.count(1)

        def interrupted(self, *args, n=n, calls=calls, **kwargs):
            if next(calls) == n:
                raise KeyboardInterrupt
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Lifting, "__torch_function__", interrupted)
        try:
            _call()
            break
        except KeyboardInterrupt:
            assert state() == before, n
    assert n > 10
    monkeypatch.undo()
    with nothing_left_behind():
        torch.testing.assert_close(_call(), fh.grad(_program)(torch.linspace(0.1, 1, 3)))


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
