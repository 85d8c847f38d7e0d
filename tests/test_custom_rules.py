"""custom_vjp and custom_jvp.

Most rules here are wrong on purpose, three times the true derivative, so that one can see which rule ran: ``tripled``
of the function has the same value and derivatives. The cases follow JAX's tests of custom derivatives.
"""

from __future__ import annotations

import dataclasses
import functools

import optree
import pytest
import torch

import functorch_hops as fh
from modes import MODES, captured, every_mode, jitted, plain

F64 = torch.float64


def same(got, expected):
    got, expected = (optree.tree_flatten(t) for t in (got, expected))
    assert got[1] == expected[1]
    for a, b in zip(got[0], expected[0], strict=True):
        torch.testing.assert_close(a, b)


def f64(*values):
    return torch.tensor(values if len(values) > 1 else values[0], dtype=F64)


def tripled(f):
    """A function with the value of ``f`` and three times its derivatives, of any order."""
    return lambda *args: f(*args) * 3 - f(*args).detach() * 2


@fh.custom_vjp
def sin_vjp(x, y):
    return torch.sin(x) * y


sin_vjp.defvjp(
    lambda x, y: (sin_vjp(x, y), (torch.cos(x), torch.sin(x), y)),
    lambda res, ct: (3 * ct * res[0] * res[2], 3 * ct * res[1]),
)


@fh.custom_jvp
def sin_jvp(x, y):
    return torch.sin(x) * y


@sin_jvp.defjvp
def _(primals, tangents):
    (x, y), (tx, ty) = primals, tangents
    return sin_jvp(x, y), 3 * (torch.cos(x) * y * tx + torch.sin(x) * ty)


sin = tripled(lambda x, y: torch.sin(x) * y)
both = pytest.mark.parametrize("f", [sin_vjp, sin_jvp], ids=["custom_vjp", "custom_jvp"])
X, Y = f64(0.7), f64(1.3)


# ---------------------------------------------------------------------------------------------------------------------
# which rule runs


def reverse_twice(f):
    return fh.jacrev(fh.jacrev(f, argnums=(0, 1)), argnums=(0, 1))


def reverse_thrice(f):
    return fh.grad(fh.grad(fh.grad(f)), argnums=1)


TRANSFORMS = {
    "value": lambda f: f,
    "grad": lambda f: fh.grad(f, argnums=(0, 1)),
    "reverse over reverse": reverse_twice,
    "third order": reverse_thrice,
    "forward over reverse": lambda f: fh.hessian(f, argnums=(0, 1)),
}
FORWARD = {
    "jvp": lambda f: lambda x, y: fh.jvp(f, (x, y), (y, x)),
    "jacfwd": lambda f: fh.jacfwd(f, argnums=(0, 1)),
    "forward over forward": lambda f: fh.jacfwd(fh.jacfwd(f, argnums=(0, 1)), argnums=1),
    "reverse over forward": lambda f: fh.jacrev(fh.jacfwd(f, argnums=(0, 1)), argnums=(0, 1)),
    "linearize": lambda f: lambda x, y: fh.linearize(f, x, y)[1](y, x),
}


@every_mode
@both
@pytest.mark.parametrize("name", TRANSFORMS)
def test_of_any_order(run, f, name):
    """pytorch/pytorch 87222: custom_jvp and custom_vjp for functorch."""
    transform = TRANSFORMS[name]
    same(run(transform(f), X, Y), transform(sin)(X, Y))


@every_mode
@pytest.mark.parametrize("name", FORWARD)
def test_forward_mode(run, name):
    transform = FORWARD[name]
    same(run(transform(sin_jvp), X, Y), transform(sin)(X, Y))


@both
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_of_a_jitted_function(f, name):
    transform = TRANSFORMS[name]
    same(transform(fh.jit(f, backend="eager"))(X, Y), transform(sin)(X, Y))


@every_mode
@both
def test_vmap_inside_and_outside(run, f):
    xs = f64(0.1, 0.5, -0.4)
    for in_dims, args in [((0, None), (xs, Y)), ((None, 0), (X, xs)), ((0, 0), (xs, xs + 1))]:
        lanes = fh.vmap(fh.grad(sin, argnums=(0, 1)), in_dims)
        same(run(fh.vmap(fh.grad(f, argnums=(0, 1)), in_dims), *args), lanes(*args))
        total = lambda f: fh.grad(lambda *a: fh.vmap(f, in_dims)(*a).sum(), argnums=(0, 1))
        same(run(total(f), *args), total(sin)(*args))
        second = lambda f: fh.hessian(lambda *a: fh.vmap(f, in_dims)(*a).sum(), argnums=(0, 1))
        same(run(second(f), *args), second(sin)(*args))


