"""grad, vjp, jvp, linearize, Jacobians: against torch.func, finite differences and Python loops."""

import dataclasses
import functools
from typing import Any

import pytest
import torch

import functorch_hops as fh
from functorch_hops import grad, hessian, jacfwd, jacrev, jvp, linearize, pytree, value_and_grad, vjp, vmap
from trees import D, assert_equal, lines, numeric_jacobian, smooth, tensor, trees

# ------------------------------------------------------------------------------------------------------------
# grad and value_and_grad


@trees
def test_gradient_of_a_tree(make, read):
    x, y = tensor(3), tensor(3, seed=1)
    loss = lambda tree: smooth(*read(tree)).pow(2).sum()
    value, gradient = value_and_grad(loss)(make(x, y))
    expected, there = torch.func.grad_and_value(lambda x, y: loss(make(x, y)), (0, 1))(x, y)
    assert_equal(value, there)
    assert_equal(gradient, make(*expected))
    assert_equal(grad(loss)(make(x, y)), gradient)
    by_differences = [
        numeric_jacobian(lambda x: loss(make(x, y)), x),
        numeric_jacobian(lambda y: loss(make(x, y)), y),
    ]
    for a, b in zip(read(gradient), by_differences, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("argnums", [0, 2, -1, (0, 1), [2, 0], (-1, -2)])
def test_argnums(argnums):
    xs = tensor(3), tensor(3, seed=1), tensor(3, seed=2)
    f = lambda x, y, z: (x * y.sin() * z.exp()).sum()
    # torch.func.jacfwd (2.13) gives zeros for negative numbers
    there = argnums % 3 if isinstance(argnums, int) else tuple(number % 3 for number in argnums)
    assert_equal(grad(f, argnums)(*xs), torch.func.grad(f, there)(*xs))
    assert_equal(jacrev(f, argnums)(*xs), torch.func.jacrev(f, there)(*xs))
    assert_equal(jacfwd(f, argnums)(*xs), torch.func.jacfwd(f, there)(*xs))
    assert_equal(hessian(f, argnums)(*xs), torch.func.hessian(f, there)(*xs))


def test_auxiliary_output():
    def f(x):
        return (x**2).sum(), {"x2": x * 2, "name": "n", "none": None, "count": 3}

    x = tensor(3)
    aux = {"x2": x * 2, "name": "n", "none": None, "count": 3}

    def check(found):
        assert found["name"] == "n"
        assert found.keys() == aux.keys()
        assert_equal(found["x2"], aux["x2"])
        assert not torch.func.debug_unwrap(found["x2"]).requires_grad

    gradient, found = grad(f, has_aux=True)(x)
    assert_equal(gradient, 2 * x)
    check(found)
    (value, found), gradient = value_and_grad(f, has_aux=True)(x)
    assert_equal((value, gradient), ((x**2).sum(), 2 * x))
    check(found)
    value, pull, found = vjp(f, x, has_aux=True)
    assert_equal(pull(torch.tensor(1.0, dtype=D)), (2 * x,))
    check(found)
    value, tangent, found = jvp(f, (x,), (x,), has_aux=True)
    assert_equal(tangent, 2 * (x * x).sum())
    check(found)
    for jacobian in (jacrev, jacfwd):
        for chunk_size in (None, 1, 2):
            result, found = jacobian(f, has_aux=True, chunk_size=chunk_size)(x)
            assert_equal(result, 2 * x)
            check(found)


def test_python_floats_are_differentiated():
    gradient = grad(lambda p, x: p["w"] * x + p["b"])({"w": 2.0, "b": torch.tensor(1.0)}, 3.0)
    assert_equal(gradient, {"w": torch.tensor(3.0), "b": torch.tensor(1.0)})
    assert_equal(jvp(lambda x: x * x, (3.0,), (2.0,)), (torch.tensor(9.0), torch.tensor(12.0)))
    assert_equal(vjp(lambda x: x * x, 3.0)[1](1.0), (torch.tensor(6.0),))
    assert_equal(hessian(lambda x: x**3)(2.0), torch.tensor(12.0))


def test_complex_arguments():
    z = torch.randn(3, dtype=torch.complex128)
    f = lambda z: (z * z.conj()).real.sum()
    assert_equal(grad(f)(z), torch.func.grad(f)(z))
    t = torch.randn(3, dtype=torch.complex128)
    out, push = linearize(torch.exp, z)
    assert_equal((out, push(t)), jvp(torch.exp, (z,), (t,)))


def test_keyword_arguments_and_other_objects():
    module = torch.nn.Linear(3, 1, dtype=D)
    x = tensor(3)

    def f(x, options, *, scale, model):
        assert model is module
        assert options is given
        return (model(x) * scale["s"]).sum() + len(options["name"])

    given = {"name": "abc"}
    gradient = grad(f)(x, given, scale={"s": tensor()}, model=module)
    assert_equal(gradient, module.weight[0] * tensor())


def test_arguments_may_be_updated_in_place():
    buffer, x = torch.zeros(3, dtype=D), tensor(3)

    def f(x, state):
        state["seen"].add_(x)
        return (x**2).sum()

    assert_equal(grad(f)(x, {"seen": buffer}), 2 * x)
    assert_equal(buffer, x)
    jacrev(f)(x, {"seen": buffer})
    assert_equal(buffer, 2 * x)


def test_gradient_of_nothing():
    f = lambda nothing, x: (x**2).sum()
    assert grad(f)({"a": None}, tensor(3)) == {"a": None}
    assert grad(f, argnums=())((), tensor(3)) == ()
    assert value_and_grad(f)(None, tensor(3))[1] is None
    assert jacfwd(lambda nothing: tensor(3))(None) == jacrev(lambda nothing: tensor(3))(None) is None
    _, pull = vjp(lambda: tensor(3))
    assert pull(tensor(3)) == ()
    assert_equal(jvp(lambda: tensor(3), (), ()), (tensor(3), torch.zeros(3, dtype=D)))
    assert_equal(linearize(lambda: tensor(3))[1](), torch.zeros(3, dtype=D))


INTEGERS = {"w": torch.zeros(2), "steps": [torch.zeros(2, dtype=torch.int64)]}


@pytest.mark.parametrize(
    ("name", "call", "path"),
    [
        ("grad", lambda f, p: grad(f, 1)(0, p), "args[1]['steps'][0]"),
        ("value_and_grad", lambda f, p: value_and_grad(f, (0, -1))(2.0, p), "args[1]['steps'][0]"),
        ("vjp", lambda f, p: vjp(f, 1.0, p), "primals[1]['steps'][0]"),
        ("jvp", lambda f, p: jvp(f, (1.0, p), (1.0, p)), "primals[1]['steps'][0]"),
        ("linearize", lambda f, p: linearize(f, 1.0, p), "primals[1]['steps'][0]"),
    ],
)
@pytest.mark.parametrize(
    ("leaf", "got"),
    [
        (torch.zeros(2, dtype=torch.int64), "a tensor int64[2]@cpu"),
        (torch.zeros((), dtype=torch.bool), "a tensor bool[]@cpu"),
        (3, "int 3"),
        (True, "bool True"),
        ("text", "str 'text'"),
    ],
    ids=str,
)
def test_integers_are_not_differentiated(name, call, path, leaf, got):
    with pytest.raises(fh.ArgumentTypeError) as caught:
        call(lambda x, p: p["w"].sum(), {"w": torch.zeros(2), "steps": [leaf]})
    assert lines(caught) == [
        f"{name}: an argument can't be differentiated",
        f"  where: {path}",
        "  expected: a floating-point or complex tensor, or a float",
        f"  got: {got}",
        f"  help: {'leave it out of argnums' if 'grad' in name else 'close over it'}, or convert it",
    ]


@pytest.mark.parametrize("name", ["jacrev", "jacfwd"])
def test_jacobians_are_real(name):
    transform = {"jacrev": jacrev, "jacfwd": jacfwd}[name]
    with pytest.raises(fh.ArgumentTypeError) as caught:
        transform(torch.abs)(torch.zeros(2, dtype=torch.complex64))
    assert lines(caught)[:4] == [
        f"{name}: an argument can't be differentiated",
        "  where: args[0]",
        "  expected: a real tensor, or a float",
        "  got: a tensor complex64[2]@cpu",
    ]


@pytest.mark.parametrize(
    ("out", "got"),
    [
        (torch.zeros(3), "a tensor float32[3]@cpu"),
        (torch.tensor(1), "a tensor int64[]@cpu"),
        (torch.tensor(1j), "a tensor complex64[]@cpu"),
        ({"loss": torch.zeros(())}, "dict {'loss': *}"),
        (1.0, "float 1.0"),
        (None, "None"),
    ],
    ids=str,
)
def test_gradient_of_what_is_no_scalar(out, got):
    with pytest.raises(fh.ArgumentTypeError) as caught:
        grad(lambda x: out)(tensor(3))
    assert lines(caught) == [
        "grad: only the gradient of a real scalar is defined",
        "  where: func",
        "  expected: an output of shape [] with a floating-point dtype",
        f"  got: {got}",
        "  help: reduce the output, or use vjp or jacrev",
    ]


@pytest.mark.parametrize("argnums", [2, -3, (0, 5)])
def test_argnums_out_of_range(argnums):
    with pytest.raises(fh.ArgumentValueError) as caught:
        grad(lambda x, y: x, argnums)(tensor(), tensor())
    assert lines(caught) == [
        "grad: there is no such positional argument",
        "  where: argnums",
        "  expected: integers from -2 to 1",
        f"  got: {argnums}",
        "  help: pass the arguments that are differentiated by position",
    ]


def test_argnums_twice():
    with pytest.raises(fh.ArgumentValueError, match="named twice"):
        grad(lambda x, y: x, (0, -2))(tensor(), tensor())


@pytest.mark.parametrize(
    "call",
    [
        lambda f: grad(f, has_aux=True)(tensor(3)),
        lambda f: vjp(f, tensor(3), has_aux=True),
        lambda f: jvp(f, (tensor(3),), (tensor(3),), has_aux=True),
        lambda f: jacfwd(f, has_aux=True)(tensor(3)),
    ],
)
def test_aux_without_a_pair(call):
    with pytest.raises(fh.TreeMismatchError, match="must return a pair") as caught:
        call(lambda x: [x.sum(), x])
    assert lines(caught)[2:] == [
        "  expected: (output, aux)",
        "  got: list [*, *]",
        "  help: return a tuple of both, or leave has_aux out",
    ]


# ------------------------------------------------------------------------------------------------------------
# vjp, jvp, linearize


@trees
def test_products_with_the_jacobian(make, read):
    x, y, tx, ty = (tensor(3, seed=seed) for seed in range(4))
    f = lambda tree, z: make(smooth(*read(tree)), z * read(tree)[0])
    flat = lambda x, y, z: read(f(make(x, y), z))
    z, tz = tensor(seed=5), tensor(seed=6)

    out, tangent = jvp(f, (make(x, y), z), (make(tx, ty), tz))
    there = torch.func.jvp(flat, (x, y, z), (tx, ty, tz))
    assert_equal((read(out), read(tangent)), there)

    linear_out, push = linearize(f, make(x, y), z)
    assert_equal(linear_out, out)
    for _ in range(2):
        assert_equal(push(make(tx, ty), tz), tangent)

    out, pull = vjp(f, make(x, y), z)
    expected = torch.func.vjp(flat, x, y, z)[1]((tx, ty))
    for _ in range(2):
        gradient, gradient_z = pull(make(tx, ty))
        assert_equal((*read(gradient), gradient_z), expected)


def test_linearize_calls_the_function_once():
    calls = []

    def f(x):
        calls.append(x)
        return x * torch.rand(5) if x.sum() > 0 else -x  # Python control flow on the value

    out, push = linearize(f, torch.ones(5))
    assert_equal(push(torch.ones(5)), out)  # with the same random numbers
    assert_equal(push(2 * torch.ones(5)), 2 * out)
    assert len(calls) == 1


def test_linearize_of_a_constant_and_of_an_unused_argument():
    _, push = linearize(lambda x, y: (tensor(2), x * 2), tensor(3), tensor(4))
    assert_equal(push(tensor(3), tensor(4)), (torch.zeros(2, dtype=D), 2 * tensor(3)))


def test_jvp_of_an_integer_output_is_zero():
    _, tangent = jvp(lambda x: (x * 2, x.argmax()), (tensor(3),), (tensor(3),))
    assert tangent[1].item() == 0


@pytest.mark.parametrize("name", ["vjp", "linearize", "jacrev"])
def test_reverse_mode_of_an_integer_output(name):
    f = lambda x: {"x": x, "best": x.argmax()}
    with pytest.raises(fh.ArgumentTypeError) as caught:
        {"vjp": vjp, "linearize": linearize, "jacrev": lambda f, x: jacrev(f)(x)}[name](f, tensor(3))
    assert lines(caught) == [
        f"{name}: an output of the function can't be differentiated",
        "  where: out['best']",
        "  expected: a floating-point or complex tensor",
        "  got: a tensor int64[]@cpu",
        "  help: convert it, or leave it out of the output (has_aux=True returns it beside the output)",
    ]


def test_function_without_output():
    with pytest.raises(fh.ArgumentTypeError, match="returns no tensor"):
        vjp(lambda x: None, tensor(3))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("tangents", lambda t: jvp(lambda p: p["w"], ({"w": torch.zeros(3)},), (t,))),
        ("tangents", lambda t: linearize(lambda p: p["w"], {"w": torch.zeros(3)})[1](t)),
        ("cotangents", lambda t: vjp(lambda w: ({"w": w},), torch.zeros(3))[1]((t,))),
    ],
    ids=["jvp", "linearize", "vjp"],
)
def test_tangents_that_do_not_fit(name, call):
    with pytest.raises(fh.TreeMismatchError) as caught:
        call({"v": torch.zeros(3)})
    assert lines(caught)[1:4] == [f"  where: {name}[0]", "  expected: {'w': *}", "  got: {'v': *}"]
    for tangent, got in ((torch.zeros(2), "float32[2]"), (torch.zeros(3, dtype=torch.int64), "int64[3]")):
        with pytest.raises(fh.MetadataMismatchError) as caught:
            call({"w": tangent})
        assert lines(caught)[1:4] == [
            f"  where: {name}[0]['w']",
            "  expected: a tensor float32[3]@cpu",
            f"  got: a tensor {got}@cpu",
        ]


