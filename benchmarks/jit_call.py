"""What a call of a jitted function costs over the code that it runs: `python benchmarks/jit_call.py`.

Finding the trace, checking that nothing it depends on has changed, and putting the operands together is what
`fh.jit` adds to each call. The first table compares it with the compiled code, called directly with its flat
operands; the second compares forward and backward with eager PyTorch. `torch.compile` on the same function
stands beside them, as what users know.

Target: at most 60 us over the compiled code.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from timing import Timing, interleaved, print_table
from torch import Tensor, nn

import functorch_hops as fh
from functorch_hops.lowering.backends import compiled
from functorch_hops.ops.closed_call.op import closed_call_op
from functorch_hops.transforms.jit import JittedFunction

TARGET = 60.0


class Case(NamedTuple):
    name: str
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

    return [
        Case("1 closed-over tensor", closes_over_one, (x,)),
        Case("tree of 6 tensors", takes_a_tree, (tree,)),
        Case("module of 20 parameters", module, (x,)),
    ]


def code_of(jitted: JittedFunction, case: Case) -> Callable[[], object]:
    """The compiled code by itself; with gradients, that which saves what the backward pass needs."""
    function = jitted.forward if isinstance(jitted, nn.Module) else jitted
    entry, operands = function._find(case.arguments, {})
    params, active = entry.params, tuple(x.requires_grad for x in operands)
    if any(active):
        params = closed_call_op.rules.vjp_forward(params, active)
    run, operands = compiled(params.body, params.backend), [x.detach() for x in operands]
    return lambda: run(operands)


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
            figures = code.micros, jitted.micros, jitted.micros - code.micros, dynamo.micros
            rows.append([name, *(f"{us:.1f}" for us in figures)])
    header = ["forward", "compiled code, us", "fh.jit, us", "added, us", "torch.compile, us"]
    print_table(f"A call that finds its trace (target: at most {TARGET:.0f} us added)", header, rows)
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
