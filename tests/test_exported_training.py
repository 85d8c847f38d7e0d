"""Exported programs, strict and not: the operations in modules with parameters, run and trained by torch alone."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from matrix.contexts import scalar
from matrix.operations import OPERATIONS, Operation, examples, weights
from matrix.test_grid import assert_same
from torch import Tensor, nn
from torch._higher_order_ops.cond import cond_op
from torch._higher_order_ops.scan import scan as scan_of_torch
from torch._higher_order_ops.scan import scan_op
from torch._higher_order_ops.while_loop import while_loop_op

import functorch_hops as fh

# torch's run_decompositions, and strict export, use what its pytree has deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]
both_ways = pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])


class Model(nn.Module):
    """A program of the matrix, its weights parameters."""

    def __init__(self, program: Any) -> None:
        super().__init__()
        self.program = program
        self.weights = nn.ParameterDict({name: nn.Parameter(w) for name, w in weights().items()})

    def forward(self, x: Tensor) -> Any:
        return self.program({name: self.weights[name] for name in ("w", "b")}, x)


def gradients(run: Any, parameters: list[Tensor], x: Tensor) -> Any:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(scalar(run(x)), [*parameters, x], allow_unused=True, materialize_grads=True)


def saved_and_loaded(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    return torch.export.load(buffer)


def targets(program: torch.export.ExportedProgram) -> set[str]:
    """The operators of a program, those inside of others included."""
    parts = [m for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    nodes = [node for part in parts for node in part.graph.nodes if node.op == "call_function"]
    return {str(node.target).split(".")[-1] for node in nodes}


FOR_INFERENCE = {"custom_vjp", "custom_jvp", "custom_root", "custom_linear_solve", "while_loop in scan"}
ROWS = {**{o.public: o.name for o in reversed(OPERATIONS.values())}, "a nest": "while_loop in scan"}
QUICK = {"scan": True, "while_loop": False}
"""The first row of each operation; which are quick, and whether they are strict."""


def check(operation: Operation, strict: bool) -> None:
    model, (x, *others) = Model(operation.program), examples()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        program = torch.export.export(model, (x,), strict=strict)
    texts = [str(w.message) for w in caught if "the program is for inference" in str(w.message)]
    assert bool(texts) == (operation.name in FOR_INFERENCE)
    assert not any(name.startswith("fh_") for name in targets(program)), "it runs without this library"
    oracle = lambda x: operation.oracle({name: model.weights[name] for name in ("w", "b")}, x)
    loaded = saved_and_loaded(program).module()
    for given in (x, *others):
        assert_same(loaded(given), oracle(given))
    assert_same(program.run_decompositions({}).module()(others[0]), oracle(others[0]))
    named = dict(loaded.named_parameters())
    # strict export leaves out those that nothing reads
    parameters = [named.get(f"weights.{name}", model.weights[name]) for name in ("w", "b")]
    if operation.name in FOR_INFERENCE:
        with pytest.raises(RuntimeError, match="Trying to backward through prims"):
            gradients(loaded, parameters, x)
        return
    expected = gradients(oracle, [model.weights[name] for name in ("w", "b")], others[1])
    torch.testing.assert_close(gradients(loaded, parameters, others[1]), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "strict"),
    [
        pytest.param(name, QUICK.get(name, i % 2 == 0), id=name, marks=() if name in QUICK else pytest.mark.slow)
        for i, name in enumerate(ROWS.values())
    ],
)
def test_each_operation(name: str, strict: bool) -> None:
    check(OPERATIONS[name], strict)


# -- while loops


def growth(w: Tensor, x: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    step = lambda c: (c[0] * w, c[1] + c[0].sqrt().sum())
    return fh.while_loop(lambda c: c[0].sum() < 9, step, (x, total))[1] + x.sum()


def plain_growth(w: Tensor, x: Tensor) -> Tensor:
    start, total = x, torch.zeros((), dtype=torch.float64)
    while x.sum() < 9:
        x, total = x * w, total + x.sqrt().sum()
    return total + start.sum()


class Growth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.5, 1.25], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return growth(self.w, x)


@both_ways
@pytest.mark.parametrize("start", [(1.0, 0.5), (9.0, 0.0)], ids=["some steps", "no step, at an infinite slope"])
def test_gradients_of_a_while_loop(start: tuple[float, float], strict: bool) -> None:
    model, x = Growth(), torch.tensor(start, dtype=torch.float64)
    run = torch.export.export(model, (torch.ones(2, dtype=torch.float64),), strict=strict).module()
    expected = gradients(lambda x: plain_growth(model.w, x), [model.w], x)
    torch.testing.assert_close(gradients(run, list(run.parameters()), x), expected)


def test_a_while_loop_without_parameters_is_for_inference() -> None:
    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return growth(torch.full((2,), 1.5, dtype=torch.float64), x)

    x = torch.ones(2, dtype=torch.float64)
    program = torch.export.export(Module(), (x,))
    torch.testing.assert_close(program.module()(x), Module()(x))
    assert "cond" not in targets(program)
    with pytest.raises(RuntimeError, match="Trying to backward through prims"):
        gradients(program.module(), [], x)
    trained = torch.export.export(Module(), (x.clone().requires_grad_(),)).module()
    torch.testing.assert_close(gradients(trained, [], x), gradients(Module(), [], x))


def torchs_while(x: Tensor, w: Tensor) -> Tensor:
    return while_loop_op(lambda c, w: c.sum() < 5, lambda c, w: (c * w,), (x,), (w,))[0]


def test_torch_takes_a_step_where_a_while_loop_takes_none() -> None:
    """torch (2.13), WhileLoopAutogradOp: the step counts in the gradient. If this fails, see `lowering/exported.py`."""
    x, w = torch.tensor([10.0], requires_grad=True), torch.tensor([3.0], requires_grad=True)
    assert torch.autograd.grad(torchs_while(x, w).sum(), (x, w)) == (3.0, 10.0), "not 1 and 0"


def test_torch_forgets_carries_of_a_while_loop_that_begin_without_a_gradient() -> None:
    """torch (2.13): only the last step counts, and a second derivative is wrong. See `lowering/exported.py`."""
    x, w = torch.tensor([1.0]), torch.tensor([2.0], requires_grad=True)
    assert torch.autograd.grad(torchs_while(x, w).sum(), w) == (4.0,), "not 12, of w ** 3"


def test_torch_counts_integers_among_what_has_gradients() -> None:
    """torch (2.13): there are more cotangents than results to differentiate. See `lowering/exported.py`."""
    x = torch.ones(2, requires_grad=True)
    y, _ = cond_op(torch.tensor(True), lambda x: (x.sin(), x > 1), lambda x: (x.cos(), x > 2), (x,))
    with pytest.raises(AssertionError, match="outs_to_grad length"):
        torch.autograd.grad(y.sum(), x)


def test_torch_has_wrong_second_derivatives_of_loops() -> None:
    """torch (2.13): without a word. If this fails, see docs/shipping.md."""
    x, w = torch.tensor([1.0], requires_grad=True), torch.tensor([2.0], requires_grad=True)
    first = torch.autograd.grad(torchs_while(x, w).sum(), (x, w), create_graph=True)
    assert torch.stack([*first]).flatten().tolist() == [8.0, 12.0], "three steps"
    second = torch.autograd.grad(first[1].sum(), w, allow_unused=True)
    assert second != (12.0,)


def test_a_second_derivative_of_a_while_loop_is_refused() -> None:
    class Module(Growth):
        def forward(self, x: Tensor) -> Tensor:
            return fh.grad(lambda x: growth(self.w, x))(x)

    model, x = Module(), torch.ones(2, dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="no second derivative of a while loop"):
        run = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(run(x), model(x))
    with pytest.raises(RuntimeError, match="Trying to backward through prims"):
        gradients(run, list(run.parameters()), x)


# -- sizes and numbers


@both_ways
def test_integers_among_the_results(strict: bool) -> None:
    class Module(Growth):
        def forward(self, x: Tensor) -> Any:
            step = lambda c, row: ((c[0] + 1, c[1] * self.w), (c[0] > 1, c[1] * row, c[0] - 2**62))
            carry, ys = fh.scan(step, (2**62, self.w), torch.stack([x, x + 1]))
            return [carry, ys, fh.cond(x.sum() > 0, lambda x: (x.sin(), x > 1, 3), lambda x: (x, x < 1, 4), x)]

    model, x = Module(), torch.tensor([0.3, 1.2], dtype=torch.float64)
    run = torch.export.export(model, (x.clone().requires_grad_(),), strict=strict).module()
    torch.testing.assert_close(run(x), model(x))
    expected = gradients(model, list(model.parameters()), x)
    torch.testing.assert_close(gradients(run, list(run.parameters()), x), expected)


def test_a_scan_that_stacks_nothing_and_saves_nothing() -> None:
    class Module(Growth):
        def forward(self, x: Tensor) -> Any:
            return fh.scan(lambda c, row: (c * 0.9 + row, None), self.w, torch.stack([x, x + 1]) * self.w)[0]

    model, x = Module(), torch.tensor([0.3, 1.2], dtype=torch.float64)
    run = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(run(x), model(x))
    expected = gradients(model, list(model.parameters()), x)
    torch.testing.assert_close(gradients(run, list(run.parameters()), x), expected)


DETERMINANTS = {"det": torch.linalg.det, "slogdet": lambda a: torch.linalg.slogdet(a)[1]}


@pytest.mark.parametrize("name", DETERMINANTS)
def test_torch_differentiates_determinants_in_a_scan_by_the_layout_of_what_it_stacked(name: str) -> None:
    """torch (2.13): without a word. If this fails, see `trace/normalize.py`."""
    a, rows = torch.tensor([[1.0, 2.0], [0.5, 3.0]], requires_grad=True), torch.tensor([1.0, 0.5])
    step = lambda c, row, a: (c + DETERMINANTS[name]((a * row).T), c.clone())
    total, _ = scan_op(step, [torch.zeros(())], [rows], (a,))
    expected = sum(DETERMINANTS[name]((a * row).T) for row in rows)
    torch.testing.assert_close(total, expected)
    found, right = (torch.autograd.grad(value, a)[0] for value in (total, expected))
    assert not torch.allclose(found, right)


@both_ways
@pytest.mark.parametrize("name", DETERMINANTS)
def test_determinants_of_transposed_matrices(name: str, strict: bool) -> None:
    class Module(Growth):
        def forward(self, x: Tensor) -> Any:
            step = lambda c, row: (c + DETERMINANTS[name]((torch.outer(self.w, row) + torch.diag(row.exp())).T), c)
            return fh.scan(step, x.new_zeros(()), torch.stack([x, x + 1]))

    model, x = Module(), torch.tensor([0.3, 1.2], dtype=torch.float64)
    run = torch.export.export(model, (x.clone().requires_grad_(),), strict=strict).module()
    torch.testing.assert_close(run(x), model(x))
    expected = gradients(model, list(model.parameters()), x)
    torch.testing.assert_close(gradients(run, list(run.parameters()), x), expected)


@both_ways
def test_gradients_of_branches_that_differ_in_strides(strict: bool) -> None:
    """torch's derivative of a cond is one, whose results would be a transposed, a dense and an expanded tensor."""

    class Module(Growth):
        def forward(self, x: Tensor) -> Any:
            w, start = torch.outer(self.w, x), self.w * 2
            yes = lambda c: w.T @ c + (x * self.w).sum()
            no = lambda c: w @ c * x.sum()
            return fh.scan(lambda c, row: (fh.cond(row.sum() > 0, yes, no, c), None), start, torch.stack([x, -x, x]))[0]

    model, x = Module(), torch.tensor([0.3, 1.2], dtype=torch.float64)
    run = torch.export.export(model, (x.clone().requires_grad_(),), strict=strict).module()
    torch.testing.assert_close(run(x), model(x))
    expected = gradients(model, list(model.parameters()), x)
    torch.testing.assert_close(gradients(run, list(run.parameters()), x), expected)


