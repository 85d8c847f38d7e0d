"""``torch.profiler`` shows jitted functions and the loops in them by the user's name, with their trip count."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import functorch_hops as fh

XS = torch.ones(5)


def summed(xs):
    return fh.scan(lambda c, x: (c * x, None), xs[0], xs)[0]


def names(f, *args) -> list[str]:
    with profile(activities=[ProfilerActivity.CPU]) as found:
        f(*args)
    return [event.name for event in found.events() if __file__ in event.name]


def line_of(function, offset: int = 0) -> str:
    return f"{__file__}:{function.__code__.co_firstlineno + offset}"


@pytest.mark.parametrize("calls", [0, 1, 5])
def test_jitted_functions_and_their_loops(calls) -> None:
    jitted = fh.jit(summed, backend="eager")
    plain = [jitted(XS) for _ in range(calls)]
    assert names(jitted, XS) == [f"summed, {line_of(summed)}", f"scan, {line_of(summed, 1)}, 5 steps"]
    assert all(torch.equal(jitted(XS), value) for value in plain)


def test_both_passes_of_a_gradient() -> None:
    xs = XS.clone().requires_grad_()
    found = names(lambda: fh.jit(summed, backend="eager")(xs).backward())
    scan = f"scan, {line_of(summed, 1)}"
    assert [name for name in found if name.startswith("scan")] == [
        f"{scan}, forward, 5 steps",
        f"{scan}, backward, 5 steps",
    ]
    assert any(name.startswith("summed") and name.endswith("backward") for name in found)


def test_a_while_loop_does_not_know_its_steps() -> None:
    f = fh.jit(lambda x: fh.while_loop(lambda x: x < 9, lambda x: x * 2, x), backend="eager")
    found = names(f, torch.ones(()))
    assert [name.split(",")[0] for name in found] == ["<lambda>", "while_loop"] and "steps" not in found[1]
