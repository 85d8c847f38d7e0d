"""A call that fails leaves nothing behind, at any depth and in any thread; errors of the user's own pass through
unchanged. (The calls of ``misuses``, one by one, are in test_messages.py.)
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref

import numpy as np
import pytest
import torch

import functorch_hops as fh
from functorch_hops.trace.capture import Capture
from leftovers import are_gone, correct_call, nothing_left_behind
from misuses import MISUSES

AROUND = {
    "vmap": lambda f: torch.func.vmap(f)(torch.ones(2, 2)),
    "grad": lambda f: torch.func.grad(lambda x: f(x).sum())(torch.ones(2)),
    "jvp(grad)": lambda f: fh.jvp(fh.grad(lambda x: f(x).sum()), (torch.ones(2),), (torch.ones(2),)),
    "vmap(grad)": lambda f: fh.vmap(fh.grad(lambda x: f(x).sum()))(torch.ones(2, 2)),
    "a scan": lambda f: fh.scan(lambda c, x: (f(c), x), torch.ones(2), torch.ones(3)),
    "a branch": lambda f: fh.cond(torch.tensor(True), f, f, torch.ones(2)),
    "a vmap in a scan": lambda f: fh.scan(lambda c, x: (fh.vmap(f)(c), x), torch.ones(2, 2), torch.ones(3)),
    "a grad in a loop": lambda f: fh.fori_loop(0, 3, lambda i, c: fh.grad(lambda v: f(v).sum())(c), torch.ones(2)),
    "a jvp in a map": lambda f: fh.map(lambda x: fh.jvp(f, (x,), (x,))[1], torch.ones(3, 2)),
    "a hessian in a branch": lambda f: fh.cond(
        torch.tensor(True), fh.hessian(lambda v: f(v).sum()), fh.hessian(torch.sum), torch.ones(2)
    ),
    "a jacrev in a vmap in jit": lambda f: fh.jit(fh.vmap(fh.jacrev(f)), backend="eager")(torch.ones(2, 2)),
    "backward": lambda f: f(torch.ones(2, requires_grad=True)).sum().backward(),
    "jit": lambda f: fh.jit(f, backend="eager")(torch.ones(2)),
    "grad of jit": lambda f: fh.grad(lambda x: fh.jit(f, backend="eager")(x).sum())(torch.ones(2)),
    "checkpoint": lambda f: fh.grad(lambda x: fh.checkpoint(f)(x).sum())(torch.ones(2)),
    "make_graph": lambda f: fh.make_graph(f)(torch.ones(2)),
    "eval_shape": lambda f: fh.eval_shape(f, torch.ones(2)),
    "export": lambda f: fh.export(f, (torch.ones(2),)),
}


class UserError(Exception):
    """What the library can't know."""


@pytest.mark.parametrize("error", [UserError("mine"), KeyboardInterrupt(), RecursionError("mine")], ids=repr)
@pytest.mark.parametrize("mode", [fh.eager_capture, contextlib.nullcontext], ids=["captured", "plain"])
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_an_error_of_the_user_passes_through(around, mode, error) -> None:
    """An exception of a body arrives as it was raised, from any depth."""

    def fails(x):
        def body(v):
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                raise error

        return fh.while_loop(lambda v: v.sum() < 100, body, x)

    with nothing_left_behind(), mode(), pytest.raises(type(error)) as caught:
        around(fails)
    assert caught.value is error


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_a_mismatch_below_transforms(around) -> None:
    def mismatch(x):
        return fh.cond(x.sum() > 0, lambda v: v, lambda v: v.to(torch.float16), x)

    with nothing_left_behind(), fh.eager_capture(), pytest.raises(fh.MetadataMismatchError):
        around(mismatch)


