"""``fh.progress`` counts the steps of loops that run, in Python, in graphs and in kernels, and changes none of them."""

from __future__ import annotations

import io
import re
import sys
import threading

import pytest
import torch

import functorch_hops as fh
from functorch_hops.lowering.loops.watching import report, state, watching
from modes import same

XS = torch.ones(6)


def nested(xs):
    return fh.scan(lambda c, x: (fh.fori_loop(0, 3, lambda i, v: v + x, c), c), torch.zeros(()), xs)


def counted(x):
    return fh.while_loop(lambda s: s[1] < 4, lambda s: (s[0] * 2, s[1] + 1), (x, 0))[0]


def in_a_graph(f):
    def run(x):
        with fh.eager_capture():
            return f(x)

    return run


RUNS = {"plain": lambda f: f, "eager": lambda f: fh.jit(f, backend="eager"), "captured": in_a_graph}
every_run = pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)


@every_run
def test_the_outer_loop_is_counted_and_its_total_known(run) -> None:
    with fh.progress(show=False) as done:
        result = run(nested)(XS)
        assert (done.steps, done.total, done.inner) == (6, 6, ())
        run(nested)(XS)
    assert (done.steps, done.total) == (12, 12)
    same(result, nested(XS))
    assert state.watch is None


@every_run
def test_a_loop_of_unknown_length_has_no_total(run) -> None:
    with fh.progress(show=False) as done:
        run(counted)(torch.tensor(1.0))
    assert (done.steps, done.total) == (4, None)
    with fh.progress(total=9, show=False) as done:
        run(counted)(torch.tensor(1.0))
    assert (done.steps, done.total) == (4, 9)


def in_sequence(xs):
    """Loops behind one another, with loops in their steps, without a length, and of lanes that end by themselves."""
    c = fh.scan(lambda c, x: (torch.tanh(c + x), None), xs, xs)[0]
    c = fh.fori_loop(0, 3, lambda i, c: fh.fori_loop(0, 7, lambda i, c: torch.sin(c), c), c)
    c = fh.while_loop(lambda s: s[1] < 4, lambda s: (s[0] + 1, s[1] + 1), (c, 0))[0]
    return fh.vmap(lambda x: fh.while_loop(lambda x: x < 6, lambda x: x + 2, x))(c.floor() * 0)


@every_run
def test_loops_behind_one_another_are_counted_each(run) -> None:
    with fh.progress(show=False) as done:
        run(in_sequence)(XS)
    assert (done.steps, done.total, done.inner) == (6 + 3 + 4 + 3, None, ())


@pytest.mark.slow
def test_each_loop_of_one_kernel_is_counted() -> None:
    jitted = fh.jit(in_sequence)
    same(jitted(XS), in_sequence(XS))
    test_loops_behind_one_another_are_counted_each(lambda f: jitted)


@every_run
def test_a_bar_inside_of_another(run) -> None:
    with fh.progress(show=False) as outer:
        run(nested)(XS)
        with fh.progress(show=False) as inner:
            run(counted)(torch.tensor(1.0))
        run(nested)(XS)
    assert (outer.steps, inner.steps) == (6 + 4 + 6, 4)
    assert state.watch is None


def test_what_is_inside_is_seen_while_it_runs() -> None:
    seen = []

    def body(i, v):
        seen.append((done.steps, done.inner))
        return v

    with fh.progress(show=False) as done:
        fh.map(lambda x: fh.fori_loop(0, 2, body, x), XS[:2])
    assert seen == [(0, ()), (0, ((1, 2),)), (1, ()), (1, ((1, 2),))]


def test_gradients_are_counted_and_unchanged() -> None:
    loss = fh.jit(lambda x: fh.scan(lambda c, a: ((c * a).sin(), None), x, XS)[0], backend="eager")
    plain = fh.grad(loss)(torch.tensor(0.5))
    with fh.progress(show=False) as done:
        assert torch.equal(fh.grad(loss)(torch.tensor(0.5)), plain)
    assert done.steps == 12


def test_a_loop_that_fails_does_not_stay() -> None:
    def fails(c, x):
        raise KeyError

    with fh.progress(show=False) as done:

        def outer(c, x):
            with pytest.raises(KeyError):
                fh.scan(fails, c, XS)
            return c, None

        fh.scan(outer, 0.0, XS[:2])
    assert (done.steps, done.inner) == (2, ())


def test_what_a_watch_raises_on_a_thread_is_raised_there() -> None:
    """A kernel that Python stopped leaves wrong numbers, and what it raises later goes to the main thread."""

    class Fails:
        told = 0

        def kernel_at(self, levels: object, has_ended: bool) -> None:
            self.told += 1
            raise BrokenPipeError("nobody reads")

    watch, seen = Fails(), list[str]()

    def run() -> None:
        try:
            with watching(watch):
                report([(1, 3)], False)
                report([(3, 3)], True)
                seen.append("behind the kernel")
        except BrokenPipeError:
            seen.append("raised")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == ["behind the kernel", "raised"]
    assert watch.told == 1
    with pytest.raises(BrokenPipeError), watching(watch):
        report([(1, 3)], False)


class Terminal(io.StringIO):
    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.mark.parametrize(
    ("is_terminal", "show", "is_seen"),
    [(True, None, True), (False, None, False), (False, True, True), (True, False, False)],
)
def test_the_bar_is_on_terminals(is_terminal, show, is_seen, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal(is_terminal)
    monkeypatch.setattr(sys, "stdout", stream)
    with fh.progress(desc="training", show=show):
        nested(XS)
    text = stream.getvalue()
    assert (text != "") == is_seen
    if is_seen:
        assert re.search(r"training: 100%[^\r]* 6/6 \[[^,]*, [^,]*step/s\]\s*$", text)  # and no loops inside


def test_a_missing_package_is_named_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(fh.MissingPackageError, match="pip install tqdm") as error, fh.progress(show=True):
        pass
    assert isinstance(error.value, ImportError)
    with fh.progress(show=False):
        nested(XS)


N = 20_000_000
KERNELS = {
    "while": (
        lambda x: fh.while_loop(lambda s: s[1] < N, lambda s: ((s[0] + 1).sin(), s[1] + 1), (x, 0))[0],
        (N, None),
    ),
    "steps": (
        lambda x: fh.fori_loop(0, 2000, lambda i, c: fh.fori_loop(0, 500, lambda j, v: (v @ v).tanh() + i, c), x),
        (2000, 2000),
    ),
    "lanes": (lambda x: fh.fori_loop(0, 20000, lambda i, c: (c + i).sin(), x), (20000, 20000)),
}
ARGUMENTS = {"while": torch.ones(()), "steps": torch.ones(8, 8), "lanes": torch.ones(40_000)}


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_says_where_it_is(name, monkeypatch: pytest.MonkeyPatch) -> None:
    function, expected = KERNELS[name]
    jitted, x = fh.jit(function), ARGUMENTS[name]
    plain = jitted(x)
    assert all(loop.lowering in ("lanes", "steps", "inside") for loop in fh.explain(jitted)(x).loops)
    said, show = [], fh.Progress._show
    monkeypatch.setattr(fh.Progress, "_show", lambda self, inner: (show(self, inner), said.append(self.steps)))
    with fh.progress(show=False) as done:
        assert torch.equal(jitted(x), plain)
    assert (done.steps, done.total) == expected
    assert said == sorted(said) and len(set(said)) > 2
    assert jitted.cache_info().misses == 1
