"""What happens in a function under ``torch.compile(fullgraph=True)``: as in plain Python, and values stay the same."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from torch._dynamo.exc import Unsupported
from torch._dynamo.testing import CompileCounter

import functorch_hops as fh

XS = torch.tensor([1.0, 2.0, 3.0])
every_backend = pytest.mark.parametrize(
    "backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)


def fully_compiled(f, backend):
    return torch.compile(f, backend=backend, fullgraph=True)


def loop(xs, step):
    return fh.scan(lambda c, x: (step(c, x), c), xs.sum(), xs)[0]


def quiet(c, x):
    return torch.sin(c * x)


def loud(c, x):
    fh.debug.print("{iteration} {lane} {:.3f}", c)
    fh.debug.check(c < 100, "{c} is large", c=c)
    return quiet(c, x)


AROUND = {
    "value": lambda f: f,
    "grad": fh.grad,
    "jvp": lambda f: lambda xs: fh.jvp(f, (xs,), (xs,)),
    "grad of checkpoint": lambda f: fh.grad(fh.checkpoint(f)),
    "vmap of grad": lambda f: lambda xs: fh.vmap(fh.grad(f))(torch.stack([xs, 2 * xs])),
}


@every_backend
@pytest.mark.parametrize("around", AROUND)
def test_as_in_plain_python_and_without_a_change(around, backend, capsys: pytest.CaptureFixture[str]) -> None:
    change = AROUND[around]
    without = fully_compiled(change(lambda xs: loop(xs, quiet)), backend)(XS)
    lanes = [(0, XS), (1, 2 * XS)] if "vmap" in around else [(None, XS)]
    expected = []
    for lane, xs in lanes:
        c = xs.sum()
        for i, x in enumerate(xs):
            expected.append((i, f"{i} {lane} {c:.3f}"))
            c = quiet(c, x)
    expected = [line for _, line in sorted(expected, key=lambda entry: entry[0])]
    traced = fully_compiled(change(lambda xs: loop(xs, loud)), backend)
    for _ in range(2):
        torch.testing.assert_close(traced(XS), without, rtol=0, atol=0)
        assert capsys.readouterr().out.splitlines() == expected


@every_backend
def test_outside_of_loops_and_with_a_backward_pass(backend, capsys: pytest.CaptureFixture[str]) -> None:
    def run(xs):
        fh.debug.print("{}", xs.sum())
        ys = xs.sin()
        fh.debug.print("{} of {shape}", ys.sum() * 0, shape=xs.shape)
        return ys.sum()

    xs = XS.clone().requires_grad_()
    fully_compiled(run, backend)(xs).backward()
    torch.testing.assert_close(xs.grad, XS.cos())
    assert capsys.readouterr().out.splitlines() == ["6.0", "0.0 of (3,)"]


@every_backend
def test_a_check_that_fails_arrives(backend) -> None:
    traced = fully_compiled(lambda xs: loop(xs, loud), backend)
    traced(XS)
    with pytest.raises(fh.CheckError, match=r"^300.0 is large") as failure:
        traced(100 * torch.ones(3))
    assert failure.value.iteration == 0
    torch.testing.assert_close(traced(XS), loop(XS, quiet))


class Counter:
    calls = 0

    def __call__(self, x):
        self.calls += 1
        return np.sin(x)

    def __repr__(self) -> str:
        return f"{self.calls} calls"


def test_python_state_is_that_of_plain_python() -> None:
    """Dynamo changes it when the graph has run, so what reads or changes it is no node."""
    seen: list[object] = []

    def run(x):
        seen.append("begin")
        fh.debug.callback(lambda total: seen.append((total.item(), len(seen))), x.sum())
        return x

    traced = torch.compile(run, backend="eager")
    traced(XS), traced(XS)
    assert seen == ["begin", (6.0, 1), "begin", (6.0, 3)]
    with pytest.raises(Unsupported, match=r"no node for debug\.callback"):
        fully_compiled(run, "eager")(XS)


def test_objects_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    counter = Counter()

    def run(x):
        counter.calls += 1
        fh.debug.print("{} {}", counter, torch.float32)
        return x

    traced = torch.compile(run, backend="eager")
    traced(XS), traced(XS)
    assert capsys.readouterr().out.splitlines() == ["1 calls torch.float32", "2 calls torch.float32"]
    with pytest.raises(Unsupported, match="an object in compiled code has another state"):
        fully_compiled(run, "eager")(XS)


@pytest.mark.parametrize("name", ["function", "object", "method", "built-in method"])
def test_functions_that_are_called_when_the_graph_runs(name) -> None:
    table = {3: XS}
    f = {"function": np.sin, "object": Counter(), "method": Counter().__call__, "built-in method": table.get}[name]

    def run(xs):
        if name == "built-in method":
            return fh.pure_callback(f, xs, 3)
        return loop(xs, lambda c, x: fh.pure_callback(f, c, c * x))

    expected, traced = run(XS), torch.compile(run, backend="aot_eager")
    torch.testing.assert_close(traced(XS), expected)
    torch.testing.assert_close(traced(XS), expected)


def test_a_function_in_the_place_of_another_is_seen() -> None:
    class Scale:
        def times(self, x):
            return 2 * x

    called, scale = np.sin, Scale()

    def run(x):
        return fh.pure_callback(called, x, x), fh.pure_callback(scale.times, x, x)

    traced = fully_compiled(run, "eager")
    torch.testing.assert_close(traced(XS), (XS.sin(), 2 * XS))
    called, Scale.times = np.cos, lambda self, x: 3 * x
    torch.testing.assert_close(traced(XS), (XS.cos(), 3 * XS))


def scaled(by):
    return lambda a, offset=1.0: a * by + offset


def test_a_function_for_each_call() -> None:
    """What does the same may stand in its place, and what closes over something else may not."""
    counter = CompileCounter()
    traced = torch.compile(lambda f, spec, x: fh.pure_callback(f, spec, x), backend=counter, fullgraph=True)
    for by in (2.0, 2.0, 2.0, 3.0):
        spec = fh.TensorSpec(XS.shape, XS.dtype)
        torch.testing.assert_close(traced(scaled(by), spec, XS), by * XS + 1)
        torch.testing.assert_close(traced(functools.partial(np.add, by), spec, XS), XS + by)
    assert counter.frame_count == 4


def test_functions_and_specs_that_the_traced_code_makes() -> None:
    def run(x, by):
        factors = [by, 2.0]

        def repeated(a, times=3):
            return a if times == 0 else repeated(a * factors[1], times - 1)

        spec = fh.TensorSpec((x.shape[0],), x.dtype)
        called = {
            "closure": fh.pure_callback(lambda a: a * by, spec, x),
            "function that closes over itself": fh.pure_callback(repeated, {"a": spec}["a"], x),
            "partial": fh.pure_callback(functools.partial(np.multiply, by), (spec,), x)[0],
            "default": fh.pure_callback(lambda a, by=by: a + by, spec, x),
        }
        return fh.scan(lambda c, x: (fh.pure_callback(np.add, fh.TensorSpec((), x.dtype), c, x), None), x[0], x), called

    traced = torch.compile(run, backend="aot_eager", fullgraph=True)
    for by, size in ((2, 3), (5, 3), (0.5, 3), (2, 4)):
        x = torch.arange(1.0, size + 1)
        torch.testing.assert_close(traced(x, by), run(x, by))


def test_sizes_of_results_are_those_of_a_trace() -> None:
    twice = lambda x: fh.pure_callback(lambda a: np.concatenate([a, a]), fh.TensorSpec((2 * x.shape[0],), x.dtype), x)
    for run in (fh.jit(twice, dynamic=True, backend="eager"), torch.compile(twice, dynamic=True, backend="eager")):
        for size in (3, 5):
            torch.testing.assert_close(run(torch.ones(size)), torch.ones(2 * size))


def test_a_function_that_writes_what_it_closes_over_is_refused() -> None:
    def run(x):
        calls = 0

        def counted(a):
            nonlocal calls
            calls += 1
            return a + calls

        return fh.pure_callback(counted, x, x)

    with pytest.raises(Unsupported, match=r"counted is made while torch.compile traces"):
        fully_compiled(run, "eager")(XS)


def test_open_sizes_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    traced = torch.compile(
        lambda x: (fh.debug.print("{}", x.shape), x + 1)[1], backend="aot_eager", fullgraph=True, dynamic=True
    )
    traced(torch.ones(3)), traced(torch.ones(5))
    assert capsys.readouterr().out.splitlines() == ["(3,)", "(5,)"]


@pytest.mark.parametrize("inside", [False, True])
def test_a_function_that_closes_over_what_is_traced_is_refused(inside: bool) -> None:
    def step(c, x):
        two = x + 1 - x
        return c * x + fh.pure_callback(lambda c: c * two, c, c)

    run = (lambda xs: loop(xs, step)) if inside else lambda xs: step(xs, xs)
    with pytest.raises(Unsupported, match="is not there when it runs") as failure:
        fully_compiled(run, "eager")(XS)
    assert isinstance(failure.value, fh.CaptureError)


@fh.custom_vjp
def with_numpy(x):
    return fh.pure_callback(np.sin, x, x)


with_numpy.defvjp(lambda x: (with_numpy(x), x), lambda x, ct: (ct * x.cos(),))


@every_backend
def test_numpy_in_a_loop(backend) -> None:
    run = lambda xs: fh.vmap(lambda x: fh.scan(lambda c, _: (with_numpy(c), None), x, length=2)[0])(xs).sum()
    xs, ys = (XS.clone().requires_grad_() for _ in range(2))
    fully_compiled(run, backend)(xs).backward()
    ys.sin().sin().sum().backward()
    torch.testing.assert_close(xs.grad, ys.grad)


@pytest.mark.slow
@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_loop_that_is_no_kernel_under_inductor(fullgraph: bool) -> None:
    """Inductor reads the number of the step, whatever Dynamo may read in the user's code."""

    def run(xs):
        return fh.scan(lambda c, x: (c + with_numpy(x), None), xs.sum(), xs)[0]

    xs = XS.clone().requires_grad_()
    for value in (XS, xs):
        found = torch.compile(run, fullgraph=fullgraph)(value)
        assert math.isclose(found.item(), (XS.sum() + XS.sin().sum()).item(), rel_tol=1e-6)
    found.backward()
    torch.testing.assert_close(xs.grad, 1 + XS.cos())


def test_refusals_name_the_tool_and_what_it_got() -> None:
    def formatted(x):
        fh.debug.print(f"{x}")
        return x

    got = r"^debug.print: [\s\S]*got: +a value that torch.compile has yet to make"
    with pytest.raises(Unsupported, match=got):
        fully_compiled(formatted, "eager")(torch.ones(2))