@both_ways
@pytest.mark.parametrize("has_gradient", [True, False])
def test_chunks_and_their_remainder(has_gradient: bool, strict: bool) -> None:
    """torch's vmap can't stand by itself in what torch exports, around a parameter."""

    class Module(Growth):
        def forward(self, x: Tensor) -> Any:
            w = torch.outer(self.w, x)
            return fh.map(lambda row: (torch.tanh(w @ row), row.argmax()), torch.stack([x, x.sin(), -x]), batch_size=2)

    model, x = Module(), torch.tensor([0.3, 1.2], dtype=torch.float64)
    with torch.set_grad_enabled(has_gradient):
        program = torch.export.export(model, (x,), strict=strict)
    torch.testing.assert_close(program.module()(x), model(x))


@both_ways
def test_what_shares_memory_with_a_parameter_is_carried(strict: bool) -> None:
    """Without gradients a captured view is detached: torch, which decomposes the program, asks whether loops share."""

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([[0.5, 0.2], [0.1, 0.4]], dtype=torch.float64))

        def forward(self, xs: Tensor) -> Any:
            step = lambda c, x: (torch.tanh(self.w @ c + x), c.sum())
            return fh.jit(lambda xs: fh.scan(step, self.w[0], xs), backend="eager")(xs)

    model, x = Module(), torch.tensor([[0.3, 1.2], [0.1, -0.4]], dtype=torch.float64)
    with torch.no_grad():
        program = torch.export.export(model, (x,), strict=strict)
    torch.testing.assert_close(program.run_decompositions().module()(x), model(x))


