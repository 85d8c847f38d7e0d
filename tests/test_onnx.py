"""Programs of ONNX: do Scan, Loop and If of `torch.onnx.export` compute what the module does, in onnxruntime?

They run where the extra `onnx` is installed.
"""

import logging

import pytest
import torch
from torch import nn
from torch._higher_order_ops.while_loop import while_loop

import functorch_hops as fh

pytestmark = [pytest.mark.slow, pytest.mark.onnx]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(3, 4)

    def forward(self, xs):
        def step(h, x):
            h = self.cell(x, h)
            return h, h * 2

        return fh.scan(step, xs.new_zeros(2, 4), xs)


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        return fh.cond(x.sum() > 0, lambda v: self.linear(v).sin(), lambda v: v - 1, x)


class While(nn.Module):
    def forward(self, x):
        return fh.while_loop(lambda v: (v * v).sum() < 100, lambda v: v * 1.5 + 0.1, x)


class BranchInLoop(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3) / 2)

    def forward(self, xs):
        def step(h, x):
            h = fh.cond(x.sum() > 0, lambda v: torch.tanh(v @ self.weight), lambda v: v / 2, h + x)
            return h, h.sum(-1)

        return fh.scan(step, xs.new_zeros(3), xs)


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.tensor([[0.3, -0.2, 0.1], [0.5, 0.4, -0.6], [-0.1, 0.2, 0.3]]))

    def forward(self, xs):
        return self.function(self.weight, xs)


class Spikes(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, ct):
        return ct


def while_in_scan(w, xs):
    grown = lambda c: fh.while_loop(lambda v: v.abs().sum() < 10, lambda v: v * 1.5 + 0.2, c)
    return fh.scan(lambda c, x: (grown(c + x), c.sum()), w[0], xs)


def counted(w, xs):
    return fh.while_loop(lambda s: s[0] < 4, lambda s: (s[0] + 1, torch.tanh(s[1] @ w), s[1] > 0), (0, xs, xs > 1))


def solved(w, xs):
    """Root of a function, with a rule of its own for the derivative."""
    solve = lambda f, z: fh.fori_loop(0, 30, lambda i, z: z - f(z), z)
    return fh.custom_root(
        lambda z: z - 0.5 * torch.tanh(z @ w + xs), xs * 0, solve, lambda g, y: y / g(torch.ones_like(y))
    )


def gradient(w, xs):
    return fh.grad(lambda xs: fh.scan(lambda c, x: (torch.tanh(w @ c + x), None), w[0], xs)[0].sum())(xs)


MODELS = {
    "map": lambda w, xs: fh.map(lambda x: (torch.tanh(w @ x), x.argmax()), xs),
    "map in chunks": lambda w, xs: fh.map(lambda x: torch.tanh(w @ x), xs, batch_size=2),
    "associative_scan": lambda w, xs: fh.associative_scan(torch.add, xs @ w),
    "associative_scan, reverse": lambda w, xs: fh.associative_scan(torch.maximum, xs @ w, reverse=True),
    "switch": lambda w, xs: fh.switch((xs.sum() * 3).long() % 3, [torch.sin, torch.cos, torch.neg], xs @ w),
    "while in scan": while_in_scan,
    "integers in a while": counted,
    "rule": lambda w, xs: fh.scan(lambda c, x: (c / 2 + Spikes.apply(w @ c + x), c > 1), w[0], xs),
    "custom_root": solved,
    "gradient": gradient,
}
SIGNS = torch.tensor([[1.0, 2.0, 3.0], [-1.0, -2.0, 0.5], [0.0, 1.0, 1.0]])
CASES = {
    "scan": (Recurrent, [SIGNS.expand(2, 3, 3).transpose(0, 1)], {"Scan"}),
    "cond": (Branch, [SIGNS, -SIGNS], {"If"}),
    "while": (While, [torch.ones(3), torch.full((3,), 50.0)], {"Loop"}),
    "cond in scan": (BranchInLoop, [SIGNS, -SIGNS], {"Scan"}),
}


def check(module, inputs, operators=(), **options):
    import onnxruntime

    model = torch.onnx.export(module, (inputs[0],), dynamo=True, verbose=False, **options).model_proto
    assert set(operators) <= {node.op_type for node in model.graph.node}
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (argument,) = session.get_inputs()
    for x in inputs:
        expected = module(x)
        got = session.run(None, {argument.name: x.numpy()})
        for value, y in zip(got, expected if isinstance(expected, tuple) else (expected,), strict=True):
            torch.testing.assert_close(torch.from_numpy(value), y, check_dtype=True, rtol=1e-4, atol=1e-5)


@pytest.fixture(autouse=True)
def silent(monkeypatch):
    monkeypatch.setattr(logging.getLogger("torch.onnx"), "disabled", True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_onnxruntime_computes_what_the_module_does(name) -> None:
    make, inputs, operators = CASES[name]
    torch.manual_seed(0)
    check(make(), inputs, operators)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_models_with_parameters(name, dynamic) -> None:
    """Their parameters require gradients, and ONNX has no form of an operator that is for its derivative."""
    options = {"dynamic_shapes": ({0: torch.export.Dim("T", min=2, max=64)},)} if dynamic else {}
    check(Function(MODELS[name]), [SIGNS, SIGNS.repeat(2, 1)[:5] * 0.7 if dynamic else -SIGNS], **options)


@pytest.mark.filterwarnings("ignore")
def test_the_gradient_of_a_while_loop_is_refused() -> None:
    loop = lambda w, xs: fh.while_loop(lambda v: v.square().sum() < 100, lambda v: v * 1.5 + w.sum(), xs).sum()
    with pytest.raises(Exception, match=r"while_loop: torch\.onnx has no program for the gradient of a while loop"):
        torch.onnx.export(Function(lambda w, xs: fh.grad(loop, 1)(w, xs)), (SIGNS,), dynamo=True, verbose=False)


@pytest.mark.filterwarnings("ignore")
def test_torch_makes_no_onnx_of_a_while_loop_that_lies_two_operators_deep() -> None:
    """Of its own operators (2.13)."""
    grown = lambda v: while_loop(lambda v: v.sum() < 5, lambda v: (v * 2 + 1,), (v,))[0]
    inner = lambda v: torch.cond(v.sum() < 3, grown, torch.sin, (v,))
    outer = lambda w, xs: torch.cond(xs.sum() > 0, inner, torch.cos, (xs,))
    with pytest.raises(Exception, match=r"An error occurred when running the .*InlinePass"):
        torch.onnx.export(Function(outer), (SIGNS,), dynamo=True, verbose=False)
