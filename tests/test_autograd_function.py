"""torch.autograd.Function in captured bodies: all its staticmethods keep their meaning, at every order."""

from __future__ import annotations

import functools

import pytest
import torch
from test_custom_rules import FORWARD, TRANSFORMS, X, Y, captured, f64, jitted, same, sin
from torch.autograd.function import once_differentiable

import functorch_hops as fh

while_capturing = pytest.mark.parametrize("run", [captured, jitted], ids=["captured", "jit"])


def in_body(f):
    """The function in a body that is captured in every mode but plain."""
    return lambda *args: fh.cond(torch.tensor(True), f, f, *args)


class Function(torch.autograd.Function):
    generate_vmap_rule = True


class SinWithJvp(Function):
    """Three times the derivative, in both modes."""

    @staticmethod
    def forward(x, y):
        return torch.sin(x) * y

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, ct):
        x, y = ctx.saved_tensors
        return 3 * ct * x.cos() * y, 3 * ct * x.sin()

    @staticmethod
    def jvp(ctx, tx, ty):
        x, y = ctx.saved_tensors
        return 3 * (x.cos() * y * tx + x.sin() * ty)


@while_capturing
@pytest.mark.parametrize("name", [*TRANSFORMS, *FORWARD])
def test_a_function_with_all_rules(run, name):
    """pytorch/pytorch 192985: Dynamo silently drops a custom jvp."""
    transform = {**TRANSFORMS, **FORWARD}[name]
    f = in_body(SinWithJvp.apply)
    same(run(transform(f), X, Y), transform(sin)(X, Y))
    if name != "value":
        same(transform(fh.jit(f, backend="eager"))(X, Y), transform(sin)(X, Y))


@pytest.mark.parametrize("jacobian", [torch.func.jacfwd, fh.jacfwd])
def test_forward_mode_thrice_in_plain_eager(jacobian):
    """torch computes a tangent without forward mode: the second derivative was zero."""
    f = lambda f: lambda x: jacobian(jacobian(jacobian(lambda x: f(x, Y).sum())))(x)
    same(f(SinWithJvp.apply)(X), 3 * f(lambda x, y: x.sin() * y)(X))


class Squared(Function):
    """Whose forward asks for a value."""

    @staticmethod
    def forward(x):
        return x * x if x > 0 else -x * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx, tx):
        return 2 * ctx.saved_tensors[0].abs() * tx


@pytest.mark.parametrize(
    "f",
    [
        lambda apply, x, y: y * apply(x),
        lambda apply, x, y: x * apply(y),
        lambda apply, x, y: x * y * apply(torch.tensor(2.0).double()),
    ],
    ids=["outer", "inner", "none"],
)
def test_forward_mode_twice_with_tangents_of_one_level(f):
    x, one = torch.tensor(2.0).double(), torch.tensor(1.0).double()
    run = lambda apply: fh.jvp(lambda x: fh.jvp(lambda y: f(apply, x, y), (one * 3,), (one,))[1], (x,), (one,))
    same(run(Squared.apply), run(torch.square))


class Scaled(Function):
    """With a default, which setup_context gets too."""

    @staticmethod
    def forward(x, factor=2.0):
        return x * factor

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx, ct):
        return 3 * ct * ctx.factor, None


@while_capturing
def test_a_function_with_a_default(run):
    f = lambda x: Scaled.apply(x) + Scaled.apply(x, 0.5) + Scaled.apply(x, factor=1.0)
    same(run(fh.grad(in_body(f)), X.sum()), f64(3 * 3.5))


class ExpOfItself(Function):
    """It saves its output, and its backward calls the Function again."""

    @staticmethod
    def forward(x):
        return x.exp()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx, ct):
        x, y = ctx.saved_tensors
        return ct * (y + 2 * ExpOfItself.apply(x))


@while_capturing
def test_a_function_whose_backward_calls_it(run):
    for order in (fh.grad, lambda f: fh.grad(fh.grad(f)), lambda f: fh.grad(fh.grad(fh.grad(f)))):
        same(run(order(in_body(ExpOfItself.apply)), X), order(ExpOfItself.apply)(X))


