"""Loops of exported programs as kernels: what AOTInductor is given in their place, run on many sizes.

Whole packages are made in ``test_aot_inductor.py``; here the graph that Inductor would compile runs as it is, since the
operator of a kernel runs outside of Inductor too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._functorch.aot_autograd import aot_module_simplified, make_boxed_func
from torch._guards import TracingContext, tracing
from torch._higher_order_ops.while_loop import while_loop
from torch._inductor.decomposition import select_decomp_table

import functorch_hops as fh
from functorch_hops.lowering.inductor import exact_code
from functorch_hops.lowering.packaged import put_kernels

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.:FutureWarning")

X, W = torch.linspace(0.2, 0.5, 3), torch.tensor([0.5, -1.0, 0.75])
ROWS = [torch.linspace(-1, 1, 3 * t).reshape(t, 3) for t in (4, 3, 9)]


class Model(nn.Module):
    def __init__(self, function: Callable[..., Any], trained: bool) -> None:
        super().__init__()
        self.function, self.w = function, nn.Parameter(W.clone(), requires_grad=trained)

    def forward(self, xs: Tensor) -> Any:
        outs = self.function(self.w, xs)
        return tuple(torch.utils._pytree.tree_leaves(outs))


def as_packaged(function: Callable[..., Any], *, trained: bool = False, is_open: bool = True) -> tuple[Any, set[str]]:
    """The graph that AOTInductor would compile of a module, to be called, and the operators of torch's own that hold
    graphs in it.
    """
    shapes = {"xs": {0: torch.export.Dim("T", min=3)}} if is_open else None
    module: Any = torch.export.export(Model(function, trained), (ROWS[0],), dynamic_shapes=shapes).module(
        check_guards=False
    )
    fakes = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
    left: set[str] = set()

    def compiled(graph: fx.GraphModule, _: Any) -> Any:
        with exact_code():
            put_kernels(graph)
        graph.graph.lint()
        parts = [part for part in graph.modules() if isinstance(part, fx.GraphModule)]
        targets = [node.target for part in parts for node in part.graph.nodes]
        left.update(target.name() for target in targets if isinstance(target, torch._ops.HigherOrderOperator))
        return make_boxed_func(graph.forward)

    with torch.no_grad(), tracing(TracingContext(fakes[0].fake_mode)):
        run = aot_module_simplified(module, fakes, compiled, decompositions=select_decomp_table())
    return run, left


def check(function: Callable[..., Any], left: set[str] = frozenset(), **options: bool) -> None:  # type: ignore[assignment]
    run, found = as_packaged(function, **options)
    assert found == left
    for xs in ROWS if options.get("is_open", True) else ROWS[:1]:
        with torch.no_grad():
            torch.testing.assert_close(tuple(run(xs)), Model(function, trained=False)(xs), rtol=1e-4, atol=1e-5)


def nested(w: Tensor, xs: Tensor) -> Any:
    grow = lambda c: fh.while_loop(lambda v: v.abs().sum() < 20, lambda v: 2 * v + w, c)
    step = lambda c, x: (0.1 * fh.cond(c.sum() > 0, grow, lambda c: c * w, c) + x, (c.sum(), c))
    return fh.scan(step, X, xs)


def slope(w: Tensor, xs: Tensor) -> Any:
    return fh.grad(lambda w: fh.scan(lambda c, x: (torch.tanh(c * w + x), None), X, xs)[0].sum())(w)


def by_size(w: Tensor, xs: Tensor) -> Any:
    """The number of rows is in the step, and that of what is looped over is one less."""
    return fh.scan(lambda c, x: (c / xs.shape[0] + x * xs.sum(0), c), X, xs[1:] - xs[:-1])


def in_a_branch(w: Tensor, xs: Tensor) -> Any:
    """Which closes over what has an open size."""
    return fh.cond(xs.shape[0] > 5, lambda: fh.scan(lambda c, x: (c + x, None), X, xs[1:])[0], lambda: xs[0] * w)


@pytest.mark.parametrize("function", [nested, slope, by_size])
def test_loops_of_open_length_are_kernels(function: Callable[..., Any]) -> None:
    check(function)


def test_loops_in_a_branch_are_kernels() -> None:
    check(in_a_branch, {"cond"})


class Gated(nn.Module):
    """The parameters of a layer are in a module inside of the program's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 3).requires_grad_(requires_grad=False)

    def forward(self, w: Tensor, xs: Tensor) -> Any:
        run = lambda xs: fh.scan(lambda c, x: (torch.tanh(self.layer(c) + x), c), X, xs)
        return fh.cond(w.sum() > 0, run, lambda xs: (X.clone(), xs * w), xs)


def test_parameters_of_a_layer_are_found() -> None:
    """AOTInductor's graph names them by their places."""
    program = torch.export.export(Model(Gated(), trained=False), (ROWS[0],))
    module: Any = program.run_decompositions().module(check_guards=False)
    expected = module(ROWS[0])
    assert any("layer.weight" in str(node.target) for node in module.graph.nodes)
    with torch.no_grad(), exact_code():
        put_kernels(module)
    torch.testing.assert_close(module(ROWS[0]), expected)


def test_the_form_for_training_keeps_its_branch_alone() -> None:
    check(lambda w, xs: fh.while_loop(lambda v: v.abs().sum() < 20, lambda v: 2 * v + w, xs[0]), {"cond"}, trained=True)


def test_maps_and_prefixes_are_kernels() -> None:
    prefixes = lambda xs: fh.associative_scan(lambda a, b: a * b + a + b, xs)
    check(lambda w, xs: (fh.map(lambda x: torch.softmax(x * w, 0), xs), prefixes(xs)))


def test_loops_over_complex_numbers_are_kernels() -> None:
    check(lambda w, xs: fh.scan(lambda c, x: (c * (1j + w) + x, c.abs()), X.to(torch.complex64), xs))


def test_a_loop_in_what_no_kernel_computes_is_a_kernel_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    def function(w: Tensor, xs: Tensor) -> Any:
        def step(c: Tensor, x: Tensor) -> Any:
            power = fh.fori_loop(0, x.sum().abs().long(), lambda i, v: v * w, x)
            return torch.geqrf(c[None])[0][0] + power, power

        return fh.scan(step, X, xs)

    with caplog.at_level(logging.INFO, "functorch_hops"):
        check(function, {"scan"}, is_open=False)
    scan, loop = caplog.messages
    assert "test_packaged_loops.py" in scan
    assert scan.endswith("stays torch's own: Inductor makes no C++ of aten.geqrf.default")
    assert loop.startswith("while_loop")
    assert loop.endswith("is a kernel")


def test_a_loop_of_torchs_own_that_carries_a_number_stays() -> None:
    check(lambda w, xs: while_loop(lambda i, v: i < 4, lambda i, v: (i + 1, v * w + i), (0, xs))[1], {"while_loop"})


def test_random_numbers_stay_torchs_own() -> None:
    run, left = as_packaged(lambda w, xs: fh.scan(lambda c, x: (c + torch.rand(3), c), X, xs), is_open=False)
    assert left == {"scan"}
    assert run(ROWS[0])[1].shape == (4, 3)
