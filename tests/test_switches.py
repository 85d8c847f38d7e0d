"""Switches of ``jit``: off, watched, bounded; and the line that says what one waits for."""

from __future__ import annotations

import io
import threading
import time

import numpy as np
import pytest
import torch

import functorch_hops as fh
from functorch_hops.lowering import waiting
from modes import same

X = torch.arange(3.0)


def test_without_jit_the_function_is_python(capsys: pytest.CaptureFixture[str]) -> None:
    calls = []

    def step(c, x):
        print("step", int(x))
        return c + x, c

    @fh.jit(static_argnames="scale")
    def f(xs, start, scale):
        calls.append(type(start))
        return fh.scan(step, torch.tensor(start), xs)[0] * scale

    with fh.disable_jit():
        results = [f(X, 1.0, scale=2) for _ in range(2)]
    assert [r.item() for r in results] == [8.0, 8.0]
    assert calls == [float, float]
    assert capsys.readouterr().out == "step 0\nstep 1\nstep 2\n" * 2
    assert f.cache_info().misses == 0


def test_without_jit_derivatives_modules_and_arrays() -> None:
    cube = fh.jit(lambda x: x**3)
    module = fh.jit(torch.nn.BatchNorm1d(3))
    with fh.disable_jit():
        same(fh.vmap(fh.grad(cube))(X), 3 * X**2)
        same(cube(np.float64([2.0])), torch.tensor([8.0], dtype=torch.float64))
        module(torch.randn(4, 3))
    assert module.num_batches_tracked == 1
    assert cube.cache_info().misses == module.cache_info().misses == 0


def test_without_jit_is_of_a_thread_and_ends_with_an_error() -> None:
    f = fh.jit(lambda x: x + 1, backend="eager")

    def interrupted():
        with fh.disable_jit():
            thread = threading.Thread(target=f, args=(X,))
            thread.start()
            thread.join()
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert f.cache_info().misses == 1
    f(X)
    assert f.cache_info().hits == 1


def test_captures_are_logged_with_their_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    table = {"scale": 2}

    def scaled(x):
        return x * table["scale"]

    f = fh.jit(scaled, backend="aot_eager")
    with fh.log_captures() as events:
        f(X)
        f(X)
        table["scale"] = 3
        f(X)
        fh.vmap(lambda x: fh.cond(x > 1, torch.sin, torch.cos, x))(X)
    f(torch.ones(2))
    assert [(e.what, e.name) for e in events] == [
        ("capture", "scaled"),
        ("compile", "scaled"),
        ("capture", "scaled"),
        ("compile", "scaled"),
        ("capture", "cond"),
    ]
    assert events[0].reasons == () and "table" in events[2].reasons[0]
    assert events[0].place == f"{__file__}:{scaled.__code__.co_firstlineno}"
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"functorch_hops: {event}" for event in events]
    assert all(event.seconds > 0 for event in events)


def test_a_compilation_of_a_derivative_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    def bend(x):
        return (x.outer(x) @ x).sin()

    x = X.clone().requires_grad_()
    f = fh.jit(bend, backend="aot_eager")
    with fh.log_captures(quiet=True) as events:
        f(x).sum().backward()
    assert [e.name for e in events if e.what == "compile"] == ["bend (forward)", "bend (backward)"]
    assert capsys.readouterr().err == ""


def test_more_captures_than_allowed() -> None:
    f = fh.jit(lambda x, n: x * n, backend="eager")
    with fh.assert_max_captures(f, 2):
        for n in (1, 2, 1, 2):
            f(X, n)
    with fh.assert_max_captures(f, 1):
        f(X, 3)
        with pytest.raises(fh.TooManyCapturesError, match=r"from \(.*, 3\) to \(.*, 4\)") as caught:
            f(X, 4)
    assert isinstance(caught.value, AssertionError) and __file__ in str(caught.value)
    f(X, 5)  # outside, nothing is counted


def test_captures_of_modules_methods_and_others() -> None:
    class Model:
        @fh.jit(backend="eager")
        def step(self, x):
            return x + 1

    model, module, other = Model(), fh.jit(torch.nn.Identity(), backend="eager"), fh.jit(torch.sin, backend="eager")
    with fh.assert_max_captures(model.step, 1), fh.assert_max_captures(module, 1):
        for _ in range(3):
            model.step(X), module(X), other(X), Model().step(X)
    for f in (model.step, module):
        with pytest.raises(fh.TooManyCapturesError), fh.assert_max_captures(f, 0):
            f(torch.ones(2))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()], ids=["terminal", "file"])
def test_a_line_while_a_compiler_takes_long(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "PATIENCE", 0.01)
    monkeypatch.setattr("sys.stderr", stream)

    def slow(module, inputs):
        time.sleep(0.1)
        return module

    @fh.jit(backend=slow)
    def doubled(x):
        return x * 2

    same(doubled(X), X * 2)
    said = stream.getvalue()
    if stream.isatty():
        assert said.startswith("\rcompiling doubled ... 0 s") and said.endswith(" \r")
    else:
        assert said == ""
