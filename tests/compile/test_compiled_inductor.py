"""``torch.compile`` with Inductor: the same loops as under ``fh.jit``, whatever the user's configuration."""

from __future__ import annotations

import pytest
import torch
from compiled_models import MODELS, training_step
from matrix.contexts import CONTEXTS, LibraryTools
from matrix.operations import OPERATIONS
from matrix.test_grid import arguments, assert_same, expected
from torch._dynamo import compiled_autograd
from torch._dynamo.exc import UncapturedHigherOrderOpError
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_and_get_code

import functorch_hops as fh
from processes import in_a_process

pytestmark = pytest.mark.slow
FIRST_ROWS = {o.public: o.name for o in reversed(OPERATIONS.values())}


@pytest.mark.parametrize("name", FIRST_ROWS.values())
def test_each_operation(name) -> None:
    context = CONTEXTS["backward"]
    got = context(
        LibraryTools, OPERATIONS[name].program, *arguments(context), compile=lambda f: torch.compile(f, fullgraph=True)
    )
    assert_same(got, expected(name, "backward"))


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_parameters(name) -> None:
    make, shape = MODELS[name]
    model, example = make(), torch.randn(shape)
    expected = training_step(model, model, example)
    got = training_step(model, torch.compile(model, fullgraph=True), example)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_float_that_changes_is_compiled_once_more() -> None:
    """At the second value Dynamo leaves it open."""
    counter = CompileCounterWithBackend("inductor")
    function = lambda x, a: fh.scan(lambda c, _: (c * a + a, c * -a), x * a, length=3)[0]
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for a in (1.1, -2.3, -0.0, 4.0):
        x = torch.randn(3, requires_grad=True)
        results = [f(x, a) for f in (compiled, function)]
        torch.testing.assert_close(*results)
        torch.testing.assert_close(*(torch.autograd.grad(out.sum(), x) for out in results))
    assert counter.frame_count == 2


def test_gradients_of_two_loops_that_begin_with_one_value() -> None:
    """Inductor by itself makes one accumulator of the two."""

    def run(x, w):
        step = lambda c, row: (torch.tanh(c @ w + row), None)
        zero = torch.zeros(3)
        return fh.scan(step, zero, x)[0] + fh.scan(step, zero, 2 * x)[0]

    def gradients(run):
        torch.manual_seed(0)
        leaves = [t.requires_grad_() for t in (torch.randn(4, 3), torch.randn(3, 3))]
        return torch.autograd.grad(run(*leaves).sum(), leaves)

    options = {"loop_ordering_after_fusion": True, "allow_buffer_reuse": True, "inplace_buffers": True}
    torch.testing.assert_close(gradients(torch.compile(run, fullgraph=True, options=options)), gradients(run))


def test_what_is_mended_of_inductor_is_mended_once() -> None:
    """It is imported in the middle of this compilation; a division is checked by a function of the kernel's."""
    in_a_process(
        """
import torch
import functorch_hops as fh

f = lambda x, k: (fh.fori_loop(0, 3, lambda i, c: c.sin(), x), 7 % k)
operands = torch.ones(3), torch.tensor([2, 3])
compiled = torch.compile(f, fullgraph=True, options={"fx_graph_cache": False})
torch.testing.assert_close(compiled(*operands), f(*operands))
""",
        100,
    )


def test_a_loop_is_one_kernel() -> None:
    run = lambda xs: fh.scan(lambda c, row: (torch.tanh(c * row + 0.1), c), xs[0], xs)
    xs = torch.randn(20, 8)
    got, code = run_and_get_code(torch.compile(run, fullgraph=True), xs)
    torch.testing.assert_close(got, run(xs))
    assert "cpp_loop" in code[0] and "while" not in code[0].split("def call")[1]


def test_kernels_of_loops_forward_and_backward() -> None:
    def run(x):
        return fh.scan(lambda c, row: (torch.tanh(c * row + 0.1), c), x[0], x)[1]

    x = torch.randn(20, 8, requires_grad=True)

    def step():
        out = torch.compile(run, fullgraph=True)(x)
        return torch.autograd.grad(out.sum(), x)

    got, code = run_and_get_code(step)
    torch.testing.assert_close(got, torch.autograd.grad(run(x).sum(), x))
    assert [("cpp_loop" in text) for text in code] == [True, True]


def test_a_checkpoint_in_a_loop_keeps_the_kernel() -> None:
    """Its operands are those of the step, and pass a barrier in the kernel backwards."""
    w = torch.randn(4, 4, requires_grad=True)
    layer = fh.checkpoint(lambda c: torch.tanh(torch.tanh(c @ w) @ w))

    def run(x):
        return fh.scan(lambda c, row: (layer(c) + row, None), torch.zeros(4), x)[0].sum()

    x = torch.randn(3, 4, requires_grad=True)
    got, code = run_and_get_code(lambda: torch.autograd.grad(torch.compile(run, fullgraph=True)(x), (x, w)))
    torch.testing.assert_close(got, torch.autograd.grad(run(x), (x, w)))
    assert [("cpp_loop" in text) for text in code] == [True, True]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_autograd() -> None:
    x = torch.tensor([0.4, -0.7, 0.9], dtype=torch.float64, requires_grad=True)
    loop = lambda x: fh.scan(lambda c, row: (c * row.sin(), c), x[0], x)[1]
    run = lambda f: torch.autograd.grad(f(x).square().sum(), x)
    expected = run(loop)
    with torch._dynamo.config.patch(compiled_autograd=True):
        torch.testing.assert_close(run(torch.compile(loop, fullgraph=True)), expected)
    with compiled_autograd._enable(torch.compile(backend="eager")):
        torch.testing.assert_close(run(torch.compile(loop, fullgraph=True)), expected)
    jitted = fh.jit(loop, backend="eager")
    with (
        compiled_autograd._enable(torch.compile(backend="eager")),
        pytest.raises(fh.CaptureError, match="compiled autograd can't trace the backward pass of a call"),
    ):
        run(jitted)
    torch.testing.assert_close(run(jitted), expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_torch_traces_no_backward_pass_of_its_own_branch_for_compiled_autograd() -> None:
    x = torch.ones(3, requires_grad=True)
    branch = torch.compile(lambda x: torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,)), fullgraph=True)
    with (
        compiled_autograd._enable(torch.compile(backend="eager")),
        pytest.raises(UncapturedHigherOrderOpError, match=r"torch\.cond"),
    ):
        branch(x).sum().backward()