@every_mode
@both
def test_plain_autograd(run, f):
    """Backward, and backward of it, with everything hanging on one node."""
    x, y = X.clone().requires_grad_(), Y.clone().requires_grad_()

    def twice(f):
        out = f(x, y)
        first = torch.autograd.grad(out, (x, y), create_graph=True)
        mixed = out + first[0] * first[1]
        return out, first, torch.autograd.grad(mixed, (x, y), create_graph=True)

    got, expected = twice(functools.partial(run, f)), twice(sin)
    same(got, expected)
    third = lambda results: torch.autograd.grad(sum(results[2]), (x, y))
    same(third(got), third(expected))


def test_dual_numbers():
    """Forward mode by torch.autograd.forward_ad, without torch.func."""
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(X, torch.ones_like(X))
        out = torch.autograd.forward_ad.unpack_dual(sin_jvp(x, Y))
    same(out.tangent, 3 * X.cos() * Y)


@every_mode
@both
def test_in_loops_and_branches(run, f):
    def looped(f):
        def step(c, x):
            c = fh.cond(c > 0.3, lambda: f(c, x), lambda: c + f(x, x))
            return fh.while_loop(lambda v: v < 0.5, lambda v: v + f(x, x) ** 2 + 0.1, c), c

        return lambda c, xs: fh.scan(step, c, xs)[0]

    xs = f64(0.4, 0.9, 1.4)
    derivative = lambda f: fh.grad(looped(f), argnums=(0, 1))
    same(run(derivative(f), X, xs), derivative(sin)(X, xs))
    second = lambda f: fh.hessian(looped(f), argnums=0)
    same(run(second(f), X, xs), second(sin)(X, xs))
    lanes = lambda f: fh.vmap(fh.grad(looped(f)), in_dims=(0, None))
    starts = f64(0.1, 0.4, 2.0)
    same(run(lanes(f), starts, xs), torch.stack([fh.grad(looped(sin))(c, xs) for c in starts]))


@every_mode
def test_loops_inside_rules(run):
    """The function is a Newton iteration; its rule is another loop, closed over the result."""

    @fh.custom_vjp
    def root(a):
        return fh.while_loop(lambda x: (x * x - a).abs() > 1e-13, lambda x: (x + a / x) / 2, torch.ones_like(a))

    def bwd(x, ct):
        return (fh.fori_loop(0, 250, lambda i, s: s + 0.2 * (3 * ct - 2 * x * s), torch.zeros_like(ct)),)

    root.defvjp(lambda a: (lambda x: (x, x))(root(a)), bwd)
    a = f64(2.5)
    same(run(fh.grad(root), a), 3 / (2 * a.sqrt()))
    same(run(fh.grad(fh.grad(root)), a), 3 * fh.grad(lambda a: 1 / (2 * tripled(torch.sqrt)(a)))(a))
    same(run(fh.vmap(fh.grad(root)), f64(0.5, 9.0)), 3 / (2 * f64(0.5, 9.0).sqrt()))


@every_mode
def test_a_shared_coefficient_of_a_batched_loop(run):
    """jax-ml/jax 5832: the carry gets lanes, the coefficient has none."""
    mul = fh.custom_vjp(lambda x, k: x * k)
    mul.defvjp(lambda x, k: (mul(x, k), (x, k)), lambda res, ct: (ct * res[1], (res[0] * ct).sum()))
    loop = lambda f: lambda x, k: fh.scan(lambda c, _: (f(c, k), None), x, length=3)[0]
    x, k = torch.tensor([[0.5, 1.0], [2.0, -1.0], [0.1, 0.3]], dtype=F64), f64(1.5)
    lanes = lambda f: lambda x, k: (fh.vmap(loop(f), in_dims=(0, None))(x, k) ** 2).sum()
    same(run(fh.grad(lanes(mul), argnums=(0, 1)), x, k), fh.grad(lanes(torch.mul), argnums=(0, 1))(x, k))
    same(run(fh.hessian(lanes(mul), argnums=1), x, k), fh.hessian(lanes(torch.mul), argnums=1)(x, k))


