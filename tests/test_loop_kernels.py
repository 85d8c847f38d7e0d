"""Loops as one C++ kernel: which are, which not and why, and that each computes what eager does."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import optree
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import functorch_hops as fh
from functorch_hops.lowering.loops import planning
from functorch_hops.lowering.loops.operator import loop_kernel
from functorch_hops.lowering.loops.plans import LoopReport
from loop_plans import Program, check, normal, plan, taken
from modes import same

N, STEPS = 40, 7


C, XS = normal(N), normal(STEPS, N, seed=1)


def scan(step: Callable[[Any, Any], Any]) -> Callable[[Any, Tensor], Any]:
    return lambda c, xs: fh.scan(step, c, xs)


def counted(n: int, f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Any]:
    return lambda c: fh.while_loop(lambda s: s[1] < n, lambda s: (f(s[0]), s[1] + 1), (c, 0))


def lanes(test: Callable[[Any], Tensor], step: Callable[[Any], Any]) -> Callable[[Tensor], Any]:
    return fh.vmap(lambda x: fh.while_loop(test, step, x))


def ends(x: Tensor, y: Tensor) -> Any:
    return fh.while_loop(lambda s: (s[0] < 4) & (s[1] < 20), lambda s: (s[0] * s[0] + x, s[1] + y), (x * y, y))


BY_LANES: dict[str, Program] = {
    "lanes of lanes": (
        fh.vmap(fh.vmap(ends, in_dims=(None, 0)), in_dims=(0, None)),
        (normal(5), normal(7, seed=1).abs() + 1),
    ),
    "pointwise": (scan(lambda c, x: (torch.tanh(c * 0.9 + x), c)), (C, XS)),
    "reverse": (lambda c, xs: fh.scan(lambda c, x: (torch.tanh(c * 0.9 + x), c), c, xs, reverse=True), (C, XS)),
    "its own lane under a condition": (
        scan(lambda c, x: (F.pad(c[3:] * x[3:], (3, 0)) + x, c)),
        (normal(200), normal(STEPS, 200, seed=1)),
    ),
    "swapped": (lambda c, xs: fh.scan(lambda c, x: ((c[1], c[0]), x * 2), (c, c * 2), xs), (C, XS)),
    "rotated": (
        lambda c, xs: fh.scan(lambda c, x: ((c[1], c[2], c[0] + x), (c[0], c[0], x)), (c, c * 2, c * 3), xs),
        (C, XS),
    ),
    "unchanged": (lambda c, xs: fh.scan(lambda c, x: ((c[0], c[1] + x), c[0] * x), (c, c), xs), (C, XS)),
    "dtypes": (
        lambda c, n, xs: fh.scan(
            lambda c, x: ((c[0] * 0.5 + x, c[1] + 1, c[2] ^ (x > 0)), c[1] * 2), (c, n, c > 0), xs
        ),
        (C, torch.arange(N), XS),
    ),
    "double": (scan(lambda c, x: (torch.tanh(c * 0.9 + x), c.exp())), (C.double(), XS.double())),
    "nan through clamp": (
        scan(lambda c, x: (torch.clamp(c + x, -1, 1), torch.tanh(c).exp())),
        (torch.where(C > 1, torch.nan, C), XS),
    ),
    "limits": (
        scan(
            lambda c, x: (
                torch.relu(c) + x.clamp(-0.5, 0.5),
                torch.maximum(x, torch.full_like(x, 2)) + c.clamp(min=torch.nan),
            )
        ),
        (torch.where(C > 1, torch.nan, C), XS),
    ),
    "nan through max": (
        scan(lambda c, x: (torch.maximum(c, x), torch.minimum(c, x))),
        (C, torch.where(XS > 1.5, torch.nan, XS)),
    ),
    "inf": (scan(lambda c, _: (c * 1e10, (torch.tanh(c), torch.exp(c), torch.sigmoid(c)))), (C * 1e20, XS)),
    "views": (lambda c, xs: fh.scan(lambda c, x: (c * 0.5 + x[1:], x[:-1] + c), c[1:], xs[3:]), (C, XS)),
    "strides": (lambda c, xs: fh.scan(lambda c, x: (c * 0.5 + x, c), c, xs.t()), (normal(STEPS), XS)),
    "one lane": (scan(lambda c, x: (torch.sin(c) + x, c)), (torch.tensor(0.3), normal(STEPS))),
    "many lanes": (scan(lambda c, x: (torch.sin(c) + x, c)), (normal(1500), normal(3, 1500))),
    "rows of a table": (lambda c, xs: fh.fori_loop(0, STEPS, lambda i, c: torch.tanh(c + xs[i]), c), (C, XS)),
    "padded": (
        scan(lambda c, x: (torch.nn.functional.pad(torch.sin(c + x)[2:38], (2, 2)) * 0.5 + c, x)),
        (C, XS),
    ),
    "numbers of lanes": (scan(lambda c, x: (c * 0.5 + x * torch.arange(N), c + torch.arange(N))), (C, XS)),
    "looked up": (
        lambda t, c, xs: fh.scan(lambda c, x: (t[(c.abs() * 3).long() % 7] + x, c), c, xs),
        (normal(7), C, XS),
    ),
    "bits": (scan(lambda c, x: ((c.view(torch.int32) >> 1).view(torch.float32) + x, c)), (C.abs(), XS)),
    "a factor for each row": (
        lambda w, b, c, xs: fh.scan(lambda c, x: (torch.tanh(w * c + x + b), c * b), c, xs),
        (normal(20), normal(7, 1), normal(7, 20), normal(STEPS, 7, 20)),
    ),
    "factors in three dimensions": (
        lambda w, b, c, xs: fh.scan(lambda c, x: ((c[0] * b + x, c[1] + w * c[0]), c[1]), (c, c), xs),
        (normal(5, 1, 17), normal(3, 1), normal(5, 3, 17), normal(STEPS, 5, 3, 17)),
    ),
    "rows of many lanes": (
        lambda w, c, xs: fh.scan(lambda c, x: (torch.sin(w * c) + x, c), c, xs),
        (normal(4500), normal(3, 4500), normal(2, 3, 4500)),
    ),
    "lanes of a vmapped scan": (
        lambda w, c, xs: fh.vmap(lambda c: fh.scan(lambda c, x: (torch.sin(w * c) + x, c), c, xs))(c),
        (normal(20), normal(7, 20), normal(STEPS, 20)),
    ),
    "masks": (scan(lambda b, x: (~b ^ (x > 0) | (b & (x < -1)), b)), (C > 0, XS)),
    "scalar while": (counted(1000, lambda c: torch.sin(c) * 1.1 + 0.1), (torch.tensor(0.3),)),
    "while of no step": (counted(0, torch.sin), (torch.tensor(0.3),)),
    "lanes of a while": (lanes(lambda y: y.abs() > 1e-2, lambda y: y * 0.7), (normal(500),)),
    "lanes, two carries": (
        fh.vmap(lambda n: fh.while_loop(lambda s: s[0] > 3, lambda s: (s[0] % 50 - 1, s[1] + s[0]), (n, n * 0))),
        (torch.arange(100),),
    ),
    "lanes divided by a number": (
        fh.vmap(lambda n: fh.while_loop(lambda n: n > 9, lambda n: torch.where(n % 2 == 0, n // 2, n - n // 7 - 1), n)),
        (torch.arange(-3, 100),),
    ),
    "lanes of an activation": (lanes(lambda y: y > 1e-2, F.hardswish), (normal(50).clamp(max=2.5),)),
    "gradient": (
        lambda c, xs: fh.value_and_grad(
            lambda c, xs: fh.scan(lambda c, x: (torch.tanh(c * 0.9 + x), c), c, xs)[1].square().sum(), argnums=(0, 1)
        )(c, xs),
        (C, XS),
    ),
    **{
        f"overflow of {dtype}": (
            scan(lambda c, _: (c * 3 + 7, (c >> 1) ^ c)),
            (torch.arange(N).to(dtype) * 3, XS),
        )
        for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    },
}

BY_STEPS: dict[str, Program] = {
    "rows that swap places": (scan(lambda c, x: (torch.tanh(c.flip(0) * x), c)), (normal(5, 12), normal(STEPS, 12))),
    "a square, transposed": (
        lambda w, c, xs: fh.scan(lambda c, x: ((c * w).t() + x, c), c, xs),
        (normal(9), normal(9, 9), normal(STEPS, 9, 9)),
    ),
    "another lane": (scan(lambda c, x: (torch.tanh(c.flip(0) + x), c * 2)), (C, XS)),
    "rolls": (
        lambda c: fh.fori_loop(
            0, 3, lambda _, c: c.roll(1, 0) + c.roll((-1, 7), (1, -1)) * 0.5 + c.roll(5) + c.roll(0, 1), c
        ),
        (torch.arange(35.0).reshape(5, 7),),
    ),
    "another lane, later": (scan(lambda c, x: ((c + x).roll(1) * 0.5, c)), (C, XS)),
    "a lane for all": (scan(lambda c, x: (c * 0.5 + (c + x)[:1], c)), (C, XS)),
    "looked up in the carry": (scan(lambda c, x: (c[(c.abs() * 3).long() % 7] + x, c)), (C, XS)),
    "softmax": (scan(lambda c, x: (torch.softmax(c.roll(1) + x, 0), c.sum())), (C, XS)),
    "slices": (scan(lambda c, x: (torch.cat([c[1:], x[:1]]), c)), (C, XS)),
    "another lane under a condition": (scan(lambda c, x: (F.pad(c[:-1], (1, 0)) + x, c)), (C, XS)),
    "a value under a condition": (scan(lambda c, x: (F.pad(torch.sin(c)[1:] * x[1:], (0, 1)), c)), (C, XS)),
    "transposed": (scan(lambda c, x: (torch.sin(c).t() + x, c)), (normal(8, 8), normal(STEPS, 8, 8))),
    "a sum over a square and its transpose": (
        scan(lambda c, x: (torch.tanh((c + c.t() * x).mean(1)) * x.t(), (c * c.t()).amax(0))),
        (normal(N, N), normal(STEPS, N, N)),
    ),
    "a sum over a square of odd size and its transpose": (
        scan(lambda c, x: (c * 0.9, torch.where((torch.arange(33) > 16)[:, None], c.t(), x).sum(0))),
        (normal(33, 33), normal(STEPS, 33, 33)),
    ),
    "places of the largest in half precision": (
        scan(lambda c, x: (c * 0.5, ((c + x.t()).argmax(0), (c.t() - x).argmin(1)))),
        (normal(33, 33).half(), normal(STEPS, 33, 33).half()),
    ),
    "sizes": (
        lambda c, xs: fh.scan(lambda c, x: ((c[0] + x, c[1] + c[0].sum()), c[1]), (c, c.sum()), xs),
        (C, XS),
    ),
    "buffer": (
        lambda xs: fh.fori_loop(
            0, STEPS, lambda i, b: torch.index_copy(b, 0, i.reshape(1), (b.sum(0) * 0.1 + 1)[None]), xs
        ),
        (XS,),
    ),
    "vector while": (lambda c: fh.while_loop(lambda s: s.abs().max() > 0.1, lambda s: s * 0.9, c), (C,)),
    "lanes that may fail": (
        lambda n: fh.vmap(
            lambda n: fh.while_loop(lambda s: s[1] > 0, lambda s: (s[0] + 100 // s[1], s[1] - 1), (n * 0, n))[0]
        )(n),
        (torch.arange(5, 40),),
    ),
    "a mask that is no mask": (
        lambda c: fh.while_loop(
            lambda s: s[0].any(), lambda s: (s[0] & (s[1] < 3), s[1] + s[0], s[2] + 1), (c > 0, c, c * 0)
        ),
        (C,),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_LANES)
def test_a_block_of_lanes_runs_through_all_steps(name: str) -> None:
    f, args = BY_LANES[name]
    reports = check(f, *args)
    assert reports and set(reports) == {LoopReport(reports[0].operator, "lanes")}


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_STEPS)
def test_what_reads_other_lanes_runs_step_by_step(name: str) -> None:
    f, args = BY_STEPS[name]
    (report,) = check(f, *args)
    assert report.taken == "steps" and report.reason


def test_a_scan_is_a_kernel() -> None:
    f, args = BY_LANES["pointwise"]
    assert check(f, *args) == [LoopReport("scan", "lanes")]


def test_a_carry_read_at_another_lane() -> None:
    f, args = BY_STEPS["another lane"]
    (report,) = check(f, *args)
    assert report.taken == "steps" and "is accessed at another lane" in str(report.reason)


@pytest.mark.slow
@pytest.mark.parametrize(
    "f",
    [
        lambda c, xs: fh.scan(lambda c, x: (fh.fori_loop(0, 5, lambda i, c: torch.sin(c) + x * i, c), c), c, xs),
        lambda c, xs: fh.scan(
            lambda c, x: (
                fh.fori_loop(
                    0, 3, lambda i, c: fh.while_loop(lambda v: v.abs().max() > 1, lambda v: v * 0.5, c + x * i), c
                ),
                c,
            ),
            c,
            xs,
        ),
        lambda c, xs: fh.scan(
            lambda c, x: (fh.cond(x.sum() > 0, lambda c: c + x, lambda c: c.flip(0) * 0.5, c), c), c, xs
        ),
        lambda c, xs: fh.scan(
            lambda c, x: (
                fh.switch((x.sum().abs() * 2).long() % 3, [lambda c: c + x, lambda c: c * 0.5, lambda c: c.flip(0)], c),
                c,
            ),
            c,
            xs,
        ),
    ],
    ids=["scan in scan", "three deep", "cond", "switch"],
)
def test_loops_and_branches_in_a_body(f: Callable[..., Any]) -> None:
    assert "native" not in taken(check(f, C, XS))


REFUSED = {
    "no steps": (scan(lambda c, x: (c + x, c)), (C, XS[:0]), "no step"),
    "histogram": (scan(lambda c, x: (c + x.histc(3).sum(), c)), (C, XS), "aten.histc"),
    "large product": (lambda w, c: fh.fori_loop(0, 3, lambda _, c: c @ w, c), (normal(256, 256),) * 2, "BLAS"),
    "random": (scan(lambda c, x: (c + torch.poisson(c.exp()), x)), (C, XS), "aten.poisson"),
    "inner": (
        scan(lambda c, x: (fh.fori_loop(0, 3, lambda _, c: c + c.histc(3).sum() + x, c), c)),
        (C, XS),
        "scan in its body",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_kernel_says_why(name: str) -> None:
    f, args, reason = REFUSED[name]
    made = plan(f, *args)
    assert made.loops[0].taken == "native" and reason in str(made.loops[0].reason)
    assert loop_kernel not in [node.target for node in made.body.module.graph.nodes]


def around(c: Tensor, xs: Tensor) -> Any:
    """Work before and after loops that begin with one value, and outputs that share memory."""
    zeros = torch.zeros(N)
    carry, ys = fh.scan(lambda c, x: (torch.tanh(c + x), c * x), zeros, xs * 2)
    total, _ = fh.scan(lambda c, x: (c + x, None), zeros, ys)
    last = fh.while_loop(lambda s: s.abs().max() > 0.1, lambda s: s * 0.9, total + c)
    return carry, carry, ys[2:], ys.t(), total, last, c


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"cpp_wrapper": True}, {"loop_kernels": False}], ids=str)
def test_kernels_among_other_work(options: dict[str, Any]) -> None:
    f, expected = fh.jit(around, options=options), fh.jit(around, backend="eager")(C, XS)
    same(f(C, XS), expected)
    same(f(C, XS), expected)


@pytest.mark.slow
def test_a_kernel_in_a_native_loop_and_in_a_branch() -> None:
    def f(c: Tensor, xs: Tensor) -> Any:
        inner = lambda c: fh.fori_loop(0, 3, lambda i, c: torch.sin(c) + i, c)
        outer = fh.scan(lambda c, x: (inner(c) + x.histc(3).sum(), c), c, xs)
        return outer, fh.cond(c.sum() > 0, inner, lambda c: c * 2, c)

    assert taken(list(plan(f, C, XS).loops)) == ["native", "lanes", "lanes"]
    same(fh.jit(f)(C, XS), fh.jit(f, backend="eager")(C, XS))


@pytest.mark.slow
def test_gradients_through_a_compiled_loop() -> None:
    f = scan(lambda c, x: (torch.tanh(c * 0.9 + x), c))
    grads = []
    for backend in ("inductor", "eager"):
        c, xs = C.clone().requires_grad_(), XS.clone().requires_grad_()
        carry, ys = fh.jit(f, backend=backend)(c, xs)
        grads.append(torch.autograd.grad(carry.sum() + ys.square().sum(), (c, xs)))
    same(grads[0], grads[1])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8], ids=str)
def test_an_integer_division_by_zero_raises(dtype: torch.dtype) -> None:
    def divisions(c: Tensor, x: Tensor) -> Any:
        return torch.div(c, x, rounding_mode="trunc") + c // x, c % x

    f, g = (fh.jit(scan(divisions), backend=backend) for backend in ("inductor", "eager"))
    xs = torch.arange(1, 3 * 67 + 1).reshape(3, 67).to(dtype)
    c = xs[2].clone()
    same(f(c, xs), g(c, xs))
    with pytest.raises(RuntimeError, match="index"):  # torch's note of a zero is in its stack frame from here on
        torch.compile(lambda x, i: x[i] * 2)(torch.ones(3), torch.tensor([1, 3]))
    xs[1, 66] = 0
    if torch.__version__ >= (2, 13):  # before, Inductor's integer division by zero ends the process
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            f(c, xs)


@contextlib.contextmanager
def interrupted_in(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(), (9,)], ids=["lanes", "steps"])
def test_a_signal_ends_a_loop_that_does_not(shape: tuple[int, ...]) -> None:
    f = fh.jit(lambda x: fh.while_loop(lambda s: s.sum() > -1, lambda s: torch.sin(s).abs(), x))
    compiled = f.lower(torch.ones(shape)).compile()

    with pytest.raises(KeyboardInterrupt), interrupted_in(0.5):
        compiled(torch.ones(shape))


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [fh.jit, torch.compile])
def test_a_signal_ends_loops_of_torch_in_cpp(wrap: Callable[..., Any]) -> None:
    """And the next call is right."""

    def f(x: Tensor, n: Tensor) -> Tensor:
        return fh.fori_loop(0, n, lambda _, x: (torch.linalg.qr(x)[0] + x) / 4, x)

    compiled, x = wrap(f), torch.eye(3)
    few = torch.tensor(3)
    same(compiled(x, few), f(x, few), rtol=1e-4, atol=1e-5)
    with pytest.raises(KeyboardInterrupt), interrupted_in(0.5):
        compiled(x, torch.tensor(10**12))
    same(compiled(x, few), f(x, few), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_kernel_that_takes_long_leaves_python_to_other_threads() -> None:
    """So the main thread handles a signal that comes meanwhile."""
    f = fh.jit(lambda x, n: fh.fori_loop(0, n, lambda _, x: torch.sin(x * 1.01 + 0.1), x))
    f(torch.tensor(1.0), torch.tensor(1))
    steps = torch.tensor(3 * 10**7)
    results: list[Tensor] = []
    thread = threading.Thread(target=lambda: results.append(f(torch.tensor(1.0), steps)))
    thread.start()
    turns = 0
    while thread.is_alive():
        time.sleep(0.005)
        turns += 1
    assert turns > 5
    same(results, [f(torch.tensor(1.0), steps)])


_ENDS_FIRST = """
import threading, time, torch, functorch_hops as fh
f = fh.jit(lambda x, n: fh.fori_loop(0, n, lambda _, x: torch.sin(x * 1.01 + 0.1), x))
f(torch.ones(64), torch.tensor(1))
slow = type("Slow", (), {"__del__": lambda self, sleep=time.sleep: sleep(3)})()
threading.Thread(target=f, args=(torch.ones(64), torch.tensor(10**7)), daemon=True).start(); time.sleep(0.2)
"""


@pytest.mark.slow
def test_python_may_end_before_a_kernel() -> None:
    subprocess.run([sys.executable, "-c", _ENDS_FIRST], check=True, timeout=300)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("n", [4096, 5000])
def test_threads_do_not_change_results(n: int, two_threads: None) -> None:
    step = lambda c, x: (torch.tanh(c * x) + torch.sin(c - x), torch.exp(-c * c))
    loops = [
        (scan(step), (normal(n), normal(300, n))),
        (lanes(lambda y: y > 1e-3, lambda y: y - y * y.sigmoid() * 1e-3), (normal(n),)),
    ]
    for f, args in loops:
        compiled = fh.jit(f)
        threaded = compiled(*args)
        torch.set_num_threads(1)
        alone = compiled(*args)
        torch.set_num_threads(2)
        assert all(map(torch.equal, optree.tree_leaves(threaded), optree.tree_leaves(alone)))


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 5999])
def test_an_error_in_a_thread_is_raised(place: int, two_threads: None) -> None:
    f = fh.jit(scan(lambda c, x: (c // x + x, (c // x) // x)))
    rows = torch.full((2000, 6000), 3)
    f(rows[0], rows)
    rows[-1, place] = 0
    if torch.__version__ >= (2, 13):  # before, Inductor's integer division by zero ends the process
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            f(rows[0], rows)


@pytest.mark.slow
def test_a_signal_ends_the_loops_of_all_threads(two_threads: None) -> None:
    f = fh.jit(lanes(lambda y: y > -1, lambda y: torch.sin(y).abs()))
    with pytest.raises(KeyboardInterrupt), interrupted_in(0.5):
        f(torch.cat([-2 * torch.ones(6000), torch.ones(6000)]))
    with pytest.raises(KeyboardInterrupt), interrupted_in(0.5):
        f(torch.ones(12000))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["Lowering", "load"])
def test_a_failure_warns_and_runs_the_native_loop(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("first line\nno such compiler")

    monkeypatch.setattr(planning, part, fail)
    f = scan(lambda c, x: (torch.tanh(c * len(part) + x), c))
    with pytest.warns(RuntimeWarning, match="no such compiler"):
        got = fh.jit(f)(C, XS)
    same(got, f(C, XS))


def test_the_operator_on_fake_tensors() -> None:
    f, args = BY_LANES["pointwise"]
    (node,) = plan(f, *args).body.module.graph.find_nodes(op="call_function", target=loop_kernel)
    torch.library.opcheck(loop_kernel, ([C, XS], *node.args[1:]), test_utils="test_faketensor")
