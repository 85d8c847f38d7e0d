"""``torch.autograd.Function`` in functions that ``torch.compile`` traces as one graph."""

from __future__ import annotations

import pytest
import torch

import functorch_hops as fh
from functorch_hops._torch import dynamo_functions

# Dynamo's own doing
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


def x() -> torch.Tensor:
    return torch.tensor([0.3, -0.2, 0.9])


class Sine(torch.autograd.Function):
    """With a gradient that no tracer would find by itself."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        return 7 * g * ctx.saved_tensors[0]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_an_autograd_function_in_a_body(backend) -> None:
    def run(x):
        return fh.scan(lambda c, _: (Sine.apply(c), None), x, length=2)[0]

    def gradient(run):
        leaf = x().requires_grad_()
        return torch.autograd.grad(run(leaf).sum(), leaf)

    expected = gradient(lambda v: Sine.apply(Sine.apply(v)))
    torch.testing.assert_close(gradient(torch.compile(run, fullgraph=True, backend=backend)), expected)


class Exponential(torch.autograd.Function):
    """It saves its result, and in some of what it computes leaves gradients out."""

    @staticmethod
    def forward(ctx, x):
        y = x.exp()
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        with torch.no_grad():
            scale = x.cos()
        return g * y * x * scale


class Once(Sine):
    """Its backward pass has no derivative."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g * ctx.saved_tensors[0]


def twice(function):
    return fh.grad(lambda u: fh.grad(lambda v: function.apply(v).sum())(u).sum())


def test_second_derivatives_of_an_autograd_function() -> None:
    """Dynamo writes that a backward pass runs without gradients."""

    def by_torch(function):
        leaf = x().requires_grad_()
        (slope,) = torch.autograd.grad(function.apply(leaf).sum(), leaf, create_graph=True)
        return torch.autograd.grad(slope.sum(), leaf)[0]

    def compiled(function):
        return torch.compile(twice(function), fullgraph=True, backend="eager")(x())

    for function in (Sine, Exponential):
        torch.testing.assert_close(compiled(function), by_torch(function))
    with pytest.raises(fh.ArgumentTypeError, match=r"Once.backward: it has no reverse-mode derivative"):
        compiled(Once)


def test_where_dynamo_traces_a_backward_pass_elsewhere_it_has_no_derivative(monkeypatch) -> None:
    """As in another version of torch: it would be zero."""

    class Other(Sine):  # of which nothing is compiled yet
        pass

    monkeypatch.setattr(dynamo_functions, "_REPLACED", "elsewhere")
    with pytest.raises(fh.ArgumentTypeError, match=r"backward: it has no reverse-mode derivative"):
        torch.compile(twice(Other), fullgraph=True, backend="eager")(x())
    once = fh.grad(lambda v: Other.apply(v).sum())
    torch.testing.assert_close(torch.compile(once, fullgraph=True, backend="eager")(x()), 7 * x())