@every_mode
@both
def test_a_pullback_called_twice(run, f):
    """jax-ml/jax 14728."""

    def twice(f, xs):
        _, pull = fh.vjp(lambda xs: fh.vmap(f, in_dims=(0, None))(xs, Y), xs)
        return pull(xs), pull(xs * 2)

    xs = f64(0.3, 0.9)
    same(run(functools.partial(twice, f), xs), twice(sin, xs))


@every_mode
def test_checkpointed(run):
    g = lambda f: fh.grad(lambda x: fh.checkpoint(lambda x: f(f(x, Y), x))(x))
    for f in (sin_vjp, sin_jvp):
        same(run(g(f), X), g(sin)(X))
        same(run(fh.grad(g(f)), X), fh.grad(g(sin))(X))


def test_residuals_are_differentiated_as_fwd_computes_them():
    """As in JAX: a forward rule that does not call the function is differentiated as any code."""
    f = fh.custom_vjp(torch.exp)
    f.defvjp(lambda x: (torch.exp(x), torch.exp(x)), lambda y, ct: (3 * y * ct,))
    g = fh.custom_vjp(torch.exp)
    g.defvjp(lambda x: (g(x), g(x)), lambda y, ct: (3 * y * ct,))
    for run in MODES.values():
        same(run(fh.grad(fh.grad(f)), X), 3 * X.exp())
        same(run(fh.grad(fh.grad(g)), X), 9 * X.exp())
    x = X.clone().requires_grad_()
    for run in (plain, captured):
        for function, expected in [(f, 3), (g, 9)]:
            (first,) = torch.autograd.grad(run(function, x), x, create_graph=True)
            same(torch.autograd.grad(first, x)[0], (expected * X.exp()))


# ---------------------------------------------------------------------------------------------------------------------
# arguments


@dataclasses.dataclass
class Pair:
    a: torch.Tensor
    b: torch.Tensor


@every_mode
def test_trees(run):
    @fh.custom_vjp
    def f(p, q, flag):
        assert flag == "on"
        return {"y": p["u"] * q.a, "n": p["n"] + 1, "none": None, "name": "out"}

    def fwd(p, q, flag):
        return f(p, q, flag), {"p": p, "pair": (q, flag)}

    def bwd(res, ct):
        assert ct["name"] == "out"
        assert not ct["n"].is_floating_point()
        q, _ = res["pair"]
        return {"u": 3 * ct["y"] * q.a, "n": None}, Pair(3 * ct["y"] * res["p"]["u"], None), None

    f.defvjp(fwd, bwd)
    p, q = {"u": X, "n": torch.tensor(4)}, Pair(Y, f64(2.0))
    out = run(lambda p, q: f(p, q, "on"), p, q)
    same((out["y"], out["n"]), (X * Y, torch.tensor(5)))
    assert (out["none"], out["name"]) == (None, "out")
    loss = lambda u, q: f({"u": u, "n": torch.tensor(4)}, q, flag="on")["y"]
    got = run(fh.grad(loss, argnums=(0, 1)), X, q)
    same(got[0], 3 * Y)
    same((got[1].a, got[1].b), (3 * X, f64(0.0)))


@every_mode
def test_trees_of_tangents(run):
    @fh.custom_jvp
    def f(p):
        return {"y": p["x"] * 2, "n": p["n"]}, "word"

    @f.defjvp
    def _(primals, tangents):
        (p,), (t,) = primals, tangents
        assert p["k"] == 2.5
        assert t["n"].dtype == torch.int64
        assert t["k"] == 0.0
        return f(p), ({"y": t["x"] * 6, "n": None}, None)

    full = lambda x: f({"x": x, "n": torch.tensor(3), "k": 2.5})
    g = lambda x: full(x)[0]["y"]
    assert full(X)[1] == "word"
    same(run(fh.grad(g), X), f64(6.0))
    same(run(fh.jacfwd(g), X), f64(6.0))


@every_mode
def test_keywords_and_defaults(run):
    g = fh.custom_vjp(lambda x, y=2.0: x * y)
    g.defvjp(lambda x, y: (g(x, y), y), lambda y, ct: (3 * ct * y, None))
    same(run(fh.grad(lambda x: g(y=Y, x=x)), X), 3 * Y)
    same(run(fh.grad(lambda x: g(x=x)), X), f64(6.0))
    same(run(fh.grad(g), X), f64(6.0))

    h = fh.custom_jvp(lambda x, y=2.0, *, scale=1.0: x * y * scale)
    h.defjvp(lambda primals, tangents: (h(*primals), 3 * primals[1] * tangents[0]))
    same(run(fh.grad(h), X), f64(6.0))
    same(run(fh.grad(lambda x: h(x=x)), X), f64(6.0))


