"""``torch.autograd.detect_anomaly()`` around captured and jitted functions: on the first call, with loop and step."""

from __future__ import annotations

import warnings

import pytest
import torch

import functorch_hops as fh

XS = torch.tensor([1.0, 0.0, 2.0])
BACKENDS = ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


def scanned(x, reverse=False):
    return fh.scan(lambda c, a: ((c * a).sqrt(), c), x, XS, reverse=reverse)[0]  # HERE


def countdown(x):
    """In its step 1 the root of 0 has no derivative."""
    body = lambda s: ((s[0] * (s[1] != 2)).sqrt() + 1, s[1] - 1)
    return fh.while_loop(lambda s: s[1] > 0, body, (x, 3))[0]


def nested(x):
    return fh.fori_loop(0, 2, lambda i, c: scanned(c + i), x)


def caught(f, x) -> fh.AnomalyError:
    x = x.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autograd.detect_anomaly(), pytest.raises(fh.AnomalyError) as error:
            f(x).sum().backward()
    assert isinstance(error.value, RuntimeError)
    return error.value


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("function", "iteration"),
    [(scanned, (1,)), (lambda x: scanned(x, reverse=True), (1,)), (countdown, (1,)), (nested, (1, 1))],
    ids=["scan", "reversed", "while", "nested"],
)
def test_the_loop_and_the_step_are_named(function, iteration, backend) -> None:
    jitted = fh.jit(function, backend=backend)
    for _ in range(2):
        error = caught(jitted, torch.tensor(1.0))
        assert error.iteration == iteration
        assert f"in step {iteration[-1]} of" in str(error) and "aten." in str(error) and __file__ in str(error)


def test_in_order_of_the_forward_pass() -> None:
    """Reversed, the last element comes first."""
    xs = torch.tensor([1.0, 2.0, 0.0, 3.0])
    for reverse, step in ((False, 2), (True, 1)):
        f = lambda x, r=reverse: fh.scan(lambda c, a: ((c * a).sqrt(), c), x, xs, reverse=r)[0]
        assert caught(fh.jit(f, backend="eager"), torch.tensor(1.0)).iteration == (step,)


def test_captured_loops_under_vmap() -> None:
    def captured(x):
        with fh.eager_capture():
            return fh.vmap(scanned)(x)

    error = caught(captured, torch.ones(2))
    assert error.iteration == (1,) and "# HERE" in str(error)


def test_without_loops() -> None:
    f = lambda x: torch.where(x > 0, x.sqrt(), 0.0)
    error = caught(fh.jit(f, backend="eager"), torch.zeros(()))
    assert error.iteration == () and "nan values" in str(error)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_gradients_are_the_same_bits(backend) -> None:
    def gradient(x):
        x = x.clone().requires_grad_()
        jitted(nested_fine)(x).backward()
        return x.grad

    jitted = lambda f: fh.jit(f, backend=backend)
    nested_fine = lambda x: fh.fori_loop(0, 3, lambda i, c: (c * x).sin() + i, x)
    plain = gradient(torch.tensor(0.3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autograd.detect_anomaly():
            assert torch.equal(gradient(torch.tensor(0.3)), plain)
        with torch.autograd.detect_anomaly(check_nan=False):
            x = torch.tensor(1.0, requires_grad=True)
            jitted(scanned)(x).backward()
            assert x.grad.isnan()
