"""What has no derivative raises, plain and captured: never zeros, never None."""

from __future__ import annotations

import contextlib
import gc

import pytest
import torch

import functorch_hops as fh
from modes import captured, every_mode, jitted

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


class OwnError(Exception):
    """What the library can't know; its constructor takes what it likes."""

    def __init__(self, code, *, reason):
        super().__init__(f"{reason} ({code})")


def fails(*args):
    raise OwnError(7, reason="no such derivative")


def with_rules_that_fail(kind):
    """A function whose derivative rules fail, where it has any."""
    if kind == "custom_vjp fwd":
        f = fh.custom_vjp(torch.sin)
        f.defvjp(fails, fails)
    elif kind == "custom_vjp bwd":
        f = fh.custom_vjp(torch.sin)
        f.defvjp(lambda x: (f(x), x), fails)
    elif kind == "custom_jvp":
        f = fh.custom_jvp(torch.sin)
        f.defjvp(fails)
    elif kind == "custom_root":
        f = lambda x: fh.custom_root(lambda y: x.sin() - y, torch.zeros_like(x), lambda g, y: g(y) + y, fails)
    else:

        class Fails(torch.autograd.Function):
            forward = staticmethod(lambda x: x.sin())
            setup_context = staticmethod(lambda ctx, inputs, output: None)
            backward, jvp, generate_vmap_rule = staticmethod(fails), staticmethod(fails), True

        f = Fails.apply
    return f


KINDS = ["custom_vjp fwd", "custom_vjp bwd", "custom_jvp", "custom_root", "autograd.Function"]
UNASKED = {
    "value": lambda f: f(X),
    "vmap": lambda f: fh.vmap(f)(X),
    "scan": lambda f: fh.scan(lambda c, x: (c, f(x)), 0.0, X)[1],
    "vmap(scan)": lambda f: fh.vmap(lambda y: fh.scan(lambda c, _: (c, f(y)), 0.0, length=1)[1][0])(X),
    "a constant of a grad": lambda f: fh.grad(lambda c: (f(X) * c).sum())(torch.ones(2)),
    "a constant of a jvp": lambda f: fh.jvp(lambda c: f(X) * c, (torch.ones(2),), (torch.ones(2),))[1],
}


@every_mode
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ask", UNASKED.values(), ids=UNASKED)
def test_a_rule_that_fails_and_that_nobody_asks_for(ask, kind, run) -> None:
    torch.testing.assert_close(run(lambda: ask(with_rules_that_fail(kind))), X.sin())


ASKED = {name: TRANSFORMS[name] for name in ("grad", "vjp", "jvp", "vmap(grad)", "hessian")}


@every_mode
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ask", ASKED)
def test_a_rule_that_fails_and_is_asked_for(ask, kind, run) -> None:
    """The rule's own error comes, as often as the derivative is asked for; traced, it names the line that raised it."""
    f = with_rules_that_fail(kind)
    derivative = lambda x: ASKED[ask](lambda x: f(x).sum())(x)
    is_traced = run is jitted or (run is captured and kind != "autograd.Function")
    has_neither = kind.startswith("custom_vjp") and ask in ("jvp", "hessian")
    for _ in range(2):
        with pytest.raises((OwnError, fh.ArgumentTypeError) if has_neither else OwnError) as caught:
            run(derivative, X)
        if is_traced and type(caught.value) is OwnError:
            (note,) = caught.value.__notes__
            assert note.endswith('raise OwnError(7, reason="no such derivative")')


def test_a_reverse_rule_beside_a_forward_rule_that_fails() -> None:
    """A rule of one mode fails, and the other mode is asked for: in a loop, traced, under plain autograd."""

    class Half(torch.autograd.Function):
        forward = staticmethod(lambda x: x * 2)
        setup_context = staticmethod(lambda ctx, inputs, output: None)
        backward = staticmethod(lambda ctx, g: g * 2)
        jvp = staticmethod(fails)

    f = fh.jit(lambda x: fh.scan(lambda c, _: (Half.apply(c), None), x, length=2)[0], backend="eager")
    x = X.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(f(x).sum(), x)[0], torch.full((2,), 4.0))
    with pytest.raises(OwnError):
        fh.jvp(f, (X,), (X,))


def test_an_error_that_is_kept_keeps_no_tensor() -> None:
    f, large = fh.custom_vjp(torch.sin), torch.zeros(3)

    def fwd(x):
        local = large * 1  # noqa: F841
        raise OwnError(1, reason="fails") from ValueError("first")

    f.defvjp(fwd, fails)
    compiled = fh.jit(f, backend="eager")
    compiled(X)
    kept = [
        o for o in gc.get_objects() if type(o) is OwnError and "fails (1)" in str(o)
    ]  # not of what is behind a dead proxy
    assert kept
    assert all(e.__traceback__ is None and e.__cause__.__traceback__ is None for e in kept)