@both_ways
def test_gradients_of_a_while_loop_that_differ_in_strides(strict: bool) -> None:
    """torch's derivative of a while loop carries the gradients of a weight, and of the carry, which are transposed."""

    class Module(Growth):
        def forward(self, x: Tensor) -> Any:
            w = torch.outer(self.w, x)
            step = lambda s: (torch.tanh(w @ s[0].T.contiguous()).T, s[1] + 1)
            return fh.while_loop(lambda s: s[1] < 3, step, (torch.stack([x, x.sin(), -x]), 0))[0]

    model, x = Module(), torch.tensor([0.3, 1.2], dtype=torch.float64)
    run = torch.export.export(model, (x.clone().requires_grad_(),), strict=strict).module()
    torch.testing.assert_close(run(x), model(x))
    expected = gradients(model, list(model.parameters()), x)
    torch.testing.assert_close(gradients(run, list(run.parameters()), x), expected)


def test_a_custom_rule_is_called_what_the_user_calls_it() -> None:
    """By its own line, too, where equal rules are made at others."""
    w = torch.tensor([1.5, 2.5], requires_grad=True)

    def doubled() -> Any:
        rule = fh.custom_vjp(lambda x: x.sin())
        rule.defvjp(lambda x: (x.sin(), x), lambda x, ct: (2 * ct * x.cos(),))
        rule.__name__ = "slow_sine"
        return rule

    programs = [
        lambda x: fh.custom_linear_solve(lambda v: w * v, x, lambda f, b: b / f(torch.ones(2)), symmetric=True),
        lambda x: fh.custom_root(lambda y: w * y - x, x, lambda f, y: x / w, lambda g, y: y / g(torch.ones(2))),
        lambda x: fh.scan(lambda c, t: (doubled()(c * t), None), w, x)[0],
        lambda x: fh.vmap(doubled())(x * w),
    ]
    names = ["custom_linear_solve", "custom_root", "custom_vjp slow_sine", "custom_vjp slow_sine"]
    for program, name in zip(programs, names):

        class Module(nn.Module):
            def forward(self, x: Tensor, program: Any = program) -> Any:
                return program(x)

        line = program.__code__.co_firstlineno
        with pytest.warns(RuntimeWarning, match=rf"since {name} has a derivative of its own(?s:.*)\.py:{line}:"):
            torch.export.export(Module(), (torch.ones(2),))


