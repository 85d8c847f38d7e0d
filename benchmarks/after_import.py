"""What calls of torch cost once functorch_hops is imported: `python benchmarks/after_import.py`.

The import puts Python functions around some of torch's (docs/importing.md). Here torch's own and these take turns in
one process.

Target: at most 2 us for each argument of a transform, and for each call of an autograd.Function.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from timing import interleaved, print_table
from torch._functorch import eager_transforms, vmap

CALLS = 50
"""How many calls follow each exchange of functions, so that the exchange costs nothing."""
PLACES: list[tuple[Any, str]] = [
    (vmap, "_add_batch_dim"),
    (vmap, "_remove_batch_dim"),
    (eager_transforms, "_wrap_for_grad"),
    (torch.autograd.Function, "apply"),
    (torch.autograd.function._SingleLevelFunction, "apply"),
    (torch.autograd.function, "custom_function_call"),
]
ABSENT = object()


def found() -> list[Any]:
    return [vars(owner).get(name, ABSENT) for owner, name in PLACES]


BEFORE = found()
importlib.import_module("functorch_hops")
AFTER = found()


def with_functions(functions: list[Any], call: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        for (owner, name), function in zip(PLACES, functions):
            if function is not ABSENT:
                setattr(owner, name, function)
            elif name in vars(owner):
                delattr(owner, name)
        for _ in range(CALLS):
            call()

    return run


class Sine(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, ct):
        return ct * ctx.saved_tensors[0].cos()


def cases() -> dict[str, Callable[[], object]]:
    x, many = torch.rand(3), [torch.rand(3) for _ in range(20)]
    active = x.clone().requires_grad_()
    return {
        "x.sin()": lambda: x.sin(),
        "vmap": lambda: torch.func.vmap(torch.sin)(x),
        "vmap, 20 arguments": lambda: torch.func.vmap(lambda *xs: xs[0])(*many),
        "grad": lambda: torch.func.grad(lambda x: x.sin().sum())(x),
        "vmap(grad)": lambda: torch.func.vmap(torch.func.grad(torch.sin))(x),
        "jvp": lambda: torch.func.jvp(torch.sin, (x,), (x,)),
        "autograd.Function": lambda: Sine.apply(active),
        "grad of an autograd.Function": lambda: torch.func.grad(lambda x: Sine.apply(x).sum())(x),
    }


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for name, call in cases().items():
        before, after = interleaved(with_functions(BEFORE, call), with_functions(AFTER, call), seconds=3)
        times = [before.micros / CALLS, after.micros / CALLS]
        rows.append([name, *(f"{t:.2f}" for t in times), f"{after.ratio:.3f}", f"{after.median_ratio:.3f}"])
    print_table("us per call", ["call", "before", "after", "ratio", "median ratio"], rows)


if __name__ == "__main__":
    main()
