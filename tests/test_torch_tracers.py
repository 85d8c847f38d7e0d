"""Programs of this library where torch's own tracers are at work: torch.export and make_fx.

The tracers see graphs of native operators, in which no transform is left.
"""

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import functorch_hops as fh

# torch's run_decompositions uses what its pytree has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.:FutureWarning")

W, XS = torch.tensor([0.5, -1.0, 2.0]), torch.arange(15.0).reshape(5, 3) / 10


def loop(w, xs):
    return fh.scan(lambda c, x: (torch.tanh(c * w + x), c), torch.zeros(3), xs)[0].sum()


def growth(w, xs):
    return fh.while_loop(lambda c: c.sum() < 20, lambda c: c + w.abs() + (xs * xs).sum(), w.sin()).sum()


def batched(f):
    return lambda w, xs: fh.vmap(f, in_dims=(0, None))(torch.stack([w, 2 * w, -w]), xs)


PROGRAMS = {
    "vmap": batched(loop),
    "grad": fh.grad(loop),
    "value_and_grad": fh.value_and_grad(loop, argnums=(0, 1)),
    "jvp": lambda w, xs: fh.jvp(loop, (w, xs), (w, xs)),
    "jacfwd": fh.jacfwd(loop),
    "jacrev": fh.jacrev(loop, argnums=1),
    "hessian": fh.hessian(loop),
    "vmap of grad": batched(fh.grad(loop)),
    "grad of vmap": fh.grad(lambda w, xs: batched(loop)(w, xs).sum()),
    "grad of a while loop": fh.grad(growth),
    "vmap of a while loop": batched(growth),
    "grad of plain torch": fh.grad(lambda w, xs: (w * xs).sin().sum()),
    "grad of jit": fh.grad(fh.jit(loop, backend="eager")),
    "grad of checkpoint": fh.grad(fh.checkpoint(loop)),
    "grad of a closure": lambda w, xs: fh.grad(lambda v: loop(v, xs) * w.sum())(w),
}


class Module(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


@pytest.mark.parametrize("name", PROGRAMS)
def test_make_fx_sees_operators_without_transforms(name):
    graph = make_fx(PROGRAMS[name], tracing_mode="fake")(W, XS)
    torch.testing.assert_close(graph(W, XS), PROGRAMS[name](W, XS))
    torch.testing.assert_close(graph(W + 1, XS - 1), PROGRAMS[name](W + 1, XS - 1))


@pytest.mark.parametrize("name", PROGRAMS)
def test_torch_export_of_a_module_that_uses_transforms(name):
    program = torch.export.export(Module(PROGRAMS[name]), (W, XS))
    assert "fh_" not in program.graph_module.code
    for exported in (program, program.run_decompositions()):
        torch.testing.assert_close(exported.module()(W + 1, XS - 1), PROGRAMS[name](W + 1, XS - 1))


def shared_in_cond(w, xs):
    return fh.cond(w.sum() > 0, lambda a, b: a * b.sum(), lambda a, b: a - b, w[:2], w[1:])


def shared_in_while(w, xs):
    first, last = w[:2], w[1:]
    return fh.while_loop(lambda c: c.sum() < 10, lambda c: c + first.abs() + last.abs() + 1, first)


@pytest.mark.parametrize("function", [shared_in_cond, shared_in_while])
def test_exported_operands_that_share_storage(function):
    """torch refuses them when it decomposes the program."""
    program = torch.export.export(Module(function), (W, XS)).run_decompositions()
    torch.testing.assert_close(program.module()(W, XS), function(W, XS))


@pytest.mark.parametrize("operation", [fh.vjp, fh.linearize])
def test_functions_that_a_transform_returns_are_refused(operation):
    def program(w):
        return operation(torch.sin, w)[1](w)

    with pytest.raises(fh.CaptureError, match=f"{operation.__name__}: .*where torch traces the code around them"):
        torch.export.export(Module(program), (W,))
    inside = fh.jit(program, backend="eager")
    exported = torch.export.export(Module(inside), (W,))
    torch.testing.assert_close(exported.module()(W), program(W))


@pytest.mark.parametrize("transform", [torch.func.vmap, lambda f: torch.func.grad(lambda w: f(w).sum())])
def test_a_refused_strict_export_leaves_no_transform_active(transform):
    program = transform(lambda v: fh.fori_loop(0, 3, lambda i, c: c.sin(), v))
    with pytest.raises(fh.CaptureError, match=r"fori_loop: torch\.export can't trace torch\.func's own transforms"):
        torch.export.export(Module(program), (W,), strict=True)
    assert torch._C._functorch.peek_interpreter_stack() is None


@pytest.mark.parametrize("transform", [torch.func.vmap, lambda f: torch.func.grad(lambda w: f(w).sum())])
def test_torchs_own_transforms_are_refused_by_export(transform):
    """torch.export records what they wrap (torch 2.13): an obscure error, or a program that fails when it runs."""

    def program(w):
        return transform(lambda v: fh.while_loop(lambda c: c.sum() < 9, lambda c: c + v.abs() + 1, v.exp()))(w)

    with pytest.raises(fh.CaptureError, match=r"torch\.export can't trace torch\.func's own transforms"):
        torch.export.export(Module(program), (W,))
    exported = torch.export.export(Module(fh.jit(program, backend="eager")), (W,))
    torch.testing.assert_close(exported.module()(W + 1), program(W + 1))


def test_a_module_with_transforms_keeps_its_parameters_and_open_sizes():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, xs):
            slope = fh.grad(lambda x: fh.fori_loop(0, 2, lambda i, c: torch.tanh(self.linear(c)), x).sum() / len(x))
            return fh.vmap(slope)(xs) / xs.shape[0]

    net = Net()
    program = torch.export.export(net, (XS,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert set(program.graph_signature.parameters) == {"linear.weight", "linear.bias"}
    torch.testing.assert_close(program.module()(XS[:2] + 1), net(XS[:2] + 1))


@pytest.mark.filterwarnings("ignore:.torch.jit.trace. is deprecated", "ignore::torch.jit.TracerWarning")
def test_torch_jit_trace_is_refused() -> None:
    """It would record the branch that is taken, and the steps that are."""
    x = torch.ones(3)
    for function in (
        lambda x: fh.cond(x.sum() > 0, torch.sin, torch.cos, x),
        lambda x: fh.while_loop(lambda c: c.sum() < 10, lambda c: c + 1, x),
        lambda x: fh.scan(lambda c, r: (c + r, c), x[0], x),
    ):
        with pytest.raises(fh.CaptureError, match=r"torch.jit.trace: it would keep the branch"):
            torch.jit.trace(function, (x,), check_trace=False)