def test_complex_numbers_are_for_inference() -> None:
    class Module(Growth):
        def forward(self, x: Tensor) -> Tensor:
            step = lambda c, row: (c * row * self.w * (1 + 1j), None)
            return fh.scan(step, torch.ones(2, dtype=torch.complex128), torch.stack([x, x + 1]))[0].abs()

    model, x = Module(), torch.tensor([0.3, 1.2], dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="no derivative of it over complex numbers"):
        run = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(run(x), model(x))
    with pytest.raises(RuntimeError, match="Trying to backward through prims"):
        gradients(run, list(run.parameters()), x)


def test_torch_forgets_detach_where_it_decomposes_a_program() -> None:
    """``run_decompositions()`` makes an alias of it, which has a gradient; ``run_decompositions({})`` does not."""

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.w.detach() + self.w

    x = torch.tensor(5.0)
    program = torch.export.export(Module(), (x,))
    found = []
    for run in (program.module(), program.run_decompositions().module(), program.run_decompositions({}).module()):
        found.append(torch.autograd.grad(run(x), list(run.parameters()))[0].item())
    assert found == [1.0, 6.0, 1.0]


def test_torch_decomposes_no_solver_in_a_loop() -> None:
    """The constants of its decompositions are in the graph of a step, where torch looks for none."""

    class Module(nn.Module):
        def forward(self, xs: Tensor) -> Any:
            solve = lambda c, row: (torch.linalg.solve(torch.eye(2).double() + row.outer(row), c), c.clone())
            return scan_of_torch(solve, xs[0].clone(), xs)

    program = torch.export.export(Module(), (X,))
    with pytest.raises(Exception, match=r"Constant tensor lifted_tensor_\d is not in the constants dictionary"):
        program.run_decompositions()
    assert_same(program.run_decompositions({}).module()(X), Module()(X))


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["traced", "strict"])
def test_open_sizes_under_transforms_and_in_predicates(strict: bool) -> None:
    class Module(Growth):
        def forward(self, xs: Tensor) -> Any:
            last = lambda xs: fh.scan(lambda c, row: (torch.tanh(c * self.w + row), None), xs[0], xs)[0].sum()
            return fh.grad(last)(xs), fh.cond(xs.shape[0] > 5, torch.sin, torch.cos, xs)

    model = Module()
    xs = torch.randn(4, 2, dtype=torch.float64)
    program = torch.export.export(model, (xs,), dynamic_shapes=({0: torch.export.Dim("T", min=2)},), strict=strict)
    assert {"scan", "cond"} <= targets(program)
    assert set(program.state_dict) == {"w"}
    again = torch.export.export(program.module(), (xs,), dynamic_shapes=({0: torch.export.Dim("T", min=2)},))
    for version in (program, saved_and_loaded(program), program.run_decompositions(), again):
        for length in (2, 5, 6, 9):
            given = torch.randn(length, 2, dtype=torch.float64)
            torch.testing.assert_close(version.module()(given), model(given))


