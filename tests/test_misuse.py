"""A call that fails leaves nothing behind: no transform level, no mode, no capture; and the next correct call works."""

from __future__ import annotations

import contextlib
import threading

import pytest
import torch
from torch._C._functorch import peek_interpreter_stack
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import functorch_hops as fh
from misuses import MISUSES, Misuse

CALLS = [
    pytest.param(misuse, mode, id=f"{name}-{mode}")
    for name, misuse in MISUSES.items()
    for mode in (["captured"] if misuse.captured else ["plain", "captured"])
]


def state():
    """What a call may have left switched on, on this thread."""
    return {
        "transform": peek_interpreter_stack(),
        "function modes": list(_get_current_function_mode_stack()),
        "dispatch modes": list(_get_current_dispatch_mode_stack()),
        "grad": torch.is_grad_enabled(),
        "forward grad": torch.autograd.forward_ad._is_fwd_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "included keys": torch._C._dispatch_tls_local_include_set().raw_repr(),
        "excluded keys": torch._C._dispatch_tls_local_exclude_set().raw_repr(),
        "saved tensor hooks": torch._C._autograd._top_saved_tensors_default_hooks(True),
    }


def correct_call():
    """Every part of the machinery once: capture, lanes, both derivatives."""

    def f(x):
        grown = fh.while_loop(lambda v: v.sum() < 9, lambda v: v * 2, x.abs() + 1)
        return fh.cond(x.sum() > 0, torch.sin, torch.cos, grown).sum()

    x = torch.tensor([[0.5, 1.0], [-1.0, 0.2]], dtype=torch.float64)

    def oracle(x):
        v = x.abs() + 1
        while v.sum() < 9:
            v = v * 2
        return (v.sin() if x.sum() > 0 else v.cos()).sum()

    torch.testing.assert_close(fh.vmap(fh.grad(f))(x), torch.stack([torch.func.grad(oracle)(v) for v in x]))


@contextlib.contextmanager
def nothing_left_behind():
    before = state()
    yield
    after = state()
    assert after == before
    correct_call()


def call(misuse: Misuse, mode: str) -> None:
    with fh.eager_capture() if mode == "captured" else contextlib.nullcontext():
        misuse.call()


@pytest.mark.parametrize(("misuse", "mode"), CALLS)
def test_a_misuse(misuse: Misuse, mode: str) -> None:
    with nothing_left_behind(), pytest.raises(misuse.error):
        call(misuse, mode)


AROUND = {
    "vmap": lambda f: torch.func.vmap(f)(torch.ones(2, 2)),
    "grad": lambda f: torch.func.grad(lambda x: f(x).sum())(torch.ones(2)),
    "jvp(grad)": lambda f: fh.jvp(fh.grad(lambda x: f(x).sum()), (torch.ones(2),), (torch.ones(2),)),
    "vmap(grad)": lambda f: fh.vmap(fh.grad(lambda x: f(x).sum()))(torch.ones(2, 2)),
    "a scan": lambda f: fh.scan(lambda c, x: (f(c), x), torch.ones(2), torch.ones(3)),
    "a branch": lambda f: fh.cond(torch.tensor(True), f, f, torch.ones(2)),
    "a vmap in a scan": lambda f: fh.scan(lambda c, x: (fh.vmap(f)(c), x), torch.ones(2, 2), torch.ones(3)),
    "jit": lambda f: fh.jit(f, backend="eager")(torch.ones(2)),
    "grad of jit": lambda f: fh.grad(lambda x: fh.jit(f, backend="eager")(x).sum())(torch.ones(2)),
    "checkpoint": lambda f: fh.grad(lambda x: fh.checkpoint(f)(x).sum())(torch.ones(2)),
    "make_graph": lambda f: fh.make_graph(f)(torch.ones(2)),
    "eval_shape": lambda f: fh.eval_shape(f, torch.ones(2)),
    "export": lambda f: fh.export(f, (torch.ones(2),)),
}


class UserError(Exception):
    """What the library can't know."""


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_an_error_of_the_user_passes_through(around) -> None:
    """An exception of a body arrives as it was raised, from any depth."""
    error = UserError("mine")

    def fails(x):
        def body(v):
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                raise error

        return fh.while_loop(lambda v: v.sum() < 100, body, x)

    with nothing_left_behind(), fh.eager_capture(), pytest.raises(UserError) as caught:
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

    def step(c, x):
        try:
            fh.cond(c.sum() > 0, lambda v: v, lambda v: v[:1], c)
        except fh.MetadataMismatchError:
            return c * x, c
        raise AssertionError("no error")

    with nothing_left_behind(), fh.eager_capture():
        carry, ys = fh.scan(step, torch.ones(2), torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(carry, torch.full((2,), 6.0))
    torch.testing.assert_close(ys, torch.tensor([[1.0, 1.0], [2.0, 2.0]]))


def test_threads_capture_apart() -> None:
    """One thread fails all the time, others compute; what they capture does not mix."""
    stop, failures = threading.Event(), []

    def fail() -> None:
        while not stop.is_set():
            with contextlib.suppress(fh.FunctorchHopsError):
                call(MISUSES["cond_shapes_differ"], "captured")

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