@every_mode
def test_arguments_without_derivatives(run):
    @functools.partial(fh.custom_vjp, nondiff_argnums=(0, 2))
    def apply(h, x, power):
        return h(x) ** power

    apply.defvjp(
        lambda h, x, power: (apply(h, x, power), x), lambda h, power, x, ct: (3 * ct * power * h(x) ** (power - 1),)
    )
    same(run(fh.grad(lambda x: apply(torch.sin, x, 3)), X), 9 * X.sin() ** 2)

    @functools.partial(fh.custom_jvp, nondiff_argnums=0)
    def apply(h, x):
        return h(x)

    apply.defjvp(lambda h, primals, tangents: (apply(h, *primals), 3 * tangents[0]))
    same(run(fh.grad(lambda x: apply(torch.sin, x)), X), f64(3.0))
    same(run(lambda x: fh.jvp(lambda x: apply(torch.sin, x), (x,), (Y,)), X), (X.sin(), 3 * Y))


@every_mode
def test_a_tensor_as_an_argument_without_derivative(run):
    """It may be an integer, a lane of a vmap, the value of an outer loop: anything that is not differentiated."""

    @functools.partial(fh.custom_jvp, nondiff_argnums=(0,))
    def f(k, x):
        return k * x

    f.defjvp(lambda k, primals, tangents: (f(k, *primals), 3 * k * tangents[0]))
    ks = f64(2.0, 5.0)
    same(run(fh.vmap(fh.grad(f, argnums=1), in_dims=(0, None)), ks, X), 3 * ks)
    total = fh.grad(lambda x: fh.scan(lambda c, k: (c + f(k, x), None), f64(0.0), ks)[0])
    same(run(total, X), f64(21.0))


@pytest.mark.parametrize("decorator", [fh.custom_vjp, fh.custom_jvp], ids=["custom_vjp", "custom_jvp"])
def test_a_float_that_jit_traces(decorator):
    f = decorator(lambda x, rate: x * rate)
    if decorator is fh.custom_vjp:
        f.defvjp(lambda x, rate: (f(x, rate), rate), lambda rate, ct: (3 * ct * rate, None))
    else:
        f.defjvp(lambda primals, tangents: (f(*primals), 3 * tangents[0] * primals[1]))
    slope = fh.jit(lambda x, rate: fh.grad(lambda x: f(x, rate))(x), backend="eager")
    loop = fh.jit(lambda x, rate: fh.scan(lambda c, _: (f(c, rate), None), x, length=2)[0], backend="eager")
    for rate in (0.1, 0.5):
        same(slope(X, rate), f64(3 * rate))
        same(fh.grad(loop)(X, rate), f64(9 * rate**2))
    assert slope.cache_info().misses == 1


@every_mode
def test_one_rule_per_argument(run):
    f = fh.custom_jvp(lambda x, y, z: x * y + z)
    f.defjvps(lambda t, out, x, y, z: 3 * t * y, None, lambda t, out, x, y, z: t * out)
    same(run(fh.grad(f, argnums=(0, 1, 2)), X, Y, X), (3 * Y, f64(0.0), X * Y + X))


def with_tangent(of_tangent):
    f = fh.custom_jvp(torch.sin)
    f.defjvp(lambda primals, tangents: (f(*primals), of_tangent(primals[0], tangents[0] * primals[0].cos())))
    return f


def scanned(step):
    return lambda x, t: fh.scan(lambda c, _: (step(x, c), None), t, length=3)[0]


