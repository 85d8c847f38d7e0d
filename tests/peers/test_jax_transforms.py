"""Cases of JAX's ``tests/api_test.py``, ``tests/custom_api_test.py``, ``tests/python_callback_test.py`` and
``tests/debugging_primitives_test.py`` about transforms.

The docstring of a test names those it stands for.
"""

from __future__ import annotations

import collections
import copy

import numpy as np
import pytest
import torch

import functorch_hops as fh
from modes import every_mode, same

F64 = torch.float64
T = lambda *values: torch.tensor(values if len(values) != 1 else values[0], dtype=F64)
jit = lambda f, **options: fh.jit(f, backend="eager", **options)


@every_mode
def test_jacobians_of_several_dtypes(run):
    """test_heterogeneous_jacfwd, test_heterogeneous_jacrev: a block has the dtype of its output, or of its input."""
    a = (torch.tensor([2.0], dtype=torch.float32), torch.tensor([3.0], dtype=F64))

    def f(pair):
        assert [t.dtype for t in pair] == [t.dtype for t in a]
        return (*pair, pair[0] + pair[1])

    by_columns, by_rows = run(fh.jacfwd(f), a), run(fh.jacrev(f), a)
    for jacobian in (by_columns, by_rows):
        same([[float(t) for t in row] for row in jacobian], [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert [[t.dtype for t in row] for row in by_columns] == [[torch.float32] * 2, [F64] * 2, [F64] * 2]
    assert [[t.dtype for t in row] for row in by_rows] == [[torch.float32, F64]] * 3


@every_mode
def test_the_gradient_of_a_complex_and_a_real_number(run):
    """test_heterogeneous_grad; torch's gradients are the conjugates of JAX's."""
    a = (torch.tensor(1 + 1j, dtype=torch.complex128), T(2.0))
    z, y = run(fh.grad(lambda pair: pair[0].abs() ** 2 + pair[1]), a)
    same((z, y), (torch.tensor(2 + 2j, dtype=torch.complex128), T(1.0)))


@every_mode
@pytest.mark.parametrize("jacobian", [fh.jacrev, fh.jacfwd], ids=["jacrev", "jacfwd"])
def test_auxiliary_outputs_are_differentiated_outside(run, jacobian):
    """test_jacrev_and_aux_nested, test_jacfwd_and_aux_nested, test_grad_and_aux_nested."""

    def f(x):
        _, aux = jacobian(lambda x: (x**3, [x**3]), has_aux=True)(x)
        return aux[0] * x.sin()

    x = T(0.7)
    expected = 3 * x**2 * x.sin() + x**3 * x.cos()
    same(run(jacobian(f), x), expected)
    same(run(jacobian(jit(f)), x), expected)
    same(run(fh.grad(f), x), expected)


@every_mode
def test_a_function_that_an_outer_derivative_closes_over_is_jitted_twice(run):
    """test_jvp_jit_cached: the second call finds the trace, and the tangent of what it closes over."""

    def f(x):
        inner = jit(lambda y: y * x)
        return inner(T(4.0)) + inner(T(5.0))

    same(run(lambda x: fh.jvp(f, (x,), (torch.ones_like(x),)), T(5.0)), (T(45.0), T(9.0)))


@every_mode
def test_the_linear_part_of_a_constant(run):
    """test_linearize_instantiates_zero_outputs."""

    def f(x):
        _, push = fh.linearize(lambda x: (x, torch.ones_like(x)), x)
        return push(torch.ones_like(x))

    same(run(f, T(3.0)), (T(1.0), T(0.0)))


@every_mode
def test_a_function_among_the_arguments(run):
    """test_vmap_unbatched_object_passthrough_issue_183."""
    same(run(lambda x: fh.vmap(lambda f, x: f(x), in_dims=(None, 0))(torch.sin, x), T(1.0, 2.0)), T(1.0, 2.0).sin())


@every_mode
@pytest.mark.parametrize("kind", ["dict", "namedtuple", "ordered"])
def test_dimensions_in_the_tree_of_the_argument(run, kind):
    """test_vmap_structured_in_axes."""
    point = collections.namedtuple("point", ["y", "z"])
    made = {"dict": lambda y, z: {"y": y, "z": z}, "namedtuple": point}
    made["ordered"] = lambda y, z: collections.OrderedDict([("y", y), ("z", z)])
    node = made[kind]
    parts = (lambda p: (p.y, p.z)) if kind == "namedtuple" else (lambda p: (p["y"], p["z"]))
    product = lambda tree: tree[0] @ (parts(tree[1])[0] @ parts(tree[1])[1])
    x, y, z = torch.rand(6, 2, 3, dtype=F64), torch.rand(3, 6, 4, dtype=F64), torch.rand(4, 5, 6, dtype=F64)
    got = run(fh.vmap(product, in_dims=((0, node(1, 2)),)), (x, node(y, z)))
    same(got, torch.einsum("kab,bkc,cdk->kad", x, y, z))


@every_mode
def test_an_output_that_is_the_same_for_all_examples_is_mapped_last(run):
    """test_vmap_unmapped_last."""
    assert run(fh.vmap(lambda x: torch.zeros(2), out_dims=-1), torch.zeros(5)).shape == (2, 5)


def test_static_values_that_are_equal_share_a_trace():
    """test_static_args_equality."""

    class Option:
        __hash__ = lambda self: 1
        __eq__ = lambda self, other: isinstance(other, Option)

    f = jit(lambda x, option: x * 100, static_argnums=1)
    assert [float(f(T(1.0), Option())) for _ in range(2)] == [100, 100]
    assert f.cache_info().misses == 1


def test_static_numbers_of_different_types_are_different():
    """test_jit_static_argnums_requires_type_equality."""
    f = jit(lambda k: (k, type(k)), static_argnums=0)
    assert [f(k) for k in (1, True, 1.0) * 2] == [(k, type(k)) for k in (1, True, 1.0)] * 2


def test_static_arguments_by_default_and_by_name():
    """test_new_static_argnum_with_default_arguments, test_new_static_argnum_on_keyword_arguments."""
    f = jit(lambda x=4: torch.arange(x), static_argnums=0)
    assert [len(f()), len(f(x=3)), len(f(2))] == [4, 3, 2]


@every_mode
def test_a_copy_of_an_argument(run):
    """test_jit_deep_copy."""
    x = T(1.0, 2.0)
    got = run(copy.deepcopy, x)
    same(got, x)
    assert got is not x and got.data_ptr() != x.data_ptr()


@every_mode
def test_booleans_are_counted(run):
    """test_sum_of_closed_over_bools."""
    mask = torch.ones(300, dtype=torch.bool)
    assert int(run(lambda: mask.sum())) == int(run(torch.sum, mask)) == 300


@every_mode
@pytest.mark.parametrize("transform", [fh.vmap, fh.grad], ids=["vmap", "grad"])
def test_a_rule_closes_over_a_value_of_a_transform_outside(run, transform):
    """CustomVJPTest.test_closed_over_vmap_tracer, test_fwd_closes_over_tracer, test_bwd_closes_over_tracer."""

    def outer(scale):
        @fh.custom_vjp
        def f(x):
            return scale * x.sin()

        f.defvjp(lambda x: (f(x), x), lambda x, ct: (2 * scale * ct * x.cos(),))
        return fh.grad(f)(T(0.5))

    scales = T(1.0, 3.0)
    if transform is fh.vmap:
        same(run(fh.vmap(outer), scales), 2 * scales * T(0.5).cos())
    else:
        same(run(fh.grad(outer), scales[0]), 2 * T(0.5).cos())


@every_mode
def test_a_rule_without_a_gradient_for_a_part(run):
    """CustomVJPTest.test_bwd_nones_pytree, test_pytree_nones_returned_by_bwd."""

    @fh.custom_vjp
    def f(tree):
        return tree["a"][0] * tree["a"][1] * tree["b"]

    f.defvjp(lambda tree: (f(tree), tree), lambda tree, ct: ({"a": (ct, None), "b": None},))
    got = run(fh.grad(f), {"a": (T(2.0), T(3.0)), "b": T(5.0)})
    same(got, {"a": (T(1.0), T(0.0)), "b": T(0.0)})


@every_mode
def test_a_callback_of_several_dtypes_in_lanes(run):
    """test_callback_with_pytree_arguments_and_return_values, test_vmap_vectorized_callback."""

    def both(tree):
        return {"sum": tree["x"].sum(-1), "count": np.asarray((tree["x"] > 0).sum(-1))}

    def f(x, vectorized):
        shapes = {"sum": fh.TensorSpec((), F64), "count": fh.TensorSpec((), torch.int64)}
        return fh.pure_callback(both, shapes, {"x": x}, vectorized=vectorized)

    x = torch.linspace(-1, 2, 6, dtype=F64).reshape(2, 3)
    for vectorized in (False, True):
        got = run(fh.vmap(lambda x, v=vectorized: f(x, v)), x)
        same(got, {"sum": x.sum(1), "count": (x > 0).sum(1)})


@every_mode
def test_a_print_in_a_rule_happens_once(run, capsys):
    """DebugPrintTransformationTest.test_debug_print_in_custom_jvp, test_debug_print_grad_with_custom_vjp_rule."""

    @fh.custom_vjp
    def f(x):
        fh.debug.print("primal {}", x)
        return x.sin()

    def forward(x):
        fh.debug.print("fwd {}", x)
        return x.sin(), x

    def backward(x, ct):
        fh.debug.print("bwd {}", x)
        return (x.cos() * ct,)

    f.defvjp(forward, backward)
    same(run(fh.grad(f), T(3.0)), T(3.0).cos())
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["fwd", "bwd"]
