"""Every operation under the vmap that torch.autograd has of its own: batched cotangents and tangents, both orders."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._vmap_internals import _vmap
from torch.autograd.functional import hessian, jacobian

import functorch_hops as fh

from .contexts import differentiable, scalar
from .operations import OPERATIONS, Operation, Program, examples, weights

Flat = Callable[..., Any]


def _points() -> tuple[Tensor, ...]:
    p = weights()
    return p["w"], p["b"], examples()[1]


def _flat(program: Program) -> Flat:
    return lambda w, b, x: differentiable(program({"w": w, "b": b}, x))


def _loss(f: Flat) -> Flat:
    return lambda *points: scalar(f(*points))


def _stacked(column: Sequence[Tensor | None]) -> Tensor | None:
    return None if column[0] is None else torch.stack(column)  # type: ignore[arg-type]


def _is_grads_batched(f: Flat, points: Sequence[Tensor], vectorize: bool) -> Any:
    """And a derivative of what is batched."""
    points = [t.clone().requires_grad_() for t in points]
    out = torch.cat([o.reshape(-1) for o in f(*points)])
    basis = torch.eye(out.numel(), dtype=torch.float64)
    of = functools.partial(torch.autograd.grad, out, points, create_graph=True, allow_unused=True)
    columns = of(basis, is_grads_batched=True) if vectorize else [_stacked(column) for column in zip(*map(of, basis))]
    zeros = [torch.zeros(len(basis), *t.shape, dtype=torch.float64) for t in points]
    rows = [zero if row is None else row for row, zero in zip(columns, zeros)]
    return rows, torch.autograd.grad(scalar(rows), points, materialize_grads=True)


def _reverse(f: Flat, points: Sequence[Tensor], vectorize: bool) -> Any:
    return jacobian(f, tuple(points), vectorize=vectorize)


def _forward(f: Flat, points: Sequence[Tensor], vectorize: bool) -> Any:
    return jacobian(f, tuple(points), vectorize=vectorize, strategy="forward-mode" if vectorize else "reverse-mode")


def _hessian(f: Flat, points: Sequence[Tensor], vectorize: bool) -> Any:
    return hessian(_loss(f), tuple(points), vectorize=vectorize)


def _hessian_forward(f: Flat, points: Sequence[Tensor], vectorize: bool) -> Any:
    mode = "forward-mode" if vectorize else "reverse-mode"
    return hessian(_loss(f), tuple(points), vectorize=vectorize, outer_jacobian_strategy=mode)


WAYS: dict[str, Callable[[Flat, Sequence[Tensor], bool], Any]] = {
    "is_grads_batched": _is_grads_batched,
    "reverse": _reverse,
    "forward": _forward,
    "hessian": _hessian,
    "hessian forward": _hessian_forward,
}


def _plain(way: Any, program: Program) -> Any:
    return way(_flat(program), _points(), True)


def _captured(way: Any, program: Program) -> Any:
    with fh.eager_capture():
        return way(_flat(program), _points(), True)


@functools.cache
def _jitted(program: Program) -> Flat:
    return fh.jit(_flat(program), backend="eager")


def _of_jit(way: Any, program: Program) -> Any:
    return way(_jitted(program), _points(), True)


MODES = {"plain": _plain, "captured": _captured, "of jit": _of_jit}


def _cells() -> list[Any]:
    """Loops and branches in plain eager are torch's own business, but rules are not."""
    quick = {"plain": tuple(WAYS), "captured": ("reverse",), "of jit": ("is_grads_batched", "forward")}
    return [
        pytest.param(o, w, m, id=f"{o.name}-{w}-{m}", marks=[] if w in quick[m] else [pytest.mark.slow])
        for o in OPERATIONS.values()
        for w in WAYS
        for m in MODES
        if m != "plain" or o.public.startswith("custom")
    ]


@functools.cache
def _expected(name: str, way: str) -> Any:
    return WAYS[way](_flat(OPERATIONS[name].oracle), _points(), False)


@pytest.mark.parametrize(("operation", "way", "mode"), _cells())
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_batched_by_autograd(operation: Operation, way: str, mode: str) -> None:
    run = functools.partial(MODES[mode], WAYS[way], operation.program)
    if way == "forward" and "jvp" in operation.refused:
        with pytest.raises(fh.ArgumentTypeError):
            run()
    else:
        torch.testing.assert_close(run(), _expected(operation.name, way), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["cond", "while_loop", "scan", "associative_scan", "checkpoint", "custom_jvp"])
def test_batched_checks_of_gradcheck(name: str) -> None:
    f = _jitted(OPERATIONS[name].program)
    points = [t.clone().requires_grad_() for t in _points()]
    batched = {"check_batched_grad": True, "fast_mode": True}
    assert torch.autograd.gradcheck(f, points, check_forward_ad=True, check_batched_forward_grad=True, **batched)
    if name == "associative_scan":  # gradgradcheck takes no gradient that is zero for all arguments
        f, points = functools.partial(f, points[0].detach()), points[1:]
    assert torch.autograd.gradgradcheck(f, points, **batched)


def test_levels_inside_one_another_are_refused() -> None:
    x = examples()[1].requires_grad_()
    with fh.eager_capture():
        y = fh.scan(lambda c, r: (c * r, c), x[0], x)[1]
    pull = lambda ct: torch.autograd.grad(y, x, ct, is_grads_batched=True, retain_graph=True)[0]
    with pytest.raises(fh.CaptureError, match="several levels"):
        _vmap(pull)(torch.ones(2, 3, 3, dtype=torch.float64))