class Polynomial(Function):
    """Its backward calls it with another static argument: a chain that ends."""

    @staticmethod
    def forward(x, n):
        return x**n

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.n = inputs[1]

    @staticmethod
    def backward(ctx, ct):
        (x,) = ctx.saved_tensors
        return 2 * ct * ctx.n * (Polynomial.apply(x, ctx.n - 1) if ctx.n > 1 else torch.ones_like(x)), None


class Endless(Function):
    """A chain that does not end (the derivatives of polygamma, say)."""

    @staticmethod
    def forward(x, n):
        return torch.sin(x + n)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.n = inputs[1]

    @staticmethod
    def backward(ctx, ct):
        return 2 * ct * Endless.apply(ctx.saved_tensors[0], ctx.n + 1), None


@while_capturing
def test_a_function_whose_backward_calls_it_with_other_arguments(run):
    f = in_body(lambda x: Polynomial.apply(x, 3))
    same(run(fh.grad(f), X), 6 * X**2)
    same(run(fh.grad(fh.grad(f)), X), 24 * X)
    g = in_body(lambda x: Endless.apply(x, 0))
    same(run(fh.grad(fh.grad(g)), X), 4 * torch.sin(X + 2))
    deep = functools.reduce(lambda f, _: fh.grad(f), range(6), g)
    with pytest.raises(fh.ArgumentTypeError, match="more than 4 times"):
        run(deep, X)


class OldStyle(torch.autograd.Function):
    """Tensors of all kinds on its context: inputs, outputs, intermediates, in containers."""

    @staticmethod
    def forward(ctx, x, options, y):
        middle, out = x * 2, x.sin() * y
        ctx.save_for_backward(x, out, None)
        ctx.middle, ctx.pair, ctx.table, ctx.scale = middle, [y, middle], {"y": y}, options["scale"]
        return out, "label", x.detach() * 5

    @staticmethod
    def backward(ctx, ct, label, extra):
        _, out, none = ctx.saved_tensors
        assert none is None
        assert label is None
        assert ctx.needs_input_grad == (True, False, True)
        return ct * ctx.middle + extra * 0 + out * 0, None, ct * ctx.pair[0] * ctx.table["y"] * ctx.scale


@while_capturing
def test_an_old_style_function(run):
    @in_body
    def f(x, y):
        out, label, extra = OldStyle.apply(x, {"scale": 7.0}, y)
        assert label == "label"
        return out + extra * 0

    same(run(fh.grad(f, argnums=(0, 1)), X, Y), (2 * X, 7 * Y * Y))
    # An intermediate has no derivative, an input has (as in torch).
    same(run(fh.grad(fh.grad(f, argnums=1), argnums=1), X, Y), 14 * Y)
    same(run(fh.grad(fh.grad(f)), X, Y), f64(0.0))
    same(run(fh.vmap(fh.grad(f), in_dims=(0, None)), f64(1.0, 2.0), Y), f64(2.0, 4.0))


class WithVmap(torch.autograd.Function):
    """Its vmap staticmethod shows that it ran: the value of a batch is negated."""

    @staticmethod
    def forward(x, k):
        return x * k, x + 1

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.k = inputs[1]
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx, ct, other):
        assert not other.requires_grad
        return 3 * ct * ctx.k, None

    @staticmethod
    def vmap(info, in_dims, x, k):
        assert info.batch_size == 2
        assert in_dims == (0, None)
        y, z = WithVmap.apply(x.movedim(in_dims[0], -1), k)
        return (-y, z.sum()), (-1, None)


@while_capturing
def test_a_vmap_staticmethod(run):
    f = lambda x: fh.vmap(lambda v: WithVmap.apply(v, 4), out_dims=(0, None))(x)
    xs = f64(1.0, 2.0)
    same(run(f, xs), (-4 * xs, xs.sum() + 2))
    same(run(fh.grad(lambda x: f(x)[0].sum()), xs), f64(-12.0, -12.0))
    same(run(fh.vmap(fh.grad(lambda v: WithVmap.apply(v, 4)[0])), xs), f64(12.0, 12.0))


class Once(Function):
    @staticmethod
    def forward(x):
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, ct):
        return ct * 2 * ctx.saved_tensors[0]


