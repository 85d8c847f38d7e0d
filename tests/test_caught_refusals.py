"""A captured function that catches what the capture refuses: eager Python would never come to its ``except``."""

from __future__ import annotations

import contextlib

import pytest
import torch

import functorch_hops as fh
from modes import every_mode, same, while_capturing

X = torch.tensor([1.0, 2.0])


def tried(f):
    """What ``f`` gives, zeros where it raises."""

    def g(x):
        try:
            return f(x)
        except Exception:  # noqa: BLE001
            return x * 0

    return g


def writing(x):
    with contextlib.suppress(RuntimeError):
        x.add_(1)
    return x * 2


REFUSED = {
    "a value": (tried(lambda x: x * x.sum().item()), fh.DataDependentError),
    "a branch of Python's": (tried(lambda x: x if x.sum() > 9 else -x), fh.DataDependentError),
    "a write": (writing, fh.InputMutationError),
    "a gradient": (tried(lambda x: x.grad), fh.CaptureError),
    "a size": (tried(lambda x: x * len(torch.nonzero(x))), fh.DataDependentError),
    "a branch on a size": (tried(lambda x: x if x[x > 0].shape == (2,) else -x), fh.DataDependentError),
    "a size as a number": (tried(lambda x: x * sum(range(x.unique().shape[0]))), fh.DataDependentError),
    "memory": (tried(lambda x: x.clone().set_(x.clone())), fh.CaptureError),
    "a seed": (tried(lambda x: x + torch.manual_seed(0).initial_seed()), fh.CaptureError),
    "in a body": (
        tried(lambda x: fh.scan(lambda c, _: (c * float(c.sum()), None), x, length=2)[0]),
        fh.DataDependentError,
    ),
    "around one": (lambda x: fh.map(tried(lambda e: e * float(e)), x), fh.DataDependentError),
    "inside of another": (tried(tried(lambda x: x * float(x.sum()))), fh.DataDependentError),
}


@while_capturing
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_raised_when_the_function_returns(run, name):
    f, error = REFUSED[name]
    with pytest.raises(error) as caught:
        run(lambda x: fh.cond(torch.tensor(True), f, torch.sin, x), X.clone())
    assert "caught this error" in "".join(caught.value.__notes__)
    assert f"at {__file__}" in str(caught.value)


@every_mode
def test_what_eager_python_raises_may_be_caught(run):
    f = lambda x: fh.cond(torch.tensor(True), tried(lambda x: x.reshape(3)), torch.sin, x)
    same(run(f, X), X * 0)
    known = tried(lambda x: x.unknown)
    same(run(lambda x: fh.cond(torch.tensor(True), known, torch.sin, x), X), X * 0)


@every_mode
def test_torch_may_ask_for_a_size_and_go_on(run):
    """In calls that serve each size, what torch catches is its own matter."""
    f = tried(lambda x: x[x > 0].view(2) + torch.ones(2))
    same(run(lambda x: fh.cond(torch.tensor(True), f, torch.sin, x), X), X + 1)


def test_gradients_that_are_asked_for_under_a_bare_except():
    """The capture begins again, with gradients."""

    def f(x):
        try:
            return torch.autograd.grad(x.square().sum(), x)[0]
        except:  # noqa: E722
            return x * 0

    same(fh.jit(f, backend="eager")(X.clone().requires_grad_()), 2 * X)


def failing(*_):
    raise ValueError("not here")


UNTAKEN = {
    "a branch": lambda x: fh.cond(x.sum() > 0, torch.sin, failing, x),
    "one of many": lambda x: fh.switch((x.sum() > 0).long(), [failing, torch.sin, torch.cos], x),
    "a step": lambda x: fh.while_loop(lambda c: c.sum() < 0, failing, x),
    "in a branch": lambda x: fh.cond(x.sum() > 0, UNTAKEN["a branch"], torch.sin, x),
}


@while_capturing
@pytest.mark.parametrize("f", UNTAKEN.values(), ids=UNTAKEN)
def test_an_error_of_code_that_may_not_run_is_not_caught(run, f):
    """Plain eager does not come to it, and gives the other branch's result."""
    with pytest.raises(ValueError, match="not here") as caught:
        run(lambda x: fh.cond(torch.tensor(True), tried(f), torch.sin, x), X.clone())
    assert "caught this error" in "".join(caught.value.__notes__)
    assert not torch.equal(tried(f)(X), X * 0)


@while_capturing
def test_a_disagreement_of_branches_is_not_caught(run):
    f = tried(lambda x: fh.cond(x.sum() > 0, lambda x: x, lambda x: x.sum(), x))
    with pytest.raises(fh.MetadataMismatchError):
        run(lambda x: fh.cond(torch.tensor(True), f, torch.sin, x), X.clone())


@every_mode
def test_an_error_of_all_branches_is_caught(run):
    """Plain eager comes to one of them."""
    same(run(tried(lambda x: fh.cond(x.sum() > 0, failing, failing, x)), X.clone()), X * 0)


@every_mode
def test_an_error_of_the_condition_is_caught(run):
    """Plain eager asks it before the first step."""
    same(run(tried(lambda x: fh.while_loop(failing, torch.sin, x)), X.clone()), X * 0)
    same(run(tried(lambda x: fh.while_loop(failing, torch.sin, x, max_steps=3)), X.clone()), X * 0)


def test_an_error_of_a_condition_that_is_never_asked_is_not_caught():
    f = tried(lambda x: fh.while_loop(failing, torch.sin, x, max_steps=0))
    same(f(X.clone()), X)
    with pytest.raises(ValueError, match="eager Python may not raise"):
        fh.jit(f, backend="eager")(X.clone())


@every_mode
def test_a_branch_may_catch_what_it_raises(run):
    same(run(lambda x: fh.cond(x.sum() > 0, torch.sin, tried(failing), x), X.clone()), X.sin())