def test_jvp_of_bare_primals():
    with pytest.raises(fh.ArgumentTypeError, match="primals must have one entry per argument"):
        jvp(torch.sin, tensor(3), tensor(3))


# ------------------------------------------------------------------------------------------------------------
# Jacobians


@trees
@pytest.mark.parametrize("chunk_size", [None, 1, 4])
@pytest.mark.parametrize("transform", [jacfwd, jacrev])
def test_jacobian_of_trees(make, read, transform, chunk_size):
    x, y, z = tensor(3), tensor(3, seed=1), tensor(2, 2)
    f = lambda tree, z: make(smooth(*read(tree)), z.sum() * torch.outer(*read(tree)))
    result = transform(f, (0, 1), chunk_size=chunk_size)(make(x, y), z)
    there = torch.func.jacrev(lambda x, y, z: read(f(make(x, y), z)), (0, 1, 2))(x, y, z)
    for row, expected in zip(read(result), there, strict=True):
        assert_equal(row, (make(*expected[:2]), expected[2]))
    numeric = numeric_jacobian(lambda x: read(f(make(x, y), z))[1], x)
    torch.testing.assert_close(read(read(result)[1][0])[0], numeric, rtol=1e-6, atol=1e-7)


@trees
def test_hessian_of_trees(make, read):
    x, y = tensor(3), tensor(3, seed=1)
    f = lambda tree: {"out": smooth(*read(tree))}
    result = hessian(f)(make(x, y))["out"]
    there = torch.func.hessian(lambda x, y: f(make(x, y))["out"], (0, 1))(x, y)
    for row, expected in zip(read(result), there, strict=True):
        assert_equal(row, make(*expected))
    first = lambda x: read(jacfwd(f)(make(x, y))["out"])[1]
    torch.testing.assert_close(read(read(result)[1])[0], numeric_jacobian(first, x), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("chunk_size", [None, 1, 2])
@pytest.mark.parametrize("transform", [jacfwd, jacrev])
def test_jacobian_without_elements(transform, chunk_size):
    transform = functools.partial(transform, chunk_size=chunk_size)
    assert transform(lambda x: torch.cat([x, torch.ones(2)]))(torch.zeros(0, 3).sum(1)).shape == (2, 0)
    if (transform.func, chunk_size) != (jacrev, 1):  # torch.func.jacrev fails on it
        assert transform(lambda x: x[:0])(torch.ones(2)).shape == (0, 2)
    result = transform(lambda t: t[0].sum() + t[1])((torch.zeros(0), torch.ones(2)))
    assert [t.shape for t in result] == [(2, 0), (2, 2)]


def test_jacfwd_of_different_dtypes():
    f = lambda p: (p["a"] * 2, p["b"].sum() * p["a"].to(D))
    p = {"a": torch.ones(2), "b": tensor(3)}
    to_double = functools.partial(pytree.map, lambda t: t.to(D))
    assert_equal(to_double(jacfwd(f)(p)), to_double(jacrev(f)(p)))


def test_jacfwd_keeps_the_primals_unbatched():
    seen = []

    def f(x):
        y = x * 2
        if y.sum() > 0:  # a batched value has no truth
            seen.append(True)
        return y

    assert_equal(jacfwd(f)(torch.ones(3)), 2 * torch.eye(3))
    assert seen == [True]


# ------------------------------------------------------------------------------------------------------------
# compositions


def chain(p, x):
    return (torch.sin(p["w"] * x) + p["b"][0]).pow(2).sum()


P = {"w": tensor(3), "b": (tensor(3, seed=1), None)}
T = {"w": tensor(3, seed=2), "b": (tensor(3, seed=3), None)}
X = tensor(4, 3, seed=4)
W = P["w"]


def flat_chain(w, b, x):
    return chain({"w": w, "b": (b, None)}, x)


COMPOSITIONS = {
    "vmap(grad)": (
        lambda: vmap(grad(chain), in_dims=(None, 0))(P, X)["w"],
        lambda: torch.stack([torch.func.grad(flat_chain)(W, P["b"][0], x) for x in X]),
    ),
    "grad(vmap)": (
        lambda: grad(lambda p: vmap(chain, in_dims=(None, 0))(p, X).sum())(P)["b"][0],
        lambda: torch.func.grad(lambda b: sum(flat_chain(W, b, x) for x in X))(P["b"][0]),
    ),
    "jvp(grad)": (
        lambda: jvp(lambda p: grad(chain)(p, X[0]), (P,), (T,))[1]["w"],
        lambda: torch.func.jvp(
            lambda w, b: torch.func.grad(flat_chain)(w, b, X[0]), (W, P["b"][0]), (T["w"], T["b"][0])
        )[1],
    ),
    "grad(jvp)": (
        lambda: grad(lambda w: jvp(lambda x: chain({**P, "w": w}, x), (X[0],), (X[1],))[1])(W),
        lambda: numeric_jacobian(
            lambda w: torch.func.jvp(lambda x: flat_chain(w, P["b"][0], x), (X[0],), (X[1],))[1], W
        ),
    ),
    "grad(grad)": (
        lambda: grad(lambda p: (grad(chain)(p, X[0])["w"] ** 2).sum())(P)["w"],
        lambda: numeric_jacobian(lambda w: (torch.func.grad(flat_chain)(w, P["b"][0], X[0]) ** 2).sum(), W),
    ),
    "jacfwd(jacrev)": (
        lambda: jacfwd(jacrev(chain))(P, X[0])["w"]["w"],
        lambda: torch.func.hessian(flat_chain)(W, P["b"][0], X[0]),
    ),
    "jacrev(jacfwd)": (
        lambda: jacrev(jacfwd(chain))(P, X[0])["w"]["w"],
        lambda: torch.func.hessian(flat_chain)(W, P["b"][0], X[0]),
    ),
    "vmap(hessian)": (
        lambda: vmap(hessian(chain), (None, 0))(P, X)["w"]["w"],
        lambda: torch.stack([torch.func.hessian(flat_chain)(W, P["b"][0], x) for x in X]),
    ),
    "vmap(vmap)": (
        lambda: vmap(vmap(chain, (None, 0)), ({"w": 0, "b": None}, None))({**P, "w": X}, X),
        lambda: torch.stack([torch.stack([flat_chain(w, P["b"][0], x) for x in X]) for w in X]),
    ),
    "vmap(linearize)": (
        lambda: vmap(lambda x, t: linearize(lambda x: chain(P, x), x)[1](t))(X, X),
        lambda: torch.stack([jvp(lambda x: chain(P, x), (x,), (x,))[1] for x in X]),
    ),
    "vmap of push": (
        lambda: vmap(linearize(lambda x: x.sin() * x, X[0])[1])(X),
        lambda: torch.stack([jvp(lambda x: x.sin() * x, (X[0],), (t,))[1] for t in X]),
    ),
    "vmap of pull": (
        lambda: vmap(vjp(lambda x: x.sin() * x, X[0])[1])(X)[0],
        lambda: torch.stack([torch.func.vjp(lambda x: x.sin() * x, X[0])[1](t)[0] for t in X]),
    ),
    "grad(linearize)": (
        lambda: grad(lambda p: linearize(lambda x: chain(p, x), X[0])[1](X[1]))(P)["w"],
        lambda: grad(lambda p: jvp(lambda x: chain(p, x), (X[0],), (X[1],))[1])(P)["w"],
    ),
    "jvp(linearize)": (
        lambda: jvp(lambda x: linearize(lambda x: chain(P, x), x)[1](X[1]), (X[0],), (X[2],))[1],
        lambda: X[1] @ hessian(lambda x: chain(P, x))(X[0]) @ X[2],
    ),
    "jvp of push": (
        lambda: jvp(linearize(torch.sin, X[0])[1], (X[1],), (X[2],))[1],
        lambda: X[0].cos() * X[2],
    ),
    "linearize(grad)": (
        lambda: linearize(lambda x: grad(chain, 1)(P, x), X[0])[1](X[1]),
        lambda: hessian(lambda x: chain(P, x))(X[0]) @ X[1],
    ),
    "linearize(linearize)": (
        lambda: linearize(lambda x: linearize(torch.sin, x)[1](X[1]), X[0])[1](X[2]),
        lambda: -X[0].sin() * X[1] * X[2],
    ),
    "with torch.func": (
        lambda: torch.func.vmap(grad(lambda x: torch.func.jvp(lambda x: chain(P, x), (x,), (x,))[1]))(X),
        lambda: torch.stack([numeric_jacobian(lambda x: jvp(lambda x: chain(P, x), (x,), (x,))[1], x) for x in X]),
    ),
}


@pytest.mark.parametrize(("ours", "expected"), COMPOSITIONS.values(), ids=COMPOSITIONS)
def test_composition(ours, expected):
    torch.testing.assert_close(ours(), expected(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("transform", [vmap, lambda f: vmap(f, chunk_size=3), grad, jacrev, jacfwd])
def test_backward_through_a_transform(transform):
    weight = tensor(3).requires_grad_()
    f = lambda x: (x * weight).sin().sum()
    transform(f)(X if transform is not grad else X[0]).pow(2).sum().backward()
    found, weight.grad = weight.grad, None
    there = {vmap: torch.func.vmap, grad: torch.func.grad, jacrev: torch.func.jacrev}.get(transform)
    if there is None:
        there = torch.func.jacrev if transform is jacfwd else torch.func.vmap
    there(f)(X if transform is not grad else X[0]).pow(2).sum().backward()
    assert_equal(found, weight.grad)


TRANSFORMS_AT_A_POINT = {
    "grad": lambda f, x: grad(f)(x),
    "value_and_grad": lambda f, x: value_and_grad(f)(x)[1],
    "vjp": lambda f, x: vjp(f, x)[1](torch.ones_like(x))[0],
    "jvp": lambda f, x: jvp(f, (x,), (torch.ones_like(x),))[1],
    "linearize": lambda f, x: linearize(f, x)[1](torch.ones_like(x)),
    "jacrev": lambda f, x: jacrev(f)(x),
    "jacfwd": lambda f, x: jacfwd(f)(x),
    "hessian": lambda f, x: hessian(f)(x),
    "vmap": lambda f, x: vmap(f)(x[None])[0],
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_mode_outside_makes_no_difference(mode):
    x = tensor(3)
    with mode():
        assert_equal(grad(lambda x: x.pow(2).sum())(x), 2 * x)
        assert_equal(vjp(torch.sin, x)[1](x)[0], x.cos() * x)
        assert_equal(jvp(torch.sin, (x,), (x,))[1], x.cos() * x)
        assert_equal(linearize(torch.sin, x)[1](x), x.cos() * x)
        assert_equal(hessian(lambda x: x.pow(3).sum())(x), (6 * x).diag())


def test_no_grad_inside_is_respected():
    def f(x):
        with torch.no_grad():
            shift = x**2
        return (x - shift).sum()

    assert_equal(grad(f)(tensor(3)), torch.ones(3, dtype=D))


@pytest.mark.parametrize("transform", TRANSFORMS_AT_A_POINT)
@pytest.mark.parametrize("wrapped", [lambda f: f, lambda f: fh.jit(f, backend="eager")], ids=["plain", "jit"])
def test_a_transform_under_no_grad_is_a_constant_of_those_around_it(transform, wrapped):
    def f(x):
        with torch.no_grad():
            shift = TRANSFORMS_AT_A_POINT[transform](lambda x: x**3, x)
        return x**2 - shift

    x = torch.tensor(1.5, dtype=D)
    assert_equal(grad(wrapped(f))(x), 2 * x)
    x.requires_grad_()
    assert_equal(torch.autograd.grad(wrapped(f)(x), x)[0], 2 * x)


# ------------------------------------------------------------------------------------------------------------
# what the transforms return


@pytest.mark.parametrize("transform", [vmap, grad, value_and_grad, jacfwd, jacrev, hessian])
def test_names_and_wrapped_function(transform):
    def model(x):
        """The user's words."""
        return x

    result = transform(model)
    assert (result.__name__, result.__doc__) == ("model", "The user's words.")
    inner = result
    while hasattr(inner, "__wrapped__"):
        inner = inner.__wrapped__
    assert inner is model

    module = torch.nn.Linear(3, 1)
    assert not hasattr(transform(module), "_parameters")
    assert callable(transform(functools.partial(model)))


CALLED = {name: f"the order is fh.{name}(func, *primals)" for name in ("vjp", "linearize")}


@pytest.mark.parametrize("name", ["vmap", "grad", "value_and_grad", "vjp", "linearize", "jacfwd", "jacrev", "hessian"])
def test_not_callable(name):
    with pytest.raises(fh.ArgumentTypeError) as caught:
        globals()[name](3)
    assert lines(caught) == [
        f"{name}: not callable",
        "  where: func",
        "  expected: a function",
        "  got: int 3",
        f"  help: {CALLED.get(name, f'write {name}(func)(*args): its arguments are passed to what it returns')}",
    ]


@pytest.mark.parametrize("transform", [vmap, jacfwd, jacrev])
def test_chunk_size_must_be_positive(transform):
    with pytest.raises(fh.ArgumentValueError, match="chunk_size"):
        transform(torch.sin, chunk_size=0)


def test_randomness_must_be_known():
    with pytest.raises(fh.ArgumentValueError) as caught:
        vmap(torch.sin, randomness="some")
    assert lines(caught)[2:4] == ["  expected: one of ('error', 'same', 'different')", "  got: 'some'"]


# ------------------------------------------------------------------------------------------------------------
# torch.compile


@dataclasses.dataclass
class FirstSeenByDynamo:
    w: Any
    b: Any = None


COMPILED = {
    "vmap": lambda p, x: vmap(chain, in_dims=({"w": None, "b": None}, 0), out_dims=0)(p, x),
    "out_dims": lambda p, x: vmap(lambda x: {"x": x, "p": p}, out_dims={"x": 1, "p": None})(x),
    "vmap(grad)": lambda p, x: vmap(value_and_grad(chain), (None, 0))(p, x),
    "jvp(vjp)": lambda p, x: jvp(lambda w: vjp(torch.sin, w)[1](w), (p["w"],), (x[0],)),
    "linearize": lambda p, x: linearize(torch.sin, p["w"])[1](x[0]),
    "hessian": lambda p, x: hessian(chain)(p, x[0]),
    "dataclass": lambda p, x: grad(lambda q: (q.w * x).sum())(FirstSeenByDynamo(p["w"])).w,
}


@pytest.mark.parametrize("function", COMPILED.values(), ids=COMPILED)
def test_transforms_are_traced_by_dynamo(function):
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="eager")(P, X)
    assert_equal(compiled, function(P, X))