def test_a_strict_export_assumes_nothing_about_the_number_of_a_branch() -> None:
    class Module(nn.Module):
        def forward(self, xs: Tensor) -> Any:
            branches = [torch.sin, torch.cos, torch.tanh]
            return fh.switch(xs.shape[0] % 3, branches, xs), fh.switch(5 - xs.shape[0], branches, xs)

    xs, sizes = torch.randn(4, 2), ({0: torch.export.Dim("T", min=2, max=64)},)
    program = torch.export.export(Module(), (xs,), dynamic_shapes=sizes, strict=True)
    for version in (program, program.run_decompositions({})):
        for length in (2, 3, 4, 5, 6, 7):
            given = torch.randn(length, 2)
            torch.testing.assert_close(version.module()(given), Module()(given))


@pytest.mark.parametrize(
    "function",
    [
        lambda xs: fh.associative_scan(torch.mul, xs),
        lambda xs: fh.map(lambda x: x.sin() * xs.shape[0], xs),
        lambda xs: fh.while_loop(lambda c: c.sum() < 20, lambda c: c.square() + xs.shape[0], xs),
    ],
    ids=["associative_scan", "map", "while_loop"],
)
def test_a_program_with_open_sizes_is_exported_again_strictly(function: Any) -> None:
    class Module(nn.Module):
        def forward(self, xs: Tensor) -> Any:
            return function(xs)

    xs, sizes = torch.linspace(0.5, 1.5, 8).reshape(4, 2), ({0: torch.export.Dim("T", min=2, max=64)},)
    program = torch.export.export(Module(), (xs,), dynamic_shapes=sizes)
    again = torch.export.export(program.module(), (xs,), dynamic_shapes=sizes, strict=True)
    for given in (xs, xs[:2]):
        torch.testing.assert_close(again.module()(given), function(given))


def summed(step: Any, xs: Tensor) -> Tensor:
    return fh.scan(step, torch.zeros((), dtype=xs.dtype), xs)[0]


def below_zero(xs: Tensor) -> Any:
    return (xs.detach().sum().long() - 9 * xs.shape[0]).item()


def with_value(xs: Tensor, k: Any) -> Tensor:
    return summed(lambda c, x: (c + x.sin().sum() * k, None), xs)


