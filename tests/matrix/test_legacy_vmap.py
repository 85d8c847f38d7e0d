"""Every operation under the vmap that torch.autograd has of its own: batched cotangents, batched tangents, both orders."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian

import functorch_hops as fh

from .contexts import differentiable, scalar
from .operations import OPERATIONS, Program, examples, weights

Flat = Callable[..., Any]


def _points() -> tuple[Tensor, ...]:
    p = weights()
    return p["w"], p["b"], examples()[1]


def _flat(program: Program) -> Flat:
    return lambda w, b, x: differentiable(program({"w": w, "b": b}, x))


def _loss(f: Flat) -> Flat:
    return lambda *points: scalar(f(*points))


def _is_grads_batched(f: Flat, vectorize: bool) -> Any:
    """And a derivative of what is batched."""
    points = [t.clone().requires_grad_() for t in _points()]
    out = torch.cat([o.reshape(-1) for o in f(*points)])
    basis = torch.eye(out.numel(), dtype=torch.float64)
    of = functools.partial(torch.autograd.grad, out, points, create_graph=True, materialize_grads=True)
    if vectorize:
        rows = of(basis, is_grads_batched=True)
    else:
        rows = [torch.stack(column) for column in zip(*map(of, basis))]
    return rows, torch.autograd.grad(scalar(rows), points, materialize_grads=True)


def _reverse(f: Flat, vectorize: bool) -> Any:
    return jacobian(f, _points(), vectorize=vectorize)


def _forward(f: Flat, vectorize: bool) -> Any:
    return jacobian(f, _points(), vectorize=vectorize, strategy="forward-mode" if vectorize else "reverse-mode")


def _hessian(f: Flat, vectorize: bool) -> Any:
    return hessian(_loss(f), _points(), vectorize=vectorize)


def _hessian_forward(f: Flat, vectorize: bool) -> Any:
    mode = "forward-mode" if vectorize else "reverse-mode"
    return hessian(_loss(f), _points(), vectorize=vectorize, outer_jacobian_strategy=mode)


WAYS: dict[str, Callable[[Flat, bool], Any]] = {
    "is_grads_batched": _is_grads_batched,
    "reverse": _reverse,
    "forward": _forward,
    "hessian": _hessian,
    "hessian forward": _hessian_forward,
}


def _plain(way: Any, program: Program) -> Any:
    return way(_flat(program), True)


def _captured(way: Any, program: Program) -> Any:
    with fh.eager_capture():
        return way(_flat(program), True)


@functools.cache
def _jitted(program: Program) -> Flat:
    return fh.jit(_flat(program), backend="eager")


def _of_jit(way: Any, program: Program) -> Any:
    return way(_jitted(program), True)


MODES = {"plain": _plain, "captured": _captured, "of jit": _of_jit}


@functools.cache
def _expected(name: str, way: str) -> Any:
    return WAYS[way](_flat(OPERATIONS[name].oracle), False)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_batched_by_autograd(name: str, way: str, mode: str) -> None:
    got = MODES[mode](WAYS[way], OPERATIONS[name].program)
    torch.testing.assert_close(got, _expected(name, way), rtol=1e-9, atol=1e-11)
