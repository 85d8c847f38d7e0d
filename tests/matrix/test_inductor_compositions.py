"""Random transforms of nested operations under Inductor, called again and again: a wrong number there is silent.

Inductor reuses memory, so one result says little: the functions are called with the same and with other inputs, the
inputs must stay as they were, and plain autograd differentiates the compiled function once more.
"""

from __future__ import annotations

import random
from typing import Any

import optree
import pytest
import torch

import functorch_hops as fh
from reference import Reference

from .contexts import LibraryTools, OracleTools, scalar
from .nesting import COMBINATORS, Library, nested
from .operations import examples, weights
from .test_compositions import TRANSFORMS, composed
from .test_grid import assert_same

pytestmark = pytest.mark.slow


def _drawn(count: int) -> list[tuple[tuple[str, ...], tuple[str, ...], str]]:
    """``count`` triples of operations, transforms and the place of jit."""
    draw = random.Random(11)
    names = lambda table, lengths: tuple(draw.choice(sorted(table)) for _ in range(draw.choice(lengths)))
    return [(names(COMBINATORS, [1, 2, 2]), names(TRANSFORMS, [0, 1]), draw.choice(SIDES)) for _ in range(count)]


SIDES = ("jit outside", "jit inside")
# The second derivative of checkpoints in a loop took a carry's memory for that of another one.
FOUND = [(("fori_loop", "checkpoint", "checkpoint"), ("vjp",), "jit inside")]


@pytest.mark.parametrize(("operations", "transforms", "side"), [*FOUND, *_drawn(2)])
def test_composition(operations: tuple[str, ...], transforms: tuple[str, ...], side: str) -> None:
    program, oracle = (
        nested(Library, operations),
        composed(OracleTools, list(transforms), nested(Reference, operations)),
    )
    if side == "jit outside":
        compiled = fh.jit(composed(LibraryTools, list(transforms), program))
    else:
        compiled = composed(LibraryTools, list(transforms), fh.jit(program))

    def with_gradients(f: Any, p: Any, v: Any) -> Any:
        p, v = optree.tree_map(lambda t: t.clone().requires_grad_(), (p, v))
        before = optree.tree_map(torch.clone, (p, v))
        out = f(p, v)
        gradients = torch.autograd.grad(scalar(out), [*p.values(), v], materialize_grads=True)
        assert_same((p, v), before)
        return out, gradients

    for lane, factor in ((0, 1.0), (0, 1.0), (2, 0.9), (0, 1.0)):
        p, v = {name: w * factor for name, w in weights().items()}, examples()[lane]
        assert_same(with_gradients(compiled, p, v), with_gradients(oracle, p, v))