READ_OUTSIDE = {
    "scan": lambda xs, n: summed(lambda c, x: (c + x.sin().sum() * n, None), xs),
    "float": lambda xs, n: summed(lambda c, x: (c + x.sin().sum() * (n / 7), None), xs),
    "value": lambda xs, n: with_value(xs, below_zero(xs)),
    "cond in scan": lambda xs, n: summed(
        lambda c, x: (fh.cond(x.sum() > 2, lambda c: c * n, lambda c: c + x.sin().sum() * n, c), None), xs
    ),
    "scan in vmap": lambda xs, n: fh.vmap(lambda x: summed(lambda c, a: (c * a.sin() + n, None), x))(xs).sum(),
    "steps": lambda xs, n: fh.fori_loop(n // 4, n - 5, lambda i, c: c * 0.9 + (xs[i] * n).sin().sum(), xs.sum()),
    "no step": lambda xs, n: fh.fori_loop(n, 0, lambda i, c: c * n, xs.sum()),
}


@both_ways
@pytest.mark.parametrize("name", READ_OUTSIDE)
def test_a_size_that_is_read_outside_of_a_function_stays_open(name: str, strict: bool) -> None:
    class Module(nn.Module):
        def forward(self, xs: Tensor) -> Tensor:
            return READ_OUTSIDE[name](xs, xs.shape[0])

    example = torch.linspace(0.2, 1.5, 21, dtype=torch.float64).reshape(7, 3).requires_grad_()
    sizes = ({0: torch.export.Dim("T", min=2, max=64)},)
    run = torch.export.export(Module(), (example,), dynamic_shapes=sizes, strict=strict).module()
    for given in (example, example[:2], example.tile(2, 1)):
        value, expected = run(given), Module()(given)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(torch.autograd.grad(value, example), torch.autograd.grad(expected, example))


@pytest.mark.parametrize("part", [lambda xs: xs, lambda xs: xs[1:], lambda xs: torch.cat([xs, xs])])
def test_programs_with_open_lengths_are_traced_by_dynamo(part) -> None:
    """It takes no scan with a size among its operands."""

    class Module(nn.Module):
        def forward(self, xs: Tensor) -> Any:
            return fh.scan(lambda c, x: (c * 0.5 + x, c), xs[0], part(xs))

    sizes = ({0: torch.export.Dim("T", min=3, max=64)},)
    program = torch.export.export(Module(), (X,), dynamic_shapes=sizes)
    again = torch.export.export(program.module(), (X,), dynamic_shapes=sizes, strict=True)
    longer = torch.cat([X, X])
    for run in (again.module(), torch.compile(program.module(), fullgraph=True, backend="aot_eager")):
        torch.testing.assert_close(run(longer), Module()(longer))


class Averaging(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(2))

    def forward(self, xs: Tensor) -> Tensor:
        self.mean = 0.5 * self.mean + xs.mean(0)
        return fh.scan(lambda c, x: (c * 0.5 + x * self.mean, None), xs[0], xs)[0]


class AveragingInTorch(Averaging):
    def forward(self, xs: Tensor) -> Tensor:
        self.mean = 0.5 * self.mean + xs.mean(0)
        return xs * self.mean


@pytest.mark.parametrize("kind", [Averaging, AveragingInTorch])
def test_torchs_strict_export_forgets_assignments_of_buffers(kind: type[nn.Module]) -> None:
    """The value is right, and the buffer stays as it was, which torch warns of."""
    xs, model = torch.arange(6.0).reshape(3, 2), kind()
    traced = torch.export.export(kind(), (xs,)).module()
    with pytest.warns(UserWarning, match="certain side effects happened.*_buffers"):
        strict = torch.export.export(kind(), (xs,), strict=True).module()
    expected = model(xs)
    torch.testing.assert_close([traced(xs), strict(xs), traced.mean], [expected, expected, model.mean])
    torch.testing.assert_close(strict.mean, torch.ones(2))


def test_a_program_runs_without_the_library(tmp_path: Any) -> None:
    model, x = Growth(), torch.ones(2, dtype=torch.float64)
    torch.export.save(torch.export.export(model, (x,), strict=True), tmp_path / "program.pt2")
    code = (
        "import sys, torch\n"
        f"run = torch.export.load({str(tmp_path / 'program.pt2')!r}).module()\n"
        "run(torch.ones(2, dtype=torch.float64)).backward()\n"
        "assert 'functorch_hops' not in sys.modules\n"
        "print(run.w.grad.tolist())"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    expected = torch.autograd.grad(plain_growth(model.w, x), model.w)[0]
    torch.testing.assert_close(torch.tensor(eval(printed), dtype=torch.float64), expected)


def branches(x: Tensor) -> Any:
    step = lambda c, _: ({"h": c["h"] + 1 if c["h"].sum() > 0 else c["h"]}, None)
    return fh.scan(step, {"h": x}, length=3)


def grows(x: Tensor) -> Any:
    step = lambda c, _: ({"h": torch.cat([c["h"]] * 2)}, None)
    return fh.grad(lambda x: fh.scan(step, {"h": x}, length=2)[0]["h"].sum())(x)


@both_ways
@pytest.mark.parametrize(
    ("function", "kind", "words"),
    [(branches, fh.DataDependentError, "scan: "), (grows, fh.MetadataMismatchError, r"carry\['h'\]")],
    ids=["branches", "grows"],
)
def test_what_is_refused(function: Any, kind: type[Exception], words: str, strict: bool) -> None:
    class Module(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return function(x)

    with pytest.raises(kind, match=words) as caught:
        torch.export.export(Module(), (torch.ones(2),), strict=strict)
    assert f"at {__file__}" in str(caught.value), "the user's line"
    test_integers_among_the_results(strict)  # a failure leaves nothing behind


class Loops(nn.Module):
    """Loops and branches with integers among their results."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, -0.4], dtype=torch.float64))

    def forward(self, x: Tensor) -> Any:
        step = lambda c, r: ((torch.tanh(c[0] * self.w + r), c[1] + 1), (c[0] > 0, c[0] * r))
        scanned = fh.scan(step, (x[0] * self.w, 0), x)
        mapped = fh.map(lambda r: (r * self.w * r, r.argmax()), x * self.w)
        grown = lambda x: (x.T * self.w[0], x.argmax())
        chosen = fh.cond(x.sum() > 0, grown, lambda x: ((x.sin() * self.w).T, x.argmin()), x * self.w)
        jitted = fh.jit(lambda x: x.sin() * self.w, backend="eager")(x)
        return scanned, mapped, chosen, jitted, fh.checkpoint(lambda x: x.sin() * self.w)(x)


X = torch.tensor([[0.3, 1.2], [0.1, -0.4], [-1.0, 0.7]], dtype=torch.float64)


@both_ways
def test_no_grad_around_an_export_is_no_part_of_the_program(strict: bool) -> None:
    model = Loops()
    with torch.no_grad():
        program = torch.export.export(model, (X,), strict=strict)
    run = program.module()
    expected = gradients(model, list(model.parameters()), X)
    torch.testing.assert_close(gradients(run, list(run.parameters()), X), expected)
    with torch.no_grad():
        run = fh.export(model, (X,)).module()
    torch.testing.assert_close(gradients(run, list(run.parameters()), X), expected)


@both_ways
def test_an_input_may_require_a_gradient_where_none_did_in_the_export(strict: bool) -> None:
    model = Loops().requires_grad_(False)
    run = torch.export.export(model, (X,), strict=strict).module()
    torch.testing.assert_close(gradients(run, [], X), gradients(model, [], X))


class Target(Loops):
    """What it compares with has no gradient."""

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            with torch.no_grad():
                first = fh.cond(x.sum() > 0, lambda x: x * self.w, torch.sin, x)
            target = fh.scan(lambda c, r: (torch.tanh(c * self.w + r), None), x[0], x)[0]
        return first + target * fh.map(lambda r: r * self.w, x) + self.fixed(x)

    @torch.no_grad()
    def fixed(self, x: Tensor) -> Any:
        return fh.map(lambda r: r * self.w, x)


@both_ways
@pytest.mark.parametrize("enabled", [True, False])
def test_no_grad_in_a_model_is_part_of_the_program(strict: bool, enabled: bool) -> None:
    model = Target()
    with torch.set_grad_enabled(enabled):
        program = torch.export.export(model, (X,), strict=strict)
    run = program.module()
    expected = gradients(model, list(model.parameters()), X)
    torch.testing.assert_close(gradients(run, list(run.parameters()), X), expected)


class Inferred(Loops):
    """What takes a form without a derivative, or has none in torch's operators, stands where there is no gradient."""

    def forward(self, x: Tensor) -> Any:
        y = x * self.w
        with torch.no_grad():
            found = fh.while_loop(lambda v: v.norm() > 0.5, lambda v: 0.5 * torch.tanh(v * self.w), y)
            sums = fh.associative_scan(lambda a, b: (a[0] * b[0], a[1] * b[0] + b[1]), (y, y))
        return (found + sums[1]) * self.w + fh.map(lambda r: r * self.w, x)


@both_ways
@pytest.mark.parametrize("has_gradient", [True, False])
def test_what_a_model_runs_under_no_grad_is_detached(strict: bool, has_gradient: bool) -> None:
    model = Inferred()
    run = torch.export.export(model, (X.clone().requires_grad_(has_gradient),), strict=strict).module()
    expected = gradients(model, list(model.parameters()), X)
    torch.testing.assert_close(gradients(run, list(run.parameters()), X), expected)


class Switched(Loops):
    """It switches gradients off by a call, and on again."""

    def forward(self, x: Tensor) -> Any:
        torch.set_grad_enabled(False)
        target = fh.scan(lambda c, r: (torch.tanh(c * self.w + r), None), x[0], x)[0]
        torch.set_grad_enabled(True)
        return target * fh.map(lambda r: r * self.w, x)


def test_gradients_that_a_model_switches_off_by_a_call() -> None:
    model = Switched()
    expected = gradients(model, list(model.parameters()), X)
    for strict, enabled in ((True, True), (False, True), (False, False)):
        with torch.set_grad_enabled(enabled):
            run = torch.export.export(model, (X,), strict=strict).module()
        torch.testing.assert_close(gradients(run, list(run.parameters()), X), expected)
    with torch.no_grad(), pytest.warns(RuntimeWarning, match="whether the program turned gradients off around scan"):
        torch.export.export(model, (X,), strict=True)


def test_torch_forgets_no_grad_in_a_model_around_its_control_flow_and_in_an_export_without_gradients() -> None:
    class Region(nn.Module):
        def __init__(self, function: Any) -> None:
            super().__init__()
            self.function = function

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y: Tensor = self.function(x)
            return y + x

    branch = Region(lambda x: torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: x * 3, (x,)))
    with torch.no_grad():
        plain = torch.export.export(Region(lambda x: x * 2), (X,))
    for program in (torch.export.export(branch, (X,)), plain):
        x = X.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(program.module()(x).sum(), x)
        assert (gradient == 3).all(), "of the region too"


def test_torchs_strict_export_takes_no_associative_scan_that_was_loaded() -> None:
    class Sums(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return fh.associative_scan(torch.add, x)

    loaded = saved_and_loaded(torch.export.export(Sums(), (X,))).module()
    with pytest.raises(Exception, match="mismatched input/output tree structure"):
        torch.export.export(loaded, (X,), strict=True)
    again = torch.export.export(loaded, (X,), strict=False).module()
    torch.testing.assert_close(again(X), X.cumsum(0))


LOOPS_IN_A_STEP = {
    "scan": lambda w, c: fh.scan(lambda c, _: (c * w, c.sum()), c, length=3),
    "a carry that its derivative reads": lambda w, c: fh.scan(lambda c, _: (d := c * w, (d**2).sum()), c, length=3),
    "fori_loop": lambda w, c: (fh.fori_loop(0, 3, lambda i, c: c * w + i, c), c),
    "scan over integers": lambda w, c: fh.scan(lambda c, i: (c * w + i, i), c, torch.arange(3)),
    "closed-over integer": lambda w, c: (fh.fori_loop(0, 3, lambda i, c: c * w + (c > 0).sum() * i, c), c),
    "closed-over integer outside": lambda w, c: (lambda n: fh.scan(lambda c, _: (c * w + n, n), c, length=3))(
        (c > 0).sum()
    ),
    "loops in one another": lambda w, c: (
        fh.fori_loop(0, 2, lambda i, c: fh.fori_loop(0, 2, lambda j, c: c * w, c), c),
        c,
    ),
}


@pytest.mark.parametrize("name", LOOPS_IN_A_STEP)
def test_loops_in_the_step_of_a_scan(name: str) -> None:
    """There torch counts integers among what has gradients: they travel by their bits. And it refuses steps that return
    what their derivative saves.
    """

    class Nest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.7, -1.2], dtype=torch.float64))

        def forward(self, x: Tensor) -> Any:
            def step(c: Tensor, r: Tensor) -> tuple[Tensor, Any]:
                c, y = LOOPS_IN_A_STEP[name](self.w, c)
                return c + r, y

            return fh.scan(step, x[0], x)

    model = Nest()
    run = torch.export.export(model, (X,)).module()

    def gradient(f: nn.Module) -> Tensor:
        c, y = f(X)
        (found,) = torch.autograd.grad((c**2).sum() + y.double().sum(), list(f.parameters()))
        return found

    if torch.__version__ < (2, 13):
        with pytest.raises(RuntimeError, match="scan might be aliasing the input or the output"):
            gradient(run)
        return
    torch.testing.assert_close(gradient(run), gradient(model))


