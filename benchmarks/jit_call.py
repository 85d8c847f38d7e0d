"""What a call of a jitted function costs over the code that it runs: `python benchmarks/jit_call.py`.

Finding the trace, checking that nothing it depends on has changed, and putting the operands together is what
`fh.jit` adds to each call. The first table compares it with the compiled code, called directly with its flat
operands; the second compares forward and backward with eager PyTorch. `torch.compile` on the same function
stands beside them, as what users know.

Targets, in microseconds over the compiled code: 3 for up to three tensors, 5 for up to ten, 60 for 200, if the function
reads at most 20 places, and 0.1 for each place more.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from timing import Timing, interleaved, print_table
from torch import Tensor, nn

import functorch_hops as fh
from functorch_hops.ir.subgraph import Subgraph
from functorch_hops.lowering.backends import compiled
from functorch_hops.ops.closed_call.op import closed_call_op
from functorch_hops.transforms.jit import JittedFunction


class Case(NamedTuple):
    name: str
    target: float
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def cases(requires_grad: bool) -> list[Case]:
    x = torch.rand(16, 16)
    weight = torch.rand(16, requires_grad=requires_grad)
    tree = {"h": x, "c": (x, weight), "scales": [weight, weight, weight], "none": None, "flag": True}
    layers = [nn.Linear(16, 16) for _ in range(10)]
    module = nn.Sequential(*layers).requires_grad_(requires_grad)

    def closes_over_one(x: Tensor) -> Tensor:
        return (x * weight).sin() + 1

    def takes_a_tree(tree: dict[str, Any]) -> Tensor:
        a, b, c = tree["scales"]
        return (tree["h"] * a + tree["c"][0] * b).sin() * c + tree["c"][1]

    def takes_ten(*tensors: Tensor) -> Tensor:
        return torch.stack(tensors).sum(0) * weight

    def takes_many(tree: dict[str, Tensor]) -> Tensor:
        return torch.stack([*tree.values()]).sum(0)

    many = {f"x{i}": torch.rand(4, requires_grad=requires_grad) for i in range(200)}
    return [
        Case("1 closed-over tensor", 3, closes_over_one, (x,)),
        Case("3 tensors", 3, lambda a, b, c: (a * b).sin() + c, (x, weight, torch.rand(16))),
        Case("tree of 6 tensors", 5, takes_a_tree, (tree,)),
        Case("10 tensors", 5, takes_ten, tuple(torch.rand(16) for _ in range(10))),
        Case("dict of 200 tensors", 60, takes_many, (many,)),
        Case("module of 20 parameters", 20, module, (x,)),
    ]


def code_of(jitted: JittedFunction, case: Case) -> Callable[[], object]:
    """The compiled code by itself; with gradients, that which saves what the backward pass needs."""
    function = jitted.forward if isinstance(jitted, nn.Module) else jitted
    entry, operands = function._find(case.arguments, {})
    params, active = entry.params, tuple(x.requires_grad for x in operands)
    if any(active):
        params = closed_call_op.rules.vjp_forward(params, active)
    flat = [x.detach().contiguous() for x in operands]
    run = compiled(params.body, params.backend).at(flat)
    if isinstance(run, Subgraph):
        return lambda: run(*flat)
    return lambda: run([*flat])


def forward(case: Case, backend: str) -> list[Timing]:
    """The compiled code, the jitted function, torch.compile."""
    jitted = fh.jit(case.function, backend=backend)
    dynamo = torch.compile(case.function, fullgraph=True, backend=backend)
    expected = case.function(*case.arguments)
    torch.testing.assert_close(jitted(*case.arguments), expected)
    torch.testing.assert_close(dynamo(*case.arguments), expected)
    code = code_of(jitted, case)
    misses = jitted.cache_info().misses
    timings = interleaved(code, lambda: jitted(*case.arguments), lambda: dynamo(*case.arguments))
    assert jitted.cache_info().misses == misses == 1
    return timings


def forward_and_backward(case: Case) -> list[Timing]:
    """Eager, the jitted function, torch.compile."""
    jitted = fh.jit(case.function)
    dynamo = torch.compile(case.function, fullgraph=True)

    def step(f: Callable[..., Any]) -> Callable[[], object]:
        return lambda: f(*case.arguments).sum().backward()

    return interleaved(step(case.function), step(jitted), step(dynamo))


def main() -> None:
    torch.set_num_threads(1)
    # torch's own remarks on a first compilation
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    rows = []
    for requires_grad, backend in ((False, "eager"), (False, "inductor"), (True, "inductor")):
        for case in cases(requires_grad):
            torch.compiler.reset()
            code, jitted, dynamo = forward(case, backend)
            name = f"{case.name}, {backend}{', requires grad' if requires_grad else ''}"
            figures = code.micros, jitted.micros, jitted.micros - code.micros, case.target, dynamo.micros
            rows.append([name, *(f"{us:.1f}" for us in figures)])
    header = ["forward", "compiled code, us", "fh.jit, us", "added, us", "target, us", "torch.compile, us"]
    print_table("A call that finds its trace", header, rows)
    rows = []
    for case in cases(requires_grad=True):
        torch.compiler.reset()
        eager, jitted, dynamo = forward_and_backward(case)
        figures = [f"{t.micros:.0f}" for t in (eager, jitted, dynamo)]
        rows.append([case.name, *figures, f"{jitted.ratio:.2f}", f"{jitted.median_ratio:.2f}"])
    header = ["forward and backward", "eager, us", "fh.jit, us", "torch.compile, us"]
    header += ["ratio to eager", "median ratio"]
    print_table("A training step of a small function", header, rows)


if __name__ == "__main__":
    main()