DECIDED = {
    "where": lambda x, t: torch.where(t.abs() > 0.5, t, 2 * t),
    "cond": lambda x, t: fh.cond(t.sum() > 0.5, lambda: t, lambda: 2 * t),
    "while": lambda x, t: fh.while_loop(lambda t: t.abs().max() > 0.1, lambda t: t / 2, t),
    "where in scan": scanned(lambda x, t: torch.where(t.abs() > 0.5, t, 2 * t)),
    "while in scan": scanned(lambda x, t: fh.while_loop(lambda t: t.abs().max() > 0.1, lambda t: t / 2, t)),
}
UNDECIDED = {
    "where": lambda x, t: torch.where(x > 0, t, 2 * t),
    "cond": lambda x, t: fh.cond(x.sum() > 0, lambda: t, lambda: 2 * t),
    "while": lambda x, t: fh.while_loop(lambda s: s[1].abs().max() > 0.1, lambda s: (s[0] / 2, s[1] / 2), (t, x))[0],
    "where in scan": scanned(lambda x, t: torch.where(x > 0, t, 2 * t)),
    "counter": lambda x, t: fh.while_loop(lambda s: s[1] < 3, lambda s: (s[0] / 2, s[1] + 1), (t, t.new_zeros(())))[0],
    "finite": lambda x, t: torch.where(t.isnan(), 0.0, torch.nan_to_num(t)),
}


@every_mode
@pytest.mark.parametrize("name", DECIDED)
def test_a_rule_that_decides_by_its_tangents_has_no_transpose(run, name):
    """What is transposed is linear: such a rule, taken at tangents of zero, would give the gradient of another."""
    f = with_tangent(DECIDED[name])
    x, t = f64(0.3, 1.2), f64(0.1, -2.0)
    same(run(lambda x, t: fh.jvp(f, (x,), (t,))[1], x, t), DECIDED[name](x, t * x.cos()))
    with pytest.raises(fh.ArgumentTypeError, match="has no transpose"):
        run(fh.grad(lambda x: f(x).sum()), x)
    leaf = x.clone().requires_grad_()
    y = run(f, leaf).sum()
    with pytest.raises(fh.ArgumentTypeError, match="has no transpose"):
        y.backward()


@every_mode
@pytest.mark.parametrize("name", UNDECIDED)
def test_a_rule_that_decides_by_its_primals_has_one(run, name):
    f = with_tangent(UNDECIDED[name])
    x = f64(0.3, 1.2)
    rows = [UNDECIDED[name](x, e * x.cos()) for e in torch.eye(2, dtype=F64)]
    same(run(fh.jacrev(f), x), torch.stack(rows, 1))
    leaf = x.clone().requires_grad_()
    same(torch.autograd.grad(run(f, leaf).sum(), leaf)[0], torch.stack(rows, 1).sum(0))


@every_mode
def test_a_linear_function_whose_rule_is_itself(run):
    """The rule calls the function on the tangents (JAX has the same case, in a scan)."""
    f = fh.custom_jvp(lambda x: -x)
    f.defjvp(lambda primals, tangents: (f(*primals), f(tangents[0]) + 0 * f(2 * tangents[0])))
    loop = lambda x: fh.scan(lambda c, _: (f(c) * c, None), x, length=2)[0]
    oracle = lambda x: -((-x * x) ** 2)
    for g, expected in [(f, torch.neg), (loop, oracle)]:
        for order in (fh.grad, fh.jacfwd, lambda f: fh.grad(fh.grad(f)), fh.hessian, lambda f: fh.jacrev(fh.jacfwd(f))):
            same(run(order(g), X), order(expected)(X))
        same(run(fh.vmap(fh.grad(g)), f64(1.0, 2.0)), fh.vmap(fh.grad(expected))(f64(1.0, 2.0)))
    if run is not jitted:
        x = X.clone().requires_grad_()
        (first,) = torch.autograd.grad(run(loop, x), x, create_graph=True)
        same((first.detach(), *torch.autograd.grad(first, x)), (-4 * X**3, -12 * X**2))


@every_mode
def test_lists_and_numbers_as_gradients(run):
    f = fh.custom_vjp(lambda x, y: x * y)
    f.defvjp(lambda x, y: (f(x, y), None), lambda res, ct: [ct * 2, 5.0])
    same(run(fh.grad(f, argnums=(0, 1)), X, Y), (f64(2.0), f64(5.0)))


@every_mode
def test_several_rules_in_one_body(run):
    def f(x):
        return sin_vjp(sin_jvp(x, Y), sin_vjp(Y, x)) + sin_vjp(x, x)

    def oracle(x):
        return sin(sin(x, Y), sin(Y, x)) + sin(x, x)

    same(run(fh.grad(f), X), fh.grad(oracle)(X))
    same(run(fh.grad(fh.grad(f)), X), fh.grad(fh.grad(oracle))(X))


