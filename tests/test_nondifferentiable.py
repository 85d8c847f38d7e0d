"""What has no derivative raises, plain and captured: never zeros, never None."""

from __future__ import annotations

import contextlib

import pytest
import torch

import functorch_hops as fh

X = torch.tensor([1.5, 2.5])
MODES = {"plain": contextlib.nullcontext, "captured": fh.eager_capture}


def backward(f):
    return lambda x: torch.autograd.grad(f(y := x.clone().requires_grad_()), y)[0]


LOOPS = {
    "cond": lambda op: lambda x: fh.cond(x.sum() > 0, op, torch.sin, x).sum(),
    "switch": lambda op: lambda x: fh.switch(torch.tensor(1), [torch.sin, op], x).sum(),
    "while_loop": lambda op: lambda x: fh.while_loop(lambda v: v.sum() < 3, lambda v: op(v) + 9, x / 2).sum(),
    "fori_loop": lambda op: lambda x: fh.fori_loop(0, 2, lambda i, v: op(v), x).sum(),
    "scan": lambda op: lambda x: fh.scan(lambda c, _: (c, op(c)), x, None, 2)[1].sum(),
    "map": lambda op: lambda x: fh.map(op, x).sum(),
    "associative_scan": lambda op: lambda x: fh.associative_scan(lambda a, b: op(a) + b, x).sum(),
    "checkpoint": lambda op: lambda x: fh.checkpoint(op)(x).sum(),
    "jit": lambda op: fh.jit(lambda x: op(x).sum(), backend="eager"),
}
TRANSFORMS = {
    "grad": lambda f: fh.grad(f),
    "vjp": lambda f: lambda x: fh.vjp(f, x)[1](torch.ones(())),
    "linearize": lambda f: lambda x: fh.linearize(f, x)[1](x),
    "jvp": lambda f: lambda x: fh.jvp(f, (x,), (x,)),
    "hessian": lambda f: fh.hessian(f),
    "vmap(grad)": lambda f: lambda x: fh.vmap(fh.grad(f))(x.expand(2, 2)),
    "backward": backward,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("loop", LOOPS)
def test_an_operator_without_a_derivative(loop, transform, mode) -> None:
    """torch has no derivative of its zeta function, in either mode."""
    f = LOOPS[loop](lambda v: torch.special.zeta(v + 2, v + 1))
    with MODES[mode](), pytest.raises(NotImplementedError, match=r"derivative for 'zeta'|forward AD with special_zeta"):
        TRANSFORMS[transform](f)(X)


class ReverseOnly(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return g * 3 * ctx.saved_tensors[0] ** 2


# associative_scan maps it in plain eager, where torch (2.13) fails on its way to this error.
WITH_FUNCTION = [loop for loop in LOOPS if loop != "associative_scan"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loop", WITH_FUNCTION)
def test_a_function_without_forward_mode(loop, mode) -> None:
    """torch's error in plain eager, the library's where the function was captured."""
    f = LOOPS[loop](ReverseOnly.apply)
    with MODES[mode](), pytest.raises((NotImplementedError, fh.ArgumentTypeError), match=r"jvp|forward-mode"):
        fh.jvp(f, (X,), (X,))


@pytest.mark.parametrize("loop", WITH_FUNCTION)
def test_forward_over_reverse_of_a_function_without_forward_mode(loop) -> None:
    """Its backward is ordinary code, which has forward mode; where torch's own engine runs the function, it fails."""
    with fh.eager_capture():
        got = fh.hessian(LOOPS[loop](ReverseOnly.apply))(X)
    torch.testing.assert_close(got, fh.hessian(LOOPS[loop](lambda x: x**3))(X))


@pytest.mark.parametrize("mode", MODES)
def test_an_output_that_no_gradient_reaches_says_so(mode) -> None:
    x = X.clone().requires_grad_()
    branch = lambda v: (v * 2, v.detach() * 2, v.argmax())
    with MODES[mode]():
        tracked, detached, index = fh.cond(torch.tensor(True), branch, branch, x)
    assert tracked.requires_grad
    for output in (detached, index):
        assert not output.requires_grad
        with pytest.raises(RuntimeError, match="does not require grad"):
            torch.autograd.grad(output.sum(), x)


@pytest.mark.parametrize("mode", MODES)
def test_an_integer_operand_has_no_gradient(mode) -> None:
    """Where it is closed over or passed beside; where it is differentiated, it is refused (``misuses``)."""
    steps = torch.tensor(3)
    with MODES[mode]():
        f = lambda x, n: fh.fori_loop(0, n, lambda i, v: v * (steps - i), x).sum()
        torch.testing.assert_close(fh.grad(f)(X, steps), torch.full((2,), 6.0))
        with pytest.raises(fh.ArgumentTypeError, match="can't be differentiated"):
            fh.grad(f, argnums=(0, 1))(X, steps)
