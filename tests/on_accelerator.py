"""Captures on an accelerator that is not there: which of the programs mix tensors of several devices?

Run in a process of its own, as torch knows one such device, by the name that a process gives it. Its tensors are fake,
so nothing is computed: python tests/on_accelerator.py quick|grid
"""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import optree
import torch
from torch.utils import backend_registration

import functorch_hops as fh
from functorch_hops import TensorSpec
from functorch_hops._torch import new_fake_mode
from functorch_hops.ir.subgraph import Params

DEVICE = "fakegpu"
Program = tuple[Callable[..., Any], tuple[Any, ...]]


def register() -> torch.library.Library:
    backend_registration._setup_privateuseone_for_python_backend(DEVICE)
    mode = new_fake_mode()
    mode.allow_non_fake_inputs = True

    def run(operator: Any, *args: Any, **kwargs: Any) -> Any:
        with mode:
            return operator(*args, **kwargs)

    library = torch.library.Library("_", "IMPL")
    library.fallback(run, "PrivateUse1")
    return library


def there(tree: Any) -> Any:
    return optree.tree_map(lambda x: TensorSpec(tuple(x.shape), x.dtype, DEVICE), tree)


def collatz(n: Any) -> Any:
    def step(state: Any) -> Any:
        n, count = state
        return fh.cond(n % 2 == 0, lambda n: n // 2, lambda n: 3 * n + 1, n), count + 1

    return fh.while_loop(lambda state: state[0] != 1, step, (n, 0))[1]


def exponential(x: Any) -> Any:
    def add_term(state: Any) -> Any:
        total, term, n = state
        return total + term * x / n, term * x / n, n + 1

    one = torch.ones_like(x)
    return fh.while_loop(lambda state: state[1] > 1e-6 * state[0], add_term, (one, one, 1))[0]


def early_end(xs: Any) -> Any:
    step = lambda s: (s[0] + 1, s[1] + xs[s[0]])
    return fh.while_loop(lambda s: (s[0] < xs.shape[0]) & (s[1].sum() < 3), step, (0, torch.zeros_like(xs[0])))


def numbers_of_branches(x: Any) -> Any:
    return x * fh.cond(x.sum() > 0, lambda: 1.0, lambda: 0.5)


def counted_on_the_cpu(x: Any) -> Any:
    step = lambda s: (s[0] * 0.5 / s[1], s[1] + 1)
    return fh.while_loop(lambda s: s[0] > 1e-3, step, (x, torch.ones((), device="cpu")))[0]


def number(value: float) -> Any:
    """A tensor without dimensions on the CPU, made where it is captured."""
    return torch.full((), value, device="cpu")


def counted_for_a_branch(x: Any) -> Any:
    branch = lambda n, x: fh.cond(x.sum() > 0, lambda n, x: x * n, lambda n, x: x + 1, n, x)
    return fh.while_loop(lambda s: s[1].sum() < 3, lambda s: (s[0] + 1, branch(*s)), (number(0), x))[1]


def bisection(x: Any) -> Any:
    def halve(s: Any) -> Any:
        low, high = s
        middle = (low + high) / 2
        return fh.cond((x - middle).sum() > 0, lambda: (middle, high), lambda: (low, middle))

    return x * fh.while_loop(lambda s: s[1] - s[0] > 1e-3, halve, (0.0, 10.0))[0]


def table_on_the_cpu(x: Any) -> Any:
    table = torch.arange(5.0, device="cpu")
    step = lambda s: ((s[0] + 1) % 5, s[1] * table[s[0]] + 1)
    return fh.while_loop(lambda s: s[1].sum() < 3, step, (number(0), x))[1]


def accepted(x: Any) -> Any:
    def step(c: Any, _: Any) -> Any:
        x, count = c
        x, count = fh.cond(x.sum() < 1, lambda: (x + 1, count + 1), lambda: (x, count))
        return (x * count, count), count

    return fh.scan(step, (x, number(0.0)), length=4)[0][0]


def rule_beside_a_number(x: Any) -> Any:
    @fh.custom_vjp
    def scaled(x: Any, n: Any) -> Any:
        return x * n

    scaled.defvjp(lambda x, n: (x * n, n), lambda n, ct: (ct * n, None))
    return fh.while_loop(lambda s: s[1].sum() < 3, lambda s: (s[0] + 1, scaled(s[1], s[0])), (number(1.0), x))[1]


X, XS = torch.zeros(5), torch.zeros(3, 5)
FUNCTIONS: dict[str, Program] = {
    "collatz": (collatz, (torch.tensor(1),)),
    "exponential": (exponential, (torch.tensor(1.0),)),
    "early end": (early_end, (XS,)),
    "numbers of branches": (numbers_of_branches, (X,)),
    "counted on the CPU": (counted_on_the_cpu, (torch.tensor(1.0),)),
    "counted for a branch": (counted_for_a_branch, (X,)),
    "bisection": (bisection, (X,)),
    "table on the CPU": (table_on_the_cpu, (X,)),
    "accepted": (accepted, (X,)),
    "rule beside a number": (rule_beside_a_number, (X,)),
    "read by index": (lambda c, xs: fh.fori_loop(0, 3, lambda i, c: c + xs[i], c), (X, XS)),
    "written by index": (lambda c, xs: fh.fori_loop(0, 3, lambda i, c: put(c, i, xs[i].sum()), c), (X, XS)),
    "compared with an index": (
        lambda c: fh.fori_loop(0, 5, lambda i, c: torch.where(torch.arange(5, device=c.device) > i, c * 2, c), c),
        (X,),
    ),
    "scan from a number": (lambda xs: fh.scan(lambda t, x: (t + x.sum(), t), 0, xs), (XS,)),
    "checkpoints": (
        lambda c: fh.while_loop(lambda s: s[0] < 9, lambda s: (s[0] + 1, s[1].sin()), (0, c), checkpoints=3)[1],
        (torch.tensor(1.0),),
    ),
}


def put(c: Any, i: Any, value: Any) -> Any:
    c = c.clone()
    c[i] = value
    return c


def check_carries(module: Any) -> None:
    """Loops return their carries where they got them."""
    for params in vars(module).values():
        if isinstance(params, Params):
            if n := getattr(params, "n_carry", 0):
                before, after = ([x.device for x in metas[:n]] for metas in (params.body.inputs, params.body.outputs))
                assert before == after, f"{params.operator.label}: {before} becomes {after}"
            for body in params.bodies:
                check_carries(body.module)


def quick() -> Iterator[tuple[str, Callable[..., Any], tuple[Any, ...]]]:
    for name, (f, args) in FUNCTIONS.items():
        lanes = tuple(torch.stack([x, x]) for x in args)
        yield name, f, args
        yield f"vmap of {name}", fh.vmap(f), lanes
        if args[0].is_floating_point():

            def loss(*args: Any, f: Any = f) -> Any:
                return sum(y.sum() for y in optree.tree_leaves(f(*args)) if y.is_floating_point())

            gradient = fh.grad(loss, argnums=tuple(range(len(args))))
            yield f"grad of {name}", gradient, args
            yield f"vmap of grad of {name}", fh.vmap(gradient), lanes


def grid() -> Iterator[tuple[str, Callable[..., Any], tuple[Any, ...]]]:
    """A third of the matrix, with each operation and each context."""
    from matrix.contexts import CONTEXTS, LibraryTools
    from matrix.operations import OPERATIONS
    from matrix.test_grid import arguments

    cells = ((operation, context) for operation in OPERATIONS.values() for context in CONTEXTS.values())
    for operation, context in itertools.islice(cells, 0, None, 3):
        if context.name not in operation.refused and not context.autograd:
            f = context.transform(LibraryTools, operation.program)
            yield f"{operation.name}, {context.name}", f, arguments(context)


if __name__ == "__main__":
    registered = register()
    warnings.simplefilter("ignore")
    count = 0
    for name, f, args in {"quick": quick, "grid": grid}[sys.argv[1]]():
        count += 1
        try:
            graph = fh.jit(f, backend="eager").lower(*there(args)).graph
            check_carries(graph)
        except Exception as error:  # noqa: BLE001 - whatever torch says of devices
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
    print(f"{count} captured")
