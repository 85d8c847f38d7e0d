"""What a loop's body changes outside of itself, local to a captured function or not, is named: it happens once."""

from __future__ import annotations

import itertools
import sys
import types
import warnings

import pytest
import torch

import functorch_hops as fh
from modes import captured, jitted, plain

X = torch.ones(2)
COUNTS: list[int] = []


def with_a_counter():
    n = 0

    def step(c, _):
        nonlocal n
        n += 1
        return c + n, None

    return step


def with_an_attribute():
    state = types.SimpleNamespace(n=0)

    def step(c, _):
        state.n += 1
        return c + state.n, None

    return step


def with_a_dict():
    seen = {}

    def step(c, _):
        seen["n"] = seen.get("n", 0) + 1
        return c + seen["n"], None

    return step


def with_an_iterator():
    numbers = zip(iter([1.0, 2.0, 3.0]), iter("abc"))
    return lambda c, _: (c + next(numbers)[0], None)


def with_a_generator():
    numbers = (float(i) for i in range(1, 4))
    return lambda c, _: (c + next(numbers), None)


def with_a_chain():
    numbers = itertools.chain([1.0, 2.0], [3.0])
    return lambda c, _: (c + next(numbers), None)


def with_a_global():
    COUNTS.clear()

    def step(c, _):
        COUNTS.append(1)
        return c + len(COUNTS), None

    return step


LOOPS = {
    "scan": lambda step, x: fh.scan(step, x, length=3)[0],
    "fori_loop": lambda step, x: fh.fori_loop(0, 3, lambda i, c: step(c, i)[0], x),
    "while_loop": lambda step, x: fh.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, step(c[1], 0)[0]), (0, x))[1],
    "map": lambda step, x: fh.map(lambda e: step(e, 0)[0], x),
    "a scan in a branch": lambda step, x: fh.cond(
        x.sum() > 0, lambda x: fh.scan(step, x, length=3)[0], lambda x: x * 1, x
    ),
}
BRANCHES = {
    "cond": lambda step, x: fh.cond(x.sum() > 0, lambda x: step(x, 0)[0], lambda x: x * 1, x),
    "switch": lambda step, x: fh.switch((x.sum() > 0).long(), [torch.sin, lambda x: step(x, 0)[0]], x),
}
NAMES = {
    with_a_counter: "n'",
    with_an_attribute: ".n'",
    with_a_dict: "seen'",
    with_an_iterator: "numbers'",
    with_a_generator: "numbers'",
    **({with_a_chain: "numbers'"} if sys.version_info < (3, 12) else {}),  # where looking at one warns
    with_a_global: "'COUNTS'",
}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("make", NAMES)
def test_what_a_step_changes_is_said_once(loop, make):
    program = lambda x: LOOPS[loop](make(), x)
    for run in (captured, jitted):
        with pytest.warns(RuntimeWarning) as found:
            run(program, X.clone())
        (text,) = [str(w.message) for w in found]
        assert NAMES[make] in text, text
        assert f"{__file__}:" in text


def test_two_changes_in_one_line_are_two():
    inside, around = [], []

    def body(c, _):
        return fh.scan(lambda c, _: (c, inside.append(1)), c, length=2)[0], around.append(1)

    for run in (captured, jitted):
        with pytest.warns(RuntimeWarning) as found:
            run(lambda x: fh.scan(body, x, length=2)[0], X.clone())
        text = " ".join(str(w.message) for w in found)
        assert text.count("inside'") == text.count("around'") == 1, text


@pytest.mark.parametrize("name", BRANCHES)
@pytest.mark.parametrize("make", NAMES)
def test_what_a_branch_of_a_jitted_function_changes_is_said(name, make):
    """Else it is done in each call, in branches that are not taken too."""
    program = lambda x: BRANCHES[name](make(), x)
    with pytest.warns(RuntimeWarning) as found:
        jitted(program, X.clone())
    (text,) = [str(w.message) for w in found]
    assert NAMES[make] in text, text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        captured(program, X.clone())


@pytest.mark.parametrize("loop", [*LOOPS, *BRANCHES])
def test_what_is_of_one_step_alone_is_not(loop):
    """Nor what the function around a loop does for itself, nor plain Python, which runs each step."""

    def step(c, _):
        parts = {"all": []}
        for _ in range(2):
            parts["all"].append(c * 2)
        return torch.stack(parts["all"]).sum(0), None

    def program(x):
        sizes = [1]
        sizes.append(2)
        return {**LOOPS, **BRANCHES}[loop](step, x) + len(sizes)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for run in (captured, jitted):
            run(program, X)
        plain(lambda x: {**LOOPS, **BRANCHES}[loop](with_a_counter(), x), X)


def test_what_a_graph_does_not_do_is_told():
    """As ``jit`` tells it: the graph runs without."""
    seen = []

    def f(x):
        seen.append(x.shape)
        return x * 2

    with pytest.warns(RuntimeWarning, match="make_graph: f does what no graph does.*changes closure 'seen'"):
        graph = fh.make_graph(f)(X)
    assert torch.equal(graph(X), X * 2)
    assert len(seen) == 1


def test_iterators_of_the_users_are_not_asked():
    class Numbers:
        def __iter__(self):
            return self

        def __next__(self):
            return 2.0

        def __getstate__(self):
            raise AssertionError("asked")

        __length_hint__ = __getstate__

    numbers = enumerate(Numbers())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for run in (captured, jitted):
            assert torch.equal(run(lambda x: fh.map(lambda e: e * next(numbers)[1], x), X), X * 2)
