"""The three ways to run a program: plain eager, captured, and under ``jit``; further ones; and how to compare them."""

from __future__ import annotations

from typing import Any

import optree
import pytest
import torch

import functorch_hops as fh


def plain(f, *args):
    return f(*args)


def captured(f, *args):
    with fh.eager_capture():
        return f(*args)


def jitted(f, *args):
    return fh.jit(f, backend="eager")(*args)


MODES = {"plain": plain, "captured": captured, "jit": jitted}
every_mode = pytest.mark.parametrize("run", MODES.values(), ids=MODES)
while_capturing = pytest.mark.parametrize("run", [captured, jitted], ids=["captured", "jit"])


def compiled(f, *args):
    return fh.jit(f, backend="aot_eager")(*args)


def with_open_sizes(f, *args):
    return fh.jit(f, backend="eager", dynamic=True)(*args)


every_way = pytest.mark.parametrize(
    "run", [*MODES.values(), compiled, with_open_sizes], ids=[*MODES, "compiled", "with open sizes"]
)


def compiled_by_torch(f, *args):
    torch.compiler.reset()
    return torch.compile(f, backend="aot_eager", fullgraph=True)(*args)


def same(got: Any, expected: Any, **tolerances: float) -> None:
    torch.testing.assert_close(got, expected, **tolerances)


def gradients(run, f, *args):
    """Gradients of the sum of ``f`` for all arguments, through plain autograd."""
    args = [a.detach().clone().requires_grad_() for a in args]
    return torch.autograd.grad(run(f, *args).sum(), args)


def lane_by_lane(f, *args):
    """``vmap(f)(*args)`` as a Python loop: for oracles that look at their data."""
    size = optree.tree_leaves(args)[0].shape[0]
    outs = [f(*optree.tree_map(lambda x: x[i], args)) for i in range(size)]
    return optree.tree_map(lambda *rows: torch.stack(rows), *outs)


def _scalar(f):
    def loss(*args):
        leaves = [x for x in optree.tree_leaves(f(*args)) if x.is_floating_point()]
        return sum((x * torch.linspace(0.5, 1.5, x.numel(), dtype=x.dtype).reshape(x.shape)).sum() for x in leaves)

    return loss


def _derivatives(tools, f, order):
    """A function to: value, forward mode, reverse mode, forward over reverse, reverse over reverse."""
    loss = _scalar(f)

    def all_of_them(*args):
        everywhere = tuple(range(len(args)))
        gradient = tools.grad(loss, argnums=everywhere)
        results = [f(*args), tools.jvp(loss, args, args)[1], gradient(*args)]
        if order > 1:
            norm = lambda *a: sum(g.square().sum() for g in gradient(*a))
            results += [tools.jvp(gradient, args, args)[1], tools.grad(norm, argnums=everywhere)(*args)]
        return results

    return all_of_them


def same_derivatives(run, f, oracle, *args, order: int = 2) -> None:
    """As ``check_grads`` of JAX's tests, against the oracle under ``torch.func``; all arguments are active tensors.

    Under jit the first order only: the second is its slowest part, and the matrix has it.
    """
    order = 1 if run is jitted else order
    same(run(_derivatives(fh, f, order), *args), _derivatives(torch.func, oracle, order)(*args))
