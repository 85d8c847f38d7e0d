"""Random compositions: up to three transforms of up to three nested operations, drawn by hypothesis.

Each transform here takes a function of a vector and gives another one, so they stack like the operations of nesting.py
do. The oracle is the same stack of ``torch.func`` (and of loops over lanes and directions) over plain Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import Reference

from .contexts import LibraryTools, OracleTools
from .nesting import COMBINATORS, Library, nested
from .operations import Weights, examples, weights
from .test_grid import assert_same

Function = Callable[[Weights, Tensor], Tensor]


def _vmap(tools: Any, f: Function) -> Function:
    return lambda p, v: tools.vmap(f, in_dims=(None, 0))(p, torch.stack([v, v.sin() - 0.3, -v])).sum(0)


def _vmap_weights(tools: Any, f: Function) -> Function:
    def run(p: Weights, v: Tensor) -> Tensor:
        batch = {name: torch.stack([w, w * 0.5 + 0.1]) for name, w in p.items()}
        return tools.vmap(f, in_dims=(0, None))(batch, v).mean(0)

    return run


def _grad(tools: Any, f: Function) -> Function:
    return lambda p, v: tools.grad(lambda v: (f(p, v) * torch.arange(1.0, 4.0, dtype=v.dtype)).sum())(v)


def _grad_of_weights(tools: Any, f: Function) -> Function:
    return lambda p, v: tools.grad(lambda p: f(p, v).sum())(p)["b"]


def _jvp(tools: Any, f: Function) -> Function:
    return lambda p, v: tools.jvp(lambda v: f(p, v), (v,), (v.cos(),))[1]


def _vjp(tools: Any, f: Function) -> Function:
    def run(p: Weights, v: Tensor) -> Tensor:
        out, pull = tools.vjp(lambda v: f(p, v), v)
        return out + pull(v.cos())[0]

    return run


def _jacrev(tools: Any, f: Function) -> Function:
    return lambda p, v: tools.jacrev(f, argnums=1)(p, v) @ v


def _jacfwd(tools: Any, f: Function) -> Function:
    return lambda p, v: tools.jacfwd(f, argnums=1)(p, v) @ v


TRANSFORMS: dict[str, Callable[[Any, Function], Function]] = {
    "vmap": _vmap,
    "vmap of weights": _vmap_weights,
    "grad": _grad,
    "grad of weights": _grad_of_weights,
    "jvp": _jvp,
    "vjp": _vjp,
    "jacrev": _jacrev,
    "jacfwd": _jacfwd,
}


def composed(tools: Any, transforms: list[str], f: Function) -> Function:
    for name in reversed(transforms):
        f = TRANSFORMS[name](tools, f)
    return f


@given(
    operations=st.lists(st.sampled_from(sorted(COMBINATORS)), min_size=1, max_size=3),
    transforms=st.lists(st.sampled_from(sorted(TRANSFORMS)), min_size=2, max_size=3),
    mode=st.sampled_from(["plain", "captured", "in jit"]),
    lane=st.integers(0, 3),
)
def test_composition(operations: list[str], transforms: list[str], mode: str, lane: int) -> None:
    import functorch_hops as fh

    p, v = weights(), examples()[lane]
    f = composed(LibraryTools, transforms, nested(Library, tuple(operations)))
    if mode == "in jit":
        got = fh.jit(f, backend="eager")(p, v)
    elif mode == "captured":
        with fh.eager_capture():
            got = f(p, v)
    else:
        got = f(p, v)
    assert_same(got, composed(OracleTools, transforms, nested(Reference, tuple(operations)))(p, v))