@while_capturing
def test_once_differentiable(run):
    """A second derivative is an error, never zero."""
    f = lambda x: fh.fori_loop(0, 2, lambda i, v: Once.apply(v), x)
    same(run(fh.grad(f), X), 4 * X**3)
    same(run(fh.vmap(fh.grad(f)), f64(1.0, 2.0)), f64(4.0, 32.0))
    for second in (fh.grad(fh.grad(f)), fh.jacfwd(fh.grad(f))):
        with pytest.raises(fh.ArgumentTypeError, match="once_differentiable"):
            run(second, X)


class NoneGradients(Function):
    @staticmethod
    def forward(x, y):
        return x * y, x + y

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, a, b):
        return a * 2, None


class Broadcast(Function):
    @staticmethod
    def forward(x):
        return x.expand(3).clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, ct):
        return ct


@while_capturing
def test_gradients_that_are_none_or_broadcast(run):
    f = in_body(lambda x, y: NoneGradients.apply(x, y)[0])
    same(run(fh.grad(f, argnums=(0, 1)), X, Y), (f64(2.0), f64(0.0)))
    same(run(fh.grad(in_body(lambda x: Broadcast.apply(x).sum())), X), f64(3.0))


class OnlyTheFirst(Function):
    """A product, of which the second factor has no gradient."""

    @staticmethod
    def forward(x, y):
        return x * y

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, ct):
        return ct * ctx.saved_tensors[0], None


LEADING_NOWHERE = {
    "a call": OnlyTheFirst.apply,
    "both ways": lambda x, y: OnlyTheFirst.apply(x, y) * y,
    "an argument alone": lambda x, y: OnlyTheFirst.apply(x.detach(), y),
    "a body": in_body(OnlyTheFirst.apply),
    "a branch": lambda x, y: fh.cond(x.sum() > 9, lambda: x * 2, lambda: OnlyTheFirst.apply(x, y.exp())),
    "steps": lambda x, y: fh.scan(lambda c, _: (OnlyTheFirst.apply(c, y), c), x, length=2)[0],
    "steps of a while_loop": lambda x, y: fh.while_loop(
        lambda s: s[0] < 3, lambda s: (s[0] + 1, OnlyTheFirst.apply(s[1], y)), (0, x)
    )[1],
    "a checkpoint": lambda x, y: fh.checkpoint(OnlyTheFirst.apply)(x, y),
    "lanes": lambda x, y: fh.vmap(lambda a: OnlyTheFirst.apply(a * x, y.sin()))(torch.ones(2)),
}


@while_capturing
@pytest.mark.parametrize("name", LEADING_NOWHERE)
def test_no_gradient_is_none_and_not_zero(run, name):
    """An optimizer passes over a parameter that has no gradient; one of zero decays, and moves by its momentum."""
    found = []
    for call in (lambda f, *args: f(*args), run):
        x, y = (t.detach().clone().requires_grad_() for t in (X, Y))
        out = call(LEADING_NOWHERE[name], x, y)
        assert out.requires_grad
        out.sum().backward()
        found.append((x.grad, y.grad))
    for expected, got in zip(*found):
        assert (got is None) == (expected is None)
        if got is not None:
            same(got, expected)


class NoBackward(Function):
    @staticmethod
    def forward(x):
        return x * 2

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass


@while_capturing
def test_functions_without_rules(run):
    same(run(NoBackward.apply, X), 2 * X)
    for transform in (fh.grad, fh.jacfwd):
        with pytest.raises(fh.ArgumentTypeError, match="NoBackward"):
            run(transform(lambda x: fh.cond(x > 0, NoBackward.apply, torch.neg, x)), X)


class ClosingOver(Function):
    scale = f64(2.0)

    @staticmethod
    def forward(x):
        return x * ClosingOver.scale

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, ct):
        return ct * ClosingOver.scale * 3


@while_capturing
def test_a_function_that_closes_over_tensors(run):
    same(run(fh.grad(in_body(ClosingOver.apply)), X), f64(6.0))
    same(run(fh.grad(lambda x: fh.scan(lambda c, _: (ClosingOver.apply(c), None), x, length=2)[0]), X), f64(36.0))
