"""What type checkers know of transformed and compiled functions.

``make types`` checks this file: ``assert_type`` fails there, and so does an ignored error that is none. Run as tests,
the calls show that what is said is true.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, assert_type

import pytest
import torch
from torch import Tensor

import functorch_hops as fh

P = ParamSpec("P")
R = TypeVar("R")
X = torch.ones(2, 3)


def total(x: Tensor, scale: float = 1.0) -> Tensor:
    return (x * scale).sum()


def _jit(f: Callable[P, R]) -> fh.Jitted[P, R]:
    return fh.jit(f, backend="eager")


class Model:
    @_jit
    def double(self, x: Tensor) -> Tensor:
        return x * 2


def test_jit_keeps_the_signature() -> None:
    jitted = fh.jit(total, backend="eager")
    assert_type(jitted(X, scale=2.0), Tensor)
    assert_type(jitted.cache_info(), fh.CacheInfo)
    lowered = jitted.lower(X)
    assert_type(lowered.graph, torch.fx.GraphModule)
    assert_type(lowered.compile()(X), Tensor)
    with pytest.raises(TypeError):
        jitted(X, factor=2.0)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        jitted.lower()  # type: ignore[call-arg]
    with pytest.raises(fh.ArgumentValueError):
        lowered.compile()("x")  # type: ignore[arg-type]


def test_jitted_as_an_annotation() -> None:
    def run(f: fh.Jitted[[Tensor], Tensor]) -> Tensor:
        return f(X)

    assert_type(run(fh.jit(lambda x: x + 1, backend="eager")), Tensor)
    assert isinstance(fh.jit(total), fh.Jitted)
    assert not isinstance(total, fh.Jitted)


def test_a_jitted_method_is_bound() -> None:
    of_object: fh.Jitted[[Tensor], Tensor] = Model().double
    of_class: fh.Jitted[[Model, Tensor], Tensor] = Model.double
    assert_type(of_object(X), Tensor)
    assert_type(of_class(Model(), X), Tensor)
    with pytest.raises(TypeError):
        Model().double(X, X)  # type: ignore[call-arg]


def test_jit_of_a_module_has_its_attributes() -> None:
    module = torch.nn.Linear(3, 3)
    jitted = fh.jit(module, backend="eager")
    assert jitted.weight is module.weight
    assert jitted.cache_info().misses == 0
    assert len(list(jitted.parameters())) == 2


def test_decorators_keep_the_signature() -> None:
    @fh.jit(backend="eager")
    def double(x: Tensor) -> Tensor:
        return x * 2

    @fh.vmap(in_dims=1)
    def row_sum(x: Tensor) -> Tensor:
        return x.sum()

    @fh.value_and_grad(argnums=0)
    def loss(x: Tensor) -> Tensor:
        return x.sum()

    assert_type(double(X), Tensor)
    assert_type(double.cache_info(), fh.CacheInfo)
    assert_type(row_sum(X), Tensor)
    assert_type(loss(X), tuple[Tensor, Any])
    with pytest.raises(TypeError):
        row_sum(X, factor=2.0)  # type: ignore[call-arg]


def test_vmap_and_checkpoint_keep_the_signature() -> None:
    assert_type(fh.vmap(total)(X), Tensor)
    assert_type(fh.checkpoint(total)(X, scale=2.0), Tensor)
    assert_type(fh.annotate(total, name="total")(X, scale=2.0), Tensor)
    assert_type(fh.annotate(name="total")(total)(X, scale=2.0), Tensor)
    with pytest.raises(TypeError):
        fh.vmap(total)(X, factor=2.0)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        fh.checkpoint(total)(X, factor=2.0)  # type: ignore[call-arg]


def test_derivatives_keep_the_parameters() -> None:
    assert_type(fh.value_and_grad(total)(X, scale=2.0), tuple[Tensor, Any])
    for derivative in (fh.grad(total), fh.jacfwd(total), fh.jacrev(total), fh.hessian(total)):
        assert_type(derivative(X, scale=2.0), Any)
        with pytest.raises(TypeError):
            derivative(X, factor=2.0)  # type: ignore[call-arg]


def test_values_at_one_point() -> None:
    assert_type(fh.vjp(total, X), tuple[Tensor, Callable[[Tensor], tuple[Any, ...]]])
    assert_type(fh.jvp(total, (X,), (X,)), tuple[Tensor, Tensor])
    assert_type(fh.linearize(total, X)[0], Tensor)
    assert len(fh.vjp(lambda x: (x, 1), X, has_aux=True)) == 3
    assert len(fh.jvp(lambda x: (x, 1), (X,), (X,), has_aux=True)) == 3


def test_custom_rules_keep_the_signature() -> None:
    @fh.custom_jvp
    def square(x: Tensor) -> Tensor:
        return x * x

    @square.defjvp
    def rule(primals: tuple[Tensor], tangents: tuple[Tensor]) -> tuple[Tensor, Tensor]:
        return square(*primals), 2 * primals[0] * tangents[0]

    assert_type(square(X), Tensor)
    assert_type(rule((X,), (X,)), tuple[Tensor, Tensor])
    identity = fh.custom_vjp(total)
    identity.defvjp(lambda x, scale: (total(x, scale), x), lambda x, ct: (ct.expand_as(x), None))
    assert_type(identity(X, scale=1.0), Tensor)
    with pytest.raises(TypeError):
        identity(X, factor=2.0)  # type: ignore[call-arg]


def test_captured_graphs() -> None:
    graph = fh.make_graph(total)(X)
    assert_type(graph, fh.CapturedGraph)
    assert isinstance(graph, torch.fx.GraphModule)
    spec: fh.TensorSpec = fh.eval_shape(total, fh.TensorSpec((2, 3), torch.float32))
    assert spec == fh.TensorSpec((), torch.float32)