def test_an_error_that_the_user_catches_in_a_body() -> None:
    """The capture of the outer body goes on after that of the inner one has failed."""

    def failing(v):
        raise ValueError("in either branch")

    def step(c, x):
        try:
            fh.cond(c.sum() > 0, failing, failing, c)
        except ValueError:
            return c * x, c
        raise AssertionError("no error")

    with nothing_left_behind(), fh.eager_capture():
        carry, ys = fh.scan(step, torch.ones(2), torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(carry, torch.full((2,), 6.0))
    torch.testing.assert_close(ys, torch.tensor([[1.0, 1.0], [2.0, 2.0]]))


@pytest.mark.parametrize(
    "code",
    [
        # A condition without value, a write, and a leak: in a function that the user wrote, called by jit.
        "lambda x: x if x.sum() > 0 else -x",
        "lambda x: fh.map(lambda row: row.mul_(2), x)",
        "lambda x: fh.cond(x.sum() > 0, lambda v: v, lambda v: v[:1], x)",
    ],
)
def test_a_failed_capture_is_not_cached(code) -> None:
    jitted = fh.jit(eval(code, {"fh": fh}), backend="eager")
    for misses in (1, 2):
        with nothing_left_behind(), pytest.raises(fh.FunctorchHopsError):
            jitted(torch.ones(3, 2))
        assert jitted.cache_info() == (0, misses, 128, 0)


def test_a_backend_that_fails_is_asked_again() -> None:
    """Its error passes through, the capture stays, and the next call compiles."""
    attempts = []

    def backend(module, example_inputs):
        attempts.append(module)
        if len(attempts) < 3:
            raise UserError("out of registers")
        return module.forward

    double = fh.jit(lambda x: fh.scan(lambda c, row: (c + row, c), x[0], x)[0], backend=backend)
    x = torch.ones(3, 2)
    for transform in (lambda f: f, fh.vmap):
        with nothing_left_behind(), pytest.raises(UserError, match="registers"):
            transform(double)(x if transform is not fh.vmap else x.expand(2, 3, 2))
    torch.testing.assert_close(double(x), torch.full((2,), 4.0))


def test_a_failed_capture_keeps_nothing_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the capture nor the tensors of the user that it lifted."""

    def fail() -> weakref.ref:
        weight = torch.ones(2)
        with fh.eager_capture(), pytest.raises(fh.DataDependentError):
            fh.cond(torch.tensor(True), lambda x: x * (x * weight).sum().item(), torch.sin, torch.ones(2))
        return weakref.ref(weight)

    captures = weakref.WeakSet[Capture]()
    start = Capture.__init__
    monkeypatch.setattr(Capture, "__init__", lambda self, *args: captures.add(self) or start(self, *args))
    references = [fail() for _ in range(3)]
    assert captures
    assert are_gone(*references)
    assert not captures


def test_printing_a_traced_tensor_works() -> None:
    """It has no values; its text says what it is, also after a capture has ended."""
    seen = []

    def step(c, x):
        seen.append((f"{c}", str(x), repr(fh.vmap(lambda v: seen.append(repr(v)) or v)(c))))
        return c + x, None

    with nothing_left_behind(), fh.eager_capture(), pytest.warns(RuntimeWarning, match="changes closure '.*seen'"):
        fh.scan(step, torch.ones(2), torch.ones(3))
    vector, scalar = "Traced(float32[2]@cpu)", "Traced(float32[]@cpu)"
    assert seen == [scalar, (vector, scalar, vector)]


ones = torch.ones
NUMPY = {
    "cond": lambda n: fh.cond(np.bool_(True), torch.sin, torch.cos, ones(2)),
    "cond, 0-d array": lambda n: fh.cond(np.array(0.5), torch.sin, torch.cos, ones(2)),
    "switch": lambda n: fh.switch(n, [torch.sin, torch.cos, torch.exp], ones(2)),
    "while_loop": lambda n: fh.while_loop(lambda x: x.sum() < 99, lambda x: x + 1, ones(2), max_steps=n),
    "condition": lambda n: fh.while_loop(lambda x: np.bool_(True), torch.sin, ones(2), max_steps=n),
    "fori_loop": lambda n: fh.fori_loop(n - n, n, lambda i, x: x + i, ones(2), unroll=n),
    "scan": lambda n: fh.scan(lambda c, x: (c + 1, c), ones(2), None, n, unroll=n, reverse=np.True_),
    "map": lambda n: fh.map(torch.sin, ones(5), batch_size=n),
    "associative_scan": lambda n: fh.associative_scan(torch.add, ones(2, 2, 3), dim=n),
    "vmap": lambda n: fh.vmap(torch.sin, chunk_size=n)(ones(5)),
    "grad": lambda n: fh.grad(lambda x, y, z: (x * z**2).sum(), argnums=n)(*ones(3, 2)),
    "jacfwd": lambda n: fh.jacfwd(torch.sin, chunk_size=n)(ones(3)),
}


@pytest.mark.parametrize("mode", [fh.eager_capture, contextlib.nullcontext], ids=["captured", "plain"])
@pytest.mark.parametrize("call", NUMPY.values(), ids=NUMPY)
def test_numbers_of_numpy_are_numbers(call, mode) -> None:
    with mode():
        expected = call(2)
        for number in (np.int64(2), np.int32(2), np.array(2)):
            torch.testing.assert_close(call(number), expected)


def test_map_in_chunks_over_an_open_size_and_with_a_constant() -> None:
    """The constant of an output comes back once, in chunks as without."""
    chunked = lambda x: fh.map(lambda v: {"y": v.sin(), "kind": "sine"}, x, batch_size=2)
    mapped = fh.jit(chunked, dynamic=True, backend="eager")
    for n in (5, 7):
        result = mapped(torch.ones(n))
        assert result["kind"] == "sine"
        torch.testing.assert_close(result["y"], torch.ones(n).sin())
    assert mapped.cache_info().misses == 1


def test_a_body_that_raises_in_the_second_call_only() -> None:
    """A condition that fails after its body was captured."""
    calls = []

    def condition(v):
        calls.append(v)
        if len(calls) > 1:
            raise UserError
        return v.sum() < 9

    with nothing_left_behind(), pytest.raises(UserError):
        fh.while_loop(condition, lambda v: v + 1, torch.ones(2))


def test_threads_capture_apart() -> None:
    """One thread fails all the time, others compute; what they capture does not mix."""
    stop, failures = threading.Event(), []

    def fail() -> None:
        while not stop.is_set():
            with contextlib.suppress(fh.FunctorchHopsError):
                MISUSES["cond_shapes_differ"]("captured")

    def compute() -> None:
        try:
            for _ in range(3):
                with fh.eager_capture():
                    correct_call()
        except BaseException as error:  # noqa: BLE001 - a thread would swallow it
            failures.append(error)

    failing = threading.Thread(target=fail)
    computing = [threading.Thread(target=compute) for _ in range(2)]
    for thread in (failing, *computing):
        thread.start()
    for thread in computing:
        thread.join()
    stop.set()
    failing.join()
    assert not failures


def test_threads_capture_in_turn() -> None:
    """No capture begins while another one runs, and what one thread's left behind is refused in that of the other."""
    begun, shared, order, results = threading.Event(), {}, [], {}

    def run(name: str) -> None:
        def body(x):
            order.append(f"{name} begins")
            begun.set()
            time.sleep(0.1)
            leaked = shared.get("tensor")
            shared["tensor"] = x * 2
            try:
                return x + (1 if leaked is None else leaked)
            finally:
                order.append(f"{name} ends")

        if name == "b":
            begun.wait(10)
        try:
            with fh.eager_capture():
                results[name] = fh.cond(torch.tensor(True), body, torch.sin, torch.ones(2))
        except fh.LeakedTensorError as error:
            results["leak"] = str(error).splitlines()[0]

    threads = [threading.Thread(target=run, args=name) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order == ["a begins", "a ends", "b begins", "b ends"]
    torch.testing.assert_close(results["a"], torch.full((2,), 2.0))
    assert results["leak"] == "cond: a tensor made while true_fn was captured is used outside of that capture"
