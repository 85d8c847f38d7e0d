"""Operators of torch.library in captured bodies: value, gradient, second order and batching as their rules say.

The oracle is an autograd.Function with the same rules, in a Python loop.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from test_custom_rules import TRANSFORMS, X, Y, captured, jitted, same
from torch import Tensor
from torch.library import Library, custom_op, register_autograd, register_fake

import functorch_hops as fh

while_capturing = pytest.mark.parametrize("run", [captured, jitted], ids=["captured", "jit"])


class Twin(torch.autograd.Function):
    generate_vmap_rule = True


class SinTwin(Twin):
    """Three times the derivative."""

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, ct):
        return 3 * ct * ctx.saved_tensors[0].cos()


class SumTwin(Twin):
    """Its i-th gradient is i times what it should be."""

    @staticmethod
    def forward(*xs):
        return sum(xs) * 6, xs[0].clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.n = len(inputs)

    @staticmethod
    def backward(ctx, ct, ct_copy):
        return tuple(6 * ct * i + ct_copy for i in range(1, ctx.n + 1))


def save_input(ctx, inputs, output):
    ctx.save_for_backward(inputs[0])


@custom_op("fh_tests::sin", mutates_args=())
def sin_op(x: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy(force=True).copy()).sin()


@custom_op("fh_tests::cos", mutates_args=())
def cos_op(x: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy(force=True).copy()).cos()


for op in (sin_op, cos_op):
    op.register_fake(torch.empty_like)
    op.register_vmap(lambda info, in_dims, x, op=op: (op(x), in_dims[0]))
sin_op.register_autograd(lambda ctx, ct: 3 * ct * cos_op(ctx.saved_tensors[0]), setup_context=save_input)
cos_op.register_autograd(lambda ctx, ct: -ct * ctx.saved_tensors[0].sin(), setup_context=save_input)


@custom_op("fh_tests::sum", mutates_args=())
def sum_op(xs: Sequence[Tensor], n: int = 1, *, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    return sum(xs) * n * scale, xs[0].clone()


@sum_op.register_fake
def _(xs, n=1, *, scale=2.0):
    return torch.empty_like(xs[0]), torch.empty_like(xs[0])


@sum_op.register_vmap
def _(info, in_dims, xs, n=1, *, scale=2.0):
    xs = [x.expand(info.batch_size, *x.shape) if d is None else x.movedim(d, 0) for x, d in zip(xs, in_dims[0])]
    return sum_op(xs, n, scale=scale), (0, 0)


def sum_context(ctx, inputs, keyword_only_inputs, output):
    ctx.n, ctx.factor = len(inputs[0]), inputs[1] * keyword_only_inputs["scale"]


def sum_backward(ctx, ct, ct_copy):
    needed = ctx.needs_input_grad[0]
    return [ctx.factor * ct * i + ct_copy if need else None for i, need in enumerate(needed, 1)], None


sum_op.register_autograd(sum_backward, setup_context=sum_context)

library = Library("fh_tests", "FRAGMENT")
library.define("registered(Tensor x) -> Tensor")
library.impl("registered", torch.sin, "CPU")
register_fake("fh_tests::registered", torch.empty_like)
register_autograd("fh_tests::registered", SinTwin.backward, setup_context=save_input, lib=library)


class OfKernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.fh_tests.kernel(x)

    @staticmethod
    def backward(ctx, ct):
        return 3 * ct * ctx.saved_tensors[0].cos()


library.define("kernel(Tensor x) -> Tensor")
library.impl("kernel", torch.sin, "CPU")
library.impl("kernel", torch.empty_like, "Meta")
library.impl("kernel", lambda x: OfKernel.apply(x * 1.0) + 0.0, "Autograd")

REVERSE = [name for name in TRANSFORMS if "forward" not in name]
OPERATORS = {
    "custom_op": (lambda x, y: sin_op(x) * y, lambda x, y: SinTwin.apply(x) * y),
    "lists and defaults": (lambda x, y: sum(sum_op([x, y, x * y], 3)), lambda x, y: sum(SumTwin.apply(x, y, x * y))),
    "keywords": (lambda x, y: sum(sum_op([x, y], 6, scale=1.0)), lambda x, y: sum(SumTwin.apply(x, y))),
    "packet": (lambda x, y: torch.ops.fh_tests.sin(x) + y, lambda x, y: SinTwin.apply(x) + y),
    "register_autograd": (lambda x, y: torch.ops.fh_tests.registered(x) * y, lambda x, y: SinTwin.apply(x) * y),
    "kernel for autograd": (lambda x, y: torch.ops.fh_tests.kernel(x) * y, lambda x, y: SinTwin.apply(x) * y),
}


def looped(f):
    return lambda x, y: fh.fori_loop(0, 2, lambda i, x: f(x, y), x)


def in_python(f):
    return lambda x, y: f(f(x, y), y)


@while_capturing
@pytest.mark.parametrize("name", REVERSE)
@pytest.mark.parametrize("operator", OPERATORS)
def test_custom_operators(run, operator, name):
    transform = TRANSFORMS[name]
    f, twin = OPERATORS[operator]
    want = transform(in_python(twin))(X, Y)
    same(run(transform(looped(f)), X, Y), want)
    same(transform(fh.jit(looped(f), backend="eager"))(X, Y), want)
    same(run(transform(in_python(f)) if run is jitted else transform(looped(f)), X, Y), want)


@while_capturing
def test_gradients_of_plain_autograd(run):
    def gradients(f):
        x, y = X.clone().requires_grad_(), Y.clone().requires_grad_()
        grads = torch.autograd.grad(f(x, y).square().sum(), (x, y), create_graph=True)
        return *grads, *torch.autograd.grad(sum(g.square().sum() for g in grads), (x, y))

    for f, twin in OPERATORS.values():
        same(gradients(lambda x, y, f=f: run(looped(f), x, y)), gradients(in_python(twin)))


@custom_op("fh_tests::opaque", mutates_args=())
def opaque(x: Tensor) -> Tensor:
    return x * 2


opaque.register_fake(torch.empty_like)


@while_capturing
def test_no_formula(run):
    """An error where its derivative is computed, and only there."""
    same(run(fh.grad(looped(lambda x, y: torch.where(opaque(x) > 0, x * y, y).sum())), X.sum(), Y.sum()), Y.sum() ** 2)
    f = looped(lambda x, y: opaque(x) * y)
    same(run(f, X, Y), 4 * X * Y**2)
    with pytest.raises(fh.ArgumentTypeError, match=r"fh_tests.opaque.default: it has no reverse-mode derivative"):
        run(fh.grad(lambda x: f(x, Y).sum()), X)
    with pytest.raises(fh.ArgumentTypeError, match=r"fh_tests.sin.default: it has no forward-mode derivative"):
        run(lambda x: fh.jvp(lambda x: looped(OPERATORS["custom_op"][0])(x, Y), (x,), (x,)), X)


@while_capturing
def test_without_gradients(run):
    def f(x, y):
        with torch.no_grad():
            factor = sin_op(x)
        return factor * x + y

    same(run(fh.grad(lambda x, y: looped(f)(x, y).sum()), X, Y), fh.grad(lambda x, y: in_python(f)(x, y).sum())(X, Y))


# ---------------------------------------------------------------------------------------------------------------------
# operators that write to their arguments


@custom_op("fh_tests::scale_", mutates_args={"x"})
def scale_(x: Tensor, factor: float) -> None:
    x.mul_(factor)


@custom_op("fh_tests::shift_all", mutates_args={"xs"})
def shift_all(xs: list[Tensor], by: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    for x in xs:
        x.add_(by * factor)
    return by * 2, by * 3


@shift_all.register_fake
def _(xs, by, factor=1.0):
    return torch.empty_like(by), torch.empty_like(by)


def scaled(x):
    y = x * 1
    scale_(y, 3.0)
    return y + x


def part_scaled(x):
    y = x * 1
    scale_(y[1:], 3.0)
    return y


def shifted(x):
    a, b = x * 1, x * 2
    p, q = shift_all([a, b], x, factor=2.0)
    return a + b * p + q


V = torch.tensor([0.7, 1.3, 0.2], dtype=torch.float64)


@while_capturing
@pytest.mark.parametrize("write", [scaled, part_scaled, shifted])
def test_writes_of_custom_operators(run, write):
    step = lambda x: fh.cond(x.sum() > -99, write, torch.sin, x)
    same(
        run(lambda x: fh.scan(lambda c, _: (step(c), c), x, length=2), V), (write(write(V)), torch.stack([V, write(V)]))
    )
    if write is not shifted:  # torch's cond (2.13) knows no writes to lists
        same(fh.jit(step, backend="aot_eager")(V), write(V))
    same(run(fh.grad(lambda x: (step(x).detach() * x).sum()), V), write(V))


@while_capturing
def test_a_write_of_a_custom_operator_has_no_derivative(run):
    step = lambda x: fh.cond(x.sum() > -99, scaled, torch.sin, x)
    with pytest.raises(fh.ArgumentTypeError, match=r"scale_\.default: it has no reverse-mode derivative"):
        run(fh.grad(lambda x: step(x).sum()), V)
    with pytest.raises(fh.ArgumentTypeError, match=r"scale_\.default: it has no forward-mode derivative"):
        run(lambda x: fh.jvp(step, (x,), (x,)), V)

    def unseen(x):
        y = x * 1
        with torch.no_grad():
            scale_(y, 3.0)
        return y * x

    same(run(fh.grad(lambda x: fh.cond(x.sum() > -99, unseen, torch.sin, x).sum()), V), 4 * V)


@while_capturing
def test_a_custom_operator_may_not_write_to_an_input(run):
    def write(x):
        scale_(x, 3.0)
        return x

    with pytest.raises(fh.InputMutationError, match="scale_ on"):
        run(lambda x: fh.cond(x.sum() > -99, write, torch.sin, x), V)
