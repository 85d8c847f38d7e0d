"""Half precision in the kernels of loops: rounded wherever eager rounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import functorch_hops as fh
from loop_plans import check, normal, plan, taken
from modes import same

C, XS = normal(40), normal(7, 40, seed=1)
W, BIAS, MATRIX = normal(5, 5) / 2, normal(5, seed=1), normal(4, 3, 5)


def scan(step: Callable[[Any, Any], Any]) -> Callable[[Any, Tensor], Any]:
    return lambda c, xs: fh.scan(step, c, xs)


def repeat(step: Callable[[Any], Any], carry: Any) -> Any:
    return fh.fori_loop(0, 3, lambda _, c: step(c), carry)


PROGRAMS: dict[str, tuple[str, Callable[..., Any], tuple[Tensor, ...]]] = {
    "pointwise": ("lanes", scan(lambda c, x: (torch.tanh(c * 0.9 + x) * torch.sigmoid(c), c * x + x)), (C, XS)),
    "cancellation": ("lanes", scan(lambda c, x: ((c * 1.001 + x) * 3 - x * 3, (c + 100) - 100)), (C, XS)),
    "dtypes": ("lanes", scan(lambda c, x: ((c.float() * 1.1 + x).to(c.dtype), (c.float() * 2, c > x))), (C, XS)),
    "reductions": ("steps", scan(lambda c, x: (torch.softmax(c.roll(1) + x, 0), (c.sum(), c.mean()))), (C, XS)),
    "while": ("steps", lambda c: fh.while_loop(lambda s: s.abs().max() > 0.1, lambda s: s * 0.9, c), (C,)),
    "product": ("steps", lambda w, c: repeat(lambda c: torch.tanh(c @ w.t()), c), (W, MATRIX[0])),
    "products": ("steps", lambda w, c: repeat(lambda c: torch.tanh(c @ w), c), (W.expand(4, 5, 5), MATRIX)),
    "bias": (
        "steps",
        lambda w, b, c: repeat(lambda c: torch.tanh(torch.nn.functional.linear(c, w, b)), c),
        (W, BIAS, MATRIX[0]),
    ),
    "gradient": (
        "lanes",
        lambda c, xs: fh.grad(
            lambda c, xs: fh.scan(lambda c, x: (torch.tanh(c * 0.9 + x), c), c, xs)[1].square().sum(), argnums=(0, 1)
        )(c, xs),
        (C, XS),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_operator_rounds(name: str, dtype: torch.dtype) -> None:
    lowering, f, args = PROGRAMS[name]
    exact = {} if lowering == "steps" else {"rtol": 0.0, "atol": 0.0}
    assert set(taken(check(f, *(x.to(dtype) for x in args), **exact))) == {lowering}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_lanes_of_a_while_loop_are_those_of_python(dtype: torch.dtype) -> None:
    def halved(y: Tensor) -> Tensor:
        return fh.while_loop(lambda y: y.abs() > 0.0625, lambda y: y * 0.75, y)

    f, lanes, expected = fh.vmap(halved), C.to(dtype), []
    assert taken(list(plan(f, lanes).loops)) == ["lanes"]
    for y in lanes:
        while y.abs() > 0.0625:
            y = y * 0.75
        expected.append(y)
    same(fh.jit(f)(lanes), torch.stack(expected), rtol=0.0, atol=0.0)
