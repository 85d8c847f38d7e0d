"""How many lanes a kernel computes at a time: NOTE [Interleaved vectors]."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import functorch_hops as fh
from functorch_hops.lowering.loops.operator import loop_kernel
from loop_plans import check, normal, plan


def looped(body: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda c: fh.fori_loop(0, 3, lambda _, c: body(c), c)


def chain(c: Tensor) -> Tensor:
    return 2 * torch.sigmoid((c.sin() + c).tanh())


def independent(c: Tensor) -> Tensor:
    a, b, d, e = ((k * c).tanh() + (k * c).sin() for k in range(1, 5))
    return (a - b) * (d - e)


def two_at_a_time(c: Tensor) -> Tensor:
    return ((c.sin() + c.cos()) * (c.exp() - c.sigmoid())).tanh()


def vectors(f: Callable[..., Any], *args: Tensor) -> set[str]:
    (node,) = plan(f, *args).body.module.graph.find_nodes(op="call_function", target=loop_kernel)
    return set(re.findall(r"VectorizedN<(?:float|double),(\d+)>", "".join(node.args[3])))


BODIES: dict[str, tuple[Callable[[Tensor], Tensor], Tensor, set[str]]] = {
    "a chain": (chain, normal(64), {"4"}),
    "a chain of doubles": (chain, normal(64).double(), {"4"}),
    "a chain behind a product": (lambda c: chain(c @ torch.eye(64)), normal(3, 64), {"4"}),
    "few lanes": (chain, normal(8), set()),
    "as many as two vectors of 512 bits": (chain, normal(32), {"2", "4"}),
    "a last vector with few lanes": (chain, normal(40), set()),
    "a chain of what takes little": (lambda c: (c * 0.5 + 1).relu() - c, normal(64), set()),
    "independent operations": (independent, normal(64), set()),
    "some of both": (two_at_a_time, normal(64), {"2"}),
    "half precision, a vector of which is two of floats": (chain, normal(64).bfloat16(), {"2"}),
    "integers of another width": (lambda c: chain(c) + (3 * c).to(torch.int8), normal(64), set()),
    "lanes read backwards": (lambda c: chain(c).flip(0), normal(64), set()),
}


@pytest.mark.parametrize("name", BODIES)
def test_what_waits_for_itself_is_computed_for_several_vectors(name: str) -> None:
    body, c, expected = BODIES[name]
    assert vectors(looped(body), c) <= expected
    assert bool(vectors(looped(body), c)) == bool(expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_all_numbers_of_lanes(dtype: torch.dtype) -> None:
    tolerances = {torch.bfloat16: 0.05, torch.float16: 0.01}

    def mixed(c: Tensor) -> Tensor:
        steps = (3 * c).round().to(torch.int8)
        return torch.where(steps > 0, chain(c), 0.5 * c + steps.to(c.dtype))

    def f(*carries: Tensor) -> list[Tensor]:
        return [looped(mixed)(c) for c in carries]

    carries = [normal(n, seed=n).to(dtype) for n in (15, 31, 60, 64, 97, 300)]
    check(f, *carries, rtol=tolerances.get(dtype, 1e-5), atol=tolerances.get(dtype, 1e-5))