@every_mode
def test_no_output_and_no_input(run):
    nothing = fh.custom_vjp(lambda x: None)
    nothing.defvjp(lambda x: (None, x), lambda x, ct: (x,))
    constant = fh.custom_jvp(lambda: f64(2.0))
    constant.defjvp(lambda primals, tangents: (f64(2.0), f64(0.0)))
    f = lambda x: x * constant() if nothing(x) is None else x
    same(run(fh.grad(f), X), f64(2.0))
    same(run(fh.vmap(f), f64(1.0, 2.0)), f64(2.0, 4.0))


@every_mode
def test_a_value_that_does_not_depend_on_the_input(run):
    """The rule says that it does; each lane of a vmap has a cotangent of its own."""
    f = fh.custom_vjp(lambda x: torch.zeros_like(x))
    f.defvjp(lambda x: (torch.zeros_like(x), None), lambda _, ct: (ct * 3,))
    weights = f64(1.0, 2.0)
    same(run(fh.grad(lambda x: (fh.vmap(f)(x) * weights).sum()), f64(4.0, 5.0)), 3 * weights)
    g = fh.custom_jvp(lambda x: torch.zeros((), dtype=F64))
    g.defjvp(lambda primals, tangents: (torch.zeros((), dtype=F64), tangents[0] * 3))
    same(run(lambda x: fh.jvp(fh.vmap(g), (x,), (weights,)), weights), (f64(0.0, 0.0), 3 * weights))
    same(run(fh.vmap(fh.grad(g)), weights), f64(3.0, 3.0))


@every_mode
def test_an_integer_output_of_all_lanes(run):
    f = fh.custom_jvp(lambda x, n: (x * 2, n + 1))
    f.defjvp(lambda primals, tangents: (f(*primals), (tangents[0] * 6, None)))
    shared = fh.vmap(lambda x, n: f(x, n), in_dims=(0, None), out_dims=(0, None))
    same(run(shared, f64(1.0, 2.0), torch.tensor(3)), (f64(2.0, 4.0), torch.tensor(4)))


