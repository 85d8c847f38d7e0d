"""``explain`` says of each loop where it is, how it is lowered and why, and what it saves."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch

import functorch_hops as fh

XS = torch.ones(5, 4)


def running(xs):
    return fh.scan(lambda c, x: (c + x, c.sum()), xs[0], xs)


def branching(xs):
    def step(c, x):
        return fh.cond(x.sum() > 0, torch.sin, torch.cos, c) * x, None

    c, _ = fh.scan(step, xs[0], xs)
    return fh.while_loop(lambda c: c.sum() < 3, lambda c: c + 1, c)


def line_of(function, text: str) -> int:
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(lines) if text in line)


def explained(f, *args, backend="eager"):
    return fh.explain(fh.jit(f, backend=backend))(*args)


def test_each_loop_and_branch_has_its_line() -> None:
    scan, cond, loop = explained(branching, XS).loops
    assert [x.operator for x in (scan, cond, loop)] == ["scan", "cond", "while_loop"]
    assert [x.line for x in (scan, cond, loop)] == [
        line_of(branching, "fh.scan"),
        line_of(branching, "fh.cond"),
        line_of(branching, "fh.while_loop"),
    ]
    assert {x.file for x in (scan, cond, loop)} == {__file__}
    assert scan.source == "c, _ = fh.scan(step, xs[0], xs)"
    assert [x.depth for x in (scan, cond, loop)] == [0, 1, 0]
    assert [x.trip_count for x in (scan, cond, loop)] == [5, None, None]


@pytest.mark.parametrize("around", [fh.vmap, fh.grad, lambda f: fh.vmap(fh.grad(f)), fh.jacfwd, fh.jit, fh.checkpoint])
def test_the_line_survives_transforms(around) -> None:
    def f(xs):
        return running(xs)[0].sum()

    argument = XS.expand(3, 5, 4) if around is fh.vmap else XS
    argument = XS.expand(3, 5, 4) if getattr(around, "__name__", "") == "<lambda>" else argument
    loops = explained(around(f), argument).loops
    assert loops and {loop.line for loop in loops} == {line_of(running, "fh.scan")}


def test_branches_that_lanes_select_are_told_apart() -> None:
    """Under vmap each branch is a cond of its own, for the lanes that take it."""

    def branches(x):
        return fh.cond(x > 2, torch.sin, torch.cos, x)

    value = explained(fh.vmap(branches), XS[:, 0]).loops
    assert [(x.operator, x.branch, x.part) for x in value] == [("cond", 0, None), ("cond", 1, None)]
    assert "cond, branch 1 of lanes that differ at" in str(value[1])
    gradient = explained(fh.vmap(fh.grad(branches)), XS[:, 0]).loops
    assert {x.branch for x in gradient} == {0, 1}
    (together,) = explained(branches, XS[0, 0]).loops
    assert together.branch is None


def test_equal_bodies_at_other_lines_keep_their_lines() -> None:
    def inner(xs):
        return fh.scan(lambda c, x: (c + x, None), xs[0], xs)[0]

    def both(xs):
        first = fh.map(inner, torch.stack([xs, xs]))

        def again(xs):
            return fh.scan(lambda c, x: (c + x, None), xs[0], xs)[0]

        return first, fh.map(again, torch.stack([xs, xs]))

    inside = [loop for loop in explained(both, XS).loops if loop.depth == 1]
    assert [loop.line for loop in inside] == [line_of(inner, "fh.scan"), line_of(both, "return fh.scan")]


def test_the_parts_of_a_gradient_and_what_is_saved() -> None:
    weight = torch.ones(4, 4)

    def loss(xs):
        return fh.scan(lambda c, x: ((c @ weight).tanh() + x, None), xs[0], xs)[0].sum()

    forward, backward = explained(fh.value_and_grad(loss), XS).loops
    assert (forward.part, backward.part) == ("forward", "backward")
    assert forward.saved_bytes == 4 * 4  # the product, of four float32, in each step
    assert backward.saved_bytes is None
    assert "saves 16 bytes per step" in str(forward) and "backward pass" in str(backward)


def test_traffic_is_that_of_operands_and_results() -> None:
    (scan,) = explained(running, XS).loops
    assert scan.traffic_bytes == 4 * (4 + 5 * 4 + 4 + 5)  # the carry, xs, the last carry, ys
    assert f"reads and writes {scan.traffic_bytes} bytes" in str(scan)
    (scan,) = fh.explain(fh.jit(running, backend="eager", dynamic=True))(XS).loops
    assert scan.traffic_bytes is None
    scan, cond, loop = explained(branching, XS).loops
    assert (cond.traffic_bytes, loop.traffic_bytes) == (1 + 16 + 16, 16 + 16)


def test_kernels_and_what_prevents_them() -> None:
    def f(xs):
        def step(c, x):
            torch._assert_async(c.sum() < 99)
            return c + x, None

        return fh.scan(lambda c, x: (c.softmax(0) + x, None), xs[0], xs)[0], fh.scan(step, xs[0], xs)[0]

    found = explained(f, XS, backend="inductor")
    kernel, native = found.loops
    assert (kernel.lowering, native.lowering) == ("steps", "native")
    assert kernel.reason is not None and native.reason == "one of its operators checks or does something unknown"
    assert found.compile_seconds > 0 and found.graph_seconds > 0 and found.source_bytes > 1000
    text = str(found)
    assert all(part in text for part in ("one kernel", "torch's own operator", f"{__file__}:{kernel.line}", "steps: 5"))
    again = explained(f, XS, backend="inductor")
    assert dataclasses.replace(again, capture_seconds=found.capture_seconds) == found, "nothing is compiled twice"


def test_without_loops() -> None:
    found = explained(torch.sin, XS)
    assert found.loops == () and "no loops" in str(found)
    assert found.name == "sin" and found.backend == "eager"
    module = fh.jit(torch.nn.Linear(4, 2), backend="eager")
    assert fh.explain(module)(XS).name == "Linear"
    assert module.cache_info().misses == 0, "the cache of the function is left alone"
