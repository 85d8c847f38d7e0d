"""``pure_callback``: results of NumPy in every mode, in loops, over lanes, with a rule for derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import functorch_hops as fh
from modes import every_way, same

X = torch.tensor([3.0, 1.0, 2.0])


def sort(x):
    return fh.pure_callback(np.sort, x, x)


@every_way
def test_a_tree_in_and_out(run) -> None:
    def function(pair, *, shift, name):
        assert name == "constant" and isinstance(pair["a"], np.ndarray)
        return {"sum": pair["a"] + pair["b"] + shift, "most": (pair["a"] > pair["b"]).argmax()}

    def f(a, b):
        shapes = {"sum": fh.TensorSpec((3,), torch.float32), "most": fh.TensorSpec((), torch.int64)}
        return fh.pure_callback(function, shapes, {"a": a, "b": b}, shift=np.float32(1), name="constant")

    same(run(f, X, X.flip(0)), {"sum": X + X.flip(0) + 1, "most": torch.tensor(0)})


@every_way
def test_in_loops_and_branches(run) -> None:
    def f(xs):
        step = lambda c, x: (fh.cond(x.sum() > 5, sort, lambda x: x, c + x), c)
        return fh.scan(step, torch.zeros(3), xs)

    xs = torch.stack([X, X + 1, X - 3])
    carry, ys = torch.zeros(3), []
    for x in xs:
        ys.append(carry)
        carry = (carry + x).sort().values if x.sum() > 5 else carry + x
    same(run(f, xs), (carry, torch.stack(ys)))


@every_way
@pytest.mark.parametrize("vectorized", [False, True])
def test_over_lanes(run, vectorized) -> None:
    shapes = []

    def outer(a, b):
        shapes.append(np.shape(a))
        return a[..., :, None] * b[..., None, :]

    def f(a, b):
        return fh.pure_callback(outer, fh.TensorSpec((3, 2), a.dtype), a, b, vectorized=vectorized)

    a, b = torch.randn(4, 3), torch.randn(5, 2)
    over_both = fh.vmap(fh.vmap(f, in_dims=(None, 0)), in_dims=(0, None))
    same(run(over_both, a, b), torch.einsum("ai,bj->abij", a, b))
    assert shapes == ([(4, 5, 3)] if vectorized else [(3,)] * 20)


@fh.custom_vjp
def sine(x):
    return fh.pure_callback(np.sin, x, x)


sine.defvjp(lambda x: (sine(x), x), lambda x, ct: (ct * fh.pure_callback(np.cos, x, x),))


@every_way
def test_a_rule_gives_it_a_derivative(run) -> None:
    same(run(fh.grad(lambda x: sine(x).sum()), X), X.cos())
    same(run(fh.vmap(fh.grad(sine)), X), X.cos())
    loop = lambda x: fh.fori_loop(0, 3, lambda i, x: sine(x), x).sum()
    same(run(fh.grad(loop), X), torch.func.grad(lambda x: x.sin().sin().sin().sum())(X))
    x = X.clone().requires_grad_()
    run(lambda x: sine(x).sum(), x).backward()
    same(x.grad, X.cos())


@every_way
def test_without_a_rule_a_derivative_is_refused_where_it_is_asked_for(run) -> None:
    for f in (fh.grad(lambda x: sort(x).sum()), lambda x: fh.jvp(sort, (x,), (x,))):
        with pytest.raises(fh.ArgumentTypeError, match="no derivative"):
            run(f, X)
    same(run(lambda x: sort(x.detach()) * x, X.clone().requires_grad_()).detach(), X.sort().values * X)


@every_way
def test_its_exceptions_arrive(run) -> None:
    def fails(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(lambda xs: fh.map(lambda x: fh.pure_callback(fails, x, x), xs), X)


def test_what_nobody_needs_is_not_called() -> None:
    calls = []
    count = lambda x: (calls.append(1), x)[1]
    f = fh.jit(lambda x: (fh.pure_callback(count, x, x), fh.pure_callback(count, x, x) * 2)[1], backend="eager")
    same(f(X), X * 2)
    assert len(calls) == 1


@pytest.mark.slow
def test_under_inductor() -> None:
    def f(xs):
        return fh.scan(lambda c, x: (sort(c + x).sin(), c), torch.zeros(3), xs)[0]

    xs = torch.randn(4, 3)
    same(fh.jit(f)(xs), f(xs))
    (loop,) = fh.explain(f)(xs).loops
    assert loop.lowering == "native" and "Python function" in str(loop.reason)