@every_mode
def test_random_numbers(run):
    """The backward pass sees the numbers that the forward pass drew; so does a second run for a second derivative."""

    @fh.custom_vjp
    def noisy(x):
        return x * torch.rand(4, dtype=F64)

    def fwd(x):
        noise = torch.rand(4, dtype=F64)
        return x * noise, (noise, x)

    noisy.defvjp(fwd, lambda res, ct: ((ct * res[0] * res[1]).sum() * 2,))
    x = X.clone().requires_grad_()
    out = run(noisy, x)
    (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    noise = out.detach() / X
    same(slope.detach(), (noise * X).sum() * 2)
    same(torch.autograd.grad(slope, x)[0], noise.sum() * 2)


# ---------------------------------------------------------------------------------------------------------------------
# closed-over values


def scaled_vjp(scale):
    f = fh.custom_vjp(lambda x: x * scale)
    f.defvjp(lambda x: (f(x), None), lambda _, ct: (3 * ct * scale,))
    return f


def scaled_jvp(scale):
    f = fh.custom_jvp(lambda x: x * scale)
    f.defjvp(lambda primals, tangents: (f(*primals), 3 * scale * tangents[0]))
    return f


both_scaled = pytest.mark.parametrize("scaled", [scaled_vjp, scaled_jvp], ids=["custom_vjp", "custom_jvp"])


@every_mode
@both_scaled
def test_closed_over_lanes(run, scaled):
    """A mapped value that the function closes over, where its argument is not mapped (jax-ml/jax 3822, 8783)."""
    scales = f64(0.0, 1.0, 2.0)
    same(run(fh.vmap(lambda s: fh.grad(scaled(s))(X)), scales), 3 * scales)
    same(run(fh.vmap(lambda s: scaled(s)(X)), scales), scales * X)
    total = lambda z: fh.vmap(lambda s: scaled(s)(z))(scales).sum()
    same(run(fh.grad(total), X), f64(9.0))


@every_mode
@both_scaled
def test_closed_over_values_of_loops(run, scaled):
    f = lambda x: fh.scan(lambda c, s: (scaled(s + c.detach())(x), c), f64(0.0), f64(1.0, 2.0))[0]
    same(run(f, X), (2 + X) * X)
    same(run(fh.grad(f), X), 3 * (2 + X))
    same(run(fh.vmap(fh.grad(f)), f64(1.0, 2.0)), 3 * (2 + f64(1.0, 2.0)))


@every_mode
def test_a_backward_rule_that_closes_over_a_differentiated_value(run):
    """It is ordinary code: the second derivative flows to the value (JAX has the same case)."""

    def in_bwd(y):
        f = fh.custom_vjp(lambda x: 2 * torch.sin(x))
        f.defvjp(lambda x: (f(x), None), lambda _, ct: (2 * torch.cos(y) * ct,))
        return fh.grad(f)(X)

    def in_fwd(y):
        f = fh.custom_vjp(lambda x: 2 * torch.sin(x))
        f.defvjp(lambda x: (f(x), y), lambda y, ct: (2 * torch.cos(y) * ct,))
        return fh.grad(f)(X)

    for f in (in_bwd, in_fwd):
        same(run(f, Y), 2 * torch.cos(Y))
        same(run(fh.vmap(f), f64(1.0, 2.0)), 2 * torch.cos(f64(1.0, 2.0)))
        same(run(fh.grad(f), Y), -2 * torch.sin(Y))


@every_mode
@both_scaled
def test_differentiating_a_closed_over_value_is_an_error(run, scaled):
    f = lambda s: scaled(s)(X)
    for g in (fh.grad(f), fh.grad(lambda s: scaled(s)(s)), lambda s: fh.jvp(lambda s: scaled(s)(X), (s,), (s,))):
        with pytest.raises(fh.ArgumentValueError, match="closes over"):
            run(g, Y)


@both_scaled
def test_a_closed_over_parameter(scaled):
    """A parameter may be there as long as nobody asks for its gradient."""
    w, x = Y.clone().requires_grad_(), X.clone().requires_grad_()
    for run in (plain, captured):
        same(run(scaled(w), X).detach(), X * Y)
        with pytest.raises(fh.ArgumentValueError, match="pass the value as an argument"):
            run(scaled(w), x).backward()
        with pytest.raises(fh.ArgumentValueError):
            run(scaled(w), X).backward()
        with torch.no_grad():
            same(run(scaled(w), X), X * Y)
        same(torch.autograd.grad(run(scaled(w.detach()), x), x)[0], 3 * Y)
    same(torch.autograd.grad(scaled(w)(x), x)[0], 3 * Y)


@every_mode
def test_constants_in_rules(run):
    """Tensors made from Python numbers, in the function and in rules that call it."""
    c = lambda: torch.tensor([1.0, 2.0], dtype=F64)
    f = fh.custom_jvp(lambda x: (x * c()).sum())
    f.defjvp(lambda primals, tangents: (f(*primals), tangents[0] * (c() * 3 * torch.tensor(2.0)).sum() * primals[0]))
    same(run(fh.grad(f), X), 18 * X)
    same(run(fh.grad(fh.grad(f)), X), f64(18.0))


def test_an_instance_that_jit_reads_is_never_stale():
    rate = {"value": 3.0}
    f = fh.custom_vjp(lambda x: x * rate["value"])
    f.defvjp(lambda x: (f(x), None), lambda _, ct: (ct * rate["value"] * 2,))
    g = fh.jit(fh.value_and_grad(lambda x: f(x)), backend="eager")
    same(g(X), (3 * X, f64(6.0)))
    rate["value"] = 5.0
    same(g(X), (5 * X, f64(10.0)))
    f.defvjp(lambda x: (f(x), None), lambda _, ct: (ct * 7,))
    same(g(X), (5 * X, f64(7.0)))


@pytest.mark.parametrize("f", [sin_vjp, sin_jvp], ids=["custom_vjp", "custom_jvp"])
def test_exported(f):
    example = (torch.tensor([0.1, 0.2]), torch.tensor([1.5, 2.0]))
    for g, oracle in [(f, sin), (fh.grad(lambda x, y: f(x, y).sum()), fh.grad(lambda x, y: sin(x, y).sum()))]:
        same(fh.export(g, example).module()(*example), oracle(*example))


@pytest.mark.slow
@pytest.mark.parametrize("f", [sin_vjp, sin_jvp], ids=["custom_vjp", "custom_jvp"])
def test_compiled(f):
    loop = lambda f: lambda x: fh.scan(lambda c, _: (f(c, x), c), x + 1, length=4)[0].sum()
    x = torch.linspace(0, 1, 4)
    same(fh.jit(fh.value_and_grad(loop(f)))(x), fh.value_and_grad(loop(sin))(x))