@pytest.mark.parametrize("strict", [False, True])
def test_a_step_that_transposes_its_carry(strict: bool) -> None:
    """torch's scan takes a carry of other strides for another one."""

    class Turning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.eye(2, dtype=torch.float64) + 0.3)

        def forward(self, x: Tensor) -> Tensor:
            c, ys = fh.scan(lambda c, _: ((c @ self.w).sin().T, c.T), x, length=3)
            return (c**2).sum() + (ys**3).sum()

    model, x = Turning(), X[:2, :2]
    run = torch.export.export(model, (x,), strict=strict).module()
    found = torch.autograd.grad(run(x), list(run.parameters()))
    torch.testing.assert_close(found, torch.autograd.grad(model(x), list(model.parameters())))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_torch_has_no_derivative_of_a_scan_in_a_scan_that_saves_its_own_result() -> None:
    class Nest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(self, x: Tensor) -> Any:
            inner = lambda c, r: (torch.tanh(c * self.w + r), c.clone())
            return scan_of_torch(lambda c, r: (scan_of_torch(inner, c, x)[0] + r, c.clone()), x[0] * self.w, x)[0]

    run = torch.export.export(Nest(), (X,)).module()
    with torch.no_grad():
        run(X)
    with pytest.raises(RuntimeError, match="derivative for aten::detach_copy is not implemented"):
        run(X)
