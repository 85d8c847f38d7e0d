"""What a body may do, in plain eager, captured and under jit: closures, modules, writes, grad mode, autocast, rules."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch

import functorch_hops as fh
from modes import every_mode, gradients, plain, same, while_capturing

F64 = torch.float64


# ---------------------------------------------------------------------------------------------------------------------
# closures


@every_mode
def test_closures_over_values_of_enclosing_bodies(run):
    def f(x, w):
        def outer(c, e):
            scale = c * e

            def inner(d, _):
                inner_scale = d + scale

                def innermost(v):
                    return v * inner_scale + w + scale.sum()

                return fh.cond(d.sum() > 1, innermost, lambda v: v - inner_scale, d), scale

            d, s = fh.scan(inner, c, length=2)
            return d * scale, s.sum()

        return fh.scan(outer, x, torch.stack([x, w]))

    def oracle(x, w):
        c, ys = x, []
        for e in (x, w):
            scale, d = c * e, c
            for _ in range(2):
                inner_scale = d + scale
                d = d * inner_scale + w + scale.sum() if d.sum() > 1 else d - inner_scale
            ys.append(2 * scale.sum())
            c = d * scale
        return c, torch.stack(ys)

    x, w = torch.tensor([0.5, -0.3], dtype=F64), torch.tensor([0.8, 0.4], dtype=F64)
    same(run(f, x, w), oracle(x, w))
    loss = lambda f: lambda x, w: f(x, w)[0].sum() + f(x, w)[1].prod()
    same(gradients(run, loss(f), x, w), gradients(plain, loss(oracle), x, w))


@every_mode
def test_branches_that_close_over_different_tensors(run):
    """Each branch lifts what the other does not, at every depth and in every kind of enclosing body."""
    a, b, d = (torch.tensor(v, dtype=F64) for v in ([2.0, 3.0], [0.5, 1.5], [1.0, -2.0]))
    choose = lambda v: fh.cond(v.sum() > 0, lambda u: u * a, lambda u: u + b, v)
    around = [
        lambda v: fh.cond(v.sum() > 0, choose, lambda u: u - d, v),
        lambda v: fh.switch((v.sum() > 0).long(), [choose, lambda u: choose(u) * d, torch.neg], v),
        lambda v: fh.scan(lambda c, _: (choose(c), None), v, length=1)[0],
        lambda v: fh.while_loop(lambda s: s[0] < 1, lambda s: (s[0] + 1, choose(s[1])), (0, v))[1],
        lambda v: fh.map(choose, v[None])[0],
        lambda v: fh.checkpoint(choose)(v),
        # The branch that closes over nothing is equal to one that was captured before.
        lambda v: fh.cond(v.sum() > 0, lambda u: fh.cond(u.sum() > 0, lambda t: t * a, torch.neg, u), torch.neg, v),
    ]
    chosen = lambda v: v * a if v.sum() > 0 else v + b
    expected = [
        lambda v: chosen(v) if v.sum() > 0 else v - d,
        lambda v: chosen(v) * d if v.sum() > 0 else chosen(v),
        *(chosen for _ in range(4)),
        lambda v: v * a if v.sum() > 0 else -v,
    ]
    for f, oracle in zip(around, expected, strict=True):
        for v in (torch.tensor([1.0, 0.5], dtype=F64), torch.tensor([-1.0, 0.5], dtype=F64)):
            same(run(f, v), oracle(v))
            same(gradients(run, f, v), gradients(plain, oracle, v))


@every_mode
def test_closures_over_wrapped_tensors(run):
    """The body closes over values of two enclosing transforms at once, and over one outside of both."""
    w = torch.tensor([0.3, 0.7], dtype=F64)

    def f(a, b):
        def of_b(b):
            step = lambda c, _: (c * a + b * w, c.sum() * a)
            return fh.scan(step, b, length=3)[0].sum()

        return fh.grad(of_b)(b)

    def oracle(a, b):
        return torch.func.grad(lambda b: ((b * a + b * w) * a + b * w).mul(a).add(b * w).sum())(b)

    a, b = torch.tensor([0.5, -1.0, 2.0], dtype=F64), torch.randn(3, 2, dtype=F64)
    same(run(fh.vmap(f), a, b), torch.stack([oracle(x, y) for x, y in zip(a, b)]))
    same(run(fh.jacrev(f), a[0], b[0]), torch.func.jacrev(oracle)(a[0], b[0]))
    same(run(fh.jacfwd(f), a[0], b[0]), torch.func.jacrev(oracle)(a[0], b[0]))


@every_mode
def test_modules_as_bodies(run):
    layer = torch.nn.Linear(3, 3, dtype=F64)
    x = torch.randn(3, dtype=F64)
    loss = lambda x: fh.fori_loop(0, 3, lambda i, c: torch.tanh(layer(c)), x).sum()
    got = torch.autograd.grad(run(loss, x), list(layer.parameters()))
    c = x
    for _ in range(3):
        c = torch.tanh(layer(c))
    same(got, torch.autograd.grad(c.sum(), list(layer.parameters())))
    same(run(lambda x: fh.scan(lambda c, _: (layer(c), None), x, length=2)[0], x), layer(layer(x)))
    same(run(lambda x: fh.cond(x.sum() > -100, layer, layer, x), x), layer(x))
    same(run(lambda x: fh.map(layer, x.expand(2, 3)), x), layer(x.expand(2, 3)))


@every_mode
def test_functional_call_in_a_body(run):
    layer = torch.nn.Linear(3, 3, dtype=F64)
    params = {k: v.detach() for k, v in layer.named_parameters()}
    x = torch.randn(3, dtype=F64)

    def loss(params, x):
        step = lambda i, c: torch.func.functional_call(layer, params, c)
        return fh.fori_loop(0, 2, step, x).sum()

    oracle = lambda params, x: torch.func.functional_call(
        layer, params, torch.func.functional_call(layer, params, x)
    ).sum()
    same(run(fh.grad(loss), params, x), torch.func.grad(oracle)(params, x))


# ---------------------------------------------------------------------------------------------------------------------
# in-place work on intermediates


@every_mode
def test_in_place_on_intermediates(run):
    def step(c):
        a = c * 2
        a += c
        a.mul_(c.detach()).sin_()
        b = torch.zeros_like(c)
        b[1:] = a[1:]
        b[0].copy_(a.sum())
        view = b.view(3, 1)
        view.add_(1)
        b.sub_(a).mul_(2.0)
        return b.tanh_() * 0.3

    def oracle_step(c):
        a = torch.sin((c * 2 + c) * c.detach())
        b = torch.cat([a.sum()[None], a[1:]]) + 1
        return torch.tanh((b - a) * 2.0) * 0.3

    f = lambda c: fh.fori_loop(0, 3, lambda i, c: step(c), c)
    oracle = lambda c: oracle_step(oracle_step(oracle_step(c)))
    c = torch.tensor([0.3, -0.2, 0.6], dtype=F64)
    same(run(f, c), oracle(c))
    same(gradients(run, f, c), gradients(plain, oracle, c))
    same(run(fh.jacfwd(f), c), torch.func.jacfwd(oracle)(c))
    same(run(fh.vmap(fh.jacrev(f)), c[None]), torch.func.jacrev(oracle)(c)[None])


WRITES = {
    "a sum": (lambda v: v.add_(v.sin()), lambda v: v + v.sin()),
    "a product": (lambda v: v.mul_(v.exp()), lambda v: v * v.exp()),
    "rows": (
        lambda v: v.index_add_(0, torch.tensor([1, 1, 0]), v.sin()),
        lambda v: v.index_add(0, torch.tensor([1, 1, 0]), v.sin()),
    ),
}


@every_mode
@pytest.mark.parametrize(("write", "same_without"), WRITES.values(), ids=WRITES)
def test_tangents_of_tangents_of_what_is_written_in_place(write, same_without, run):
    """They are zero by structure before the write, and not behind it."""

    def f(c):
        v = c * 1.5
        write(v)
        return v.cos()

    def second(jvp, f):
        first = lambda c: jvp(f, (c,), (c * c,))[1]
        return lambda c: jvp(first, (c,), (c.sin(),))

    c = torch.tensor([0.3, -0.2, 0.6], dtype=F64)
    same(run(second(fh.jvp, f), c), second(torch.func.jvp, lambda c: same_without(c * 1.5).cos())(c))


# ---------------------------------------------------------------------------------------------------------------------
# grad mode, detach, autocast, custom functions


@every_mode
def test_no_grad_in_a_body(run):
    def step(c):
        with torch.no_grad():
            scale = c.abs().max() + 1
            with torch.enable_grad():
                kept = c * 3
        return c / scale + kept * 0.1

    f = lambda c: fh.fori_loop(0, 3, lambda i, c: step(c), c)
    oracle = lambda c: step(step(step(c)))
    c = torch.tensor([0.5, -2.0], dtype=F64)
    same(gradients(run, f, c), gradients(plain, oracle, c))
    same(run(fh.grad(lambda c: f(c).sum()), c), torch.func.grad(lambda c: oracle(c).sum())(c))
    same(run(lambda c: fh.jvp(f, (c,), (c,)), c), torch.func.jvp(oracle, (c,), (c,)))


@every_mode
def test_tangents_under_no_grad_have_no_gradient(run):
    """Forward mode goes through no_grad, and what it computes there is a constant of reverse mode."""

    def f(x):
        with torch.no_grad():
            y = (x * 2).sin()
            kept = y.view(1, -1)[0]
        return kept * x + y

    def derivatives(tools, f, x):
        tangent = lambda x: tools.jvp(f, (x,), (x.cos(),))[1]
        return tangent(x), tools.grad(lambda x: tangent(x).sum())(x), tools.jvp(tangent, (x,), (x,))[1]

    x = torch.tensor([0.5, -2.0], dtype=F64)
    in_a_branch = lambda x: fh.cond(x.sum() < 9, f, f, x)
    for g in (in_a_branch, fh.jit(f, backend="eager"), fh.checkpoint(f)):
        same(run(lambda x, g=g: derivatives(fh, g, x), x), derivatives(torch.func, f, x))


@every_mode
def test_no_grad_around(run):
    x = torch.tensor([0.5, -2.0], requires_grad=True)
    with torch.no_grad():
        out = run(lambda x: fh.fori_loop(0, 2, lambda i, c: c * x, x), x)
    assert not out.requires_grad
    same(out, x.detach() ** 3)

    def inside(x):
        with torch.no_grad():
            y = fh.fori_loop(0, 2, lambda i, c: c * x, x)
        return x * y

    same(gradients(run, inside, x.detach()), (x.detach() ** 3,))


def detached_in_place(c):
    v = c * 2
    v.detach_()
    return v * c


def written_after_detach(c):
    v = (c * 2).detach()
    v.mul_(c)
    v[0] = c[1]
    return v * c


def written_behind_detach(c):
    v = c * 2
    w = v.detach()
    v.mul_(c)
    return v * w


@while_capturing
@pytest.mark.parametrize("step", [detached_in_place, written_after_detach, written_behind_detach])
def test_detach_and_writes(run, step):
    x = torch.tensor([0.5, -0.7], dtype=F64)
    loop = lambda x: fh.fori_loop(0, 2, lambda i, c: step(c), x)
    same(run(loop, x), step(step(x)))
    same(gradients(run, loop, x), gradients(plain, lambda x: step(step(x)), x))
    lanes = torch.stack([x, x + 1])
    same(gradients(run, fh.vmap(loop), lanes), gradients(plain, lambda x: step(step(x)), lanes.T)[0].T[None].unbind())


@while_capturing
def test_detach_in_place_within_a_transform(run):
    slope = lambda tools: lambda c: tools.grad(lambda c: ((c * 2).detach_() * c).sum())(c)
    x = torch.tensor([0.5, -0.7], dtype=F64)
    loop = lambda x: fh.fori_loop(0, 1, lambda i, c: slope(fh)(c), x)
    same(gradients(run, loop, x), gradients(plain, slope(torch.func), x))


@while_capturing
def test_complex_parts(run):
    """Derivatives of a spectrum, and of writes to parts of complex values."""

    def step(c):
        z = torch.complex(c, c * 2) * 1j
        z[1:] = z[:-1] * 2
        z[0] = c[0]
        return z.real + z.imag**2 + torch.fft.rfft(c).abs().sum()

    x = torch.tensor([0.5, -0.7, 0.3], dtype=F64)
    loop = lambda x: fh.fori_loop(0, 2, lambda i, c: step(c), x).sum()
    oracle = lambda x: step(step(x)).sum()
    same(run(fh.grad(loop), x), torch.func.grad(oracle)(x))
    same(run(fh.hessian(loop), x), torch.func.hessian(oracle)(x))


@while_capturing
@pytest.mark.parametrize("part", [slice(None), slice(1, None)])
def test_gradients_of_writes_to_the_real_part(run, part):
    """Autograd would find the part by the strides of its numbers in a gradient of complex ones."""

    def f(x):
        z = torch.complex(x, x.sin())
        z[part].real.mul_(x[0])
        z.imag[:2].cos_()
        return z.abs().sum()

    x = torch.tensor([0.5, -0.7, 0.3], dtype=F64)
    same(run(fh.grad(f), x), torch.func.grad(f)(x))
    same(run(fh.hessian(f), x), torch.func.hessian(f)(x))
    lanes = torch.stack([x, x + 1])
    same(run(fh.vmap(fh.grad(f)), lanes), torch.stack([torch.func.grad(f)(x) for x in lanes]))


@while_capturing
def test_an_operator_without_second_derivative(run):
    """It is missed where it is computed, not where a transform prepares it."""
    attention = lambda c: torch.nn.functional.scaled_dot_product_attention(c, c, c)
    x = torch.linspace(-1, 1, 12, dtype=F64).reshape(1, 1, 3, 4)
    loop = lambda x: fh.fori_loop(0, 2, lambda i, c: attention(c), x).square().sum()
    oracle = lambda x: attention(attention(x)).square().sum()
    same(run(fh.grad(loop), x), torch.func.grad(oracle)(x))
    with pytest.raises(fh.ArgumentTypeError, match=r"attention.* it has no reverse-mode derivative"):
        run(fh.grad(lambda x: fh.grad(loop)(x).sum()), x)


@every_mode
def test_distributions(run, monkeypatch):
    # torch.compile, which other tests call, turns validation off for good.
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)

    def log_probability(x):
        normal = torch.distributions.MultivariateNormal(x, torch.eye(2, dtype=F64))
        gamma = torch.distributions.Gamma(x.exp(), torch.ones(2, dtype=F64))
        return normal.log_prob(x.detach() + 1) + gamma.log_prob(x.exp()).sum()

    x = torch.tensor([0.5, -0.7], dtype=F64)
    loop = lambda x: fh.fori_loop(0, 2, lambda i, c: c + log_probability(c), x)
    oracle = lambda x: (x + log_probability(x)) + log_probability(x + log_probability(x))
    same(run(loop, x), oracle(x))
    same(gradients(run, loop, x), gradients(plain, oracle, x))
    with pytest.raises(ValueError, match="constraint"):
        torch.distributions.Gamma(-x.exp(), x.exp())


@every_mode
def test_detach_in_a_body(run):
    step = lambda c: c * c.detach() + torch.sin(c.detach())
    f = lambda c: fh.fori_loop(0, 3, lambda i, c: step(c), c)
    oracle = lambda c: step(step(step(c)))
    c = torch.tensor([0.5, -0.7], dtype=F64)
    same(gradients(run, f, c), gradients(plain, oracle, c))
    same(run(fh.jacfwd(f), c), torch.func.jacfwd(oracle)(c))
    same(run(fh.jacfwd(fh.jacrev(f)), c), torch.func.jacfwd(torch.func.jacrev(oracle))(c))


@every_mode
def test_autocast_in_a_body(run):
    w = torch.randn(4, 4)

    def step(c):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = c @ w
            assert y.dtype == torch.bfloat16
        return y.float() * 0.5

    f = lambda c: fh.fori_loop(0, 2, lambda i, c: step(c), c)
    oracle = lambda c: step(step(c))
    c = torch.randn(4, 4)
    same(run(f, c), oracle(c))
    same(gradients(run, f, c), gradients(plain, oracle, c))


@every_mode
def test_autocast_around(run):
    w = torch.randn(4, 4)
    f = lambda c: fh.scan(lambda c, _: ((c @ w).float(), c @ w), c, length=2)
    oracle = lambda c: (((c @ w).float() @ w).float(), torch.stack([c @ w, (c @ w).float() @ w]))
    c = torch.randn(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, expected = run(f, c), oracle(c)
        assert got[1].dtype == torch.bfloat16
        same(got, expected)
        loss = lambda f: lambda c: f(c)[0].sum()
        got = gradients(run, loss(f), c)
        same(got, gradients(plain, loss(oracle), c))
    same(run(f, c), oracle(c))


class ScaledGradient(torch.autograd.Function):
    """Its gradient is wrong on purpose: one can see which rule ran."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, k):
        return x * 2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.k = inputs[1]

    @staticmethod
    def backward(ctx, ct):
        (x,) = ctx.saved_tensors
        return ct * ctx.k * x, None


class OldStyle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, ct):
        (x,) = ctx.saved_tensors
        return ct * 10 * x


@every_mode
def test_autograd_function_in_a_body(run):
    f = lambda c: fh.fori_loop(0, 2, lambda i, c: ScaledGradient.apply(c, 5), c)
    oracle = lambda c: ScaledGradient.apply(ScaledGradient.apply(c, 5), 5)
    c = torch.tensor([0.5, -0.7], dtype=F64)
    same(run(f, c), c * 4)
    same(gradients(run, f, c), gradients(plain, oracle, c))
    loss = lambda f: lambda c: f(c).sum()
    same(run(fh.grad(loss(f)), c), torch.func.grad(loss(oracle))(c))
    same(run(fh.vmap(fh.grad(loss(f))), c[None]), torch.func.grad(loss(oracle))(c)[None])
    same(run(fh.jacrev(fh.jacrev(loss(f))), c), torch.func.jacrev(torch.func.jacrev(loss(oracle)))(c))


@every_mode
def test_old_style_autograd_function_in_a_body(run):
    f = lambda c: fh.cond(c.sum() < 100, OldStyle.apply, torch.neg, c)
    c = torch.tensor([0.5, -0.7], dtype=F64)
    same(run(f, c), c.sin())
    same(gradients(run, f, c), (10 * c,))


@every_mode
def test_transforms_in_a_body(run):
    w = torch.tensor([0.4, 0.8], dtype=F64)

    def step(c):
        slope = torch.func.grad(lambda v: (v**3 * w).sum())(c)
        _, t = torch.func.jvp(torch.sin, (c,), (w,))
        jac = fh.jacrev(lambda v: v * v.sum())(c)
        return 0.2 * (slope + t + jac @ w + torch.vmap(lambda a, b: a * b)(c, w))

    def oracle_step(c):
        jac = torch.eye(2, dtype=F64) * c.sum() + c[:, None]
        return 0.2 * (3 * c**2 * w + torch.cos(c) * w + jac @ w + c * w)

    f = lambda c: fh.fori_loop(0, 2, lambda i, c: step(c), c)
    oracle = lambda c: oracle_step(oracle_step(c))
    c = torch.tensor([0.5, -0.7], dtype=F64)
    same(run(f, c), oracle(c))
    same(gradients(run, f, c), gradients(plain, oracle, c))
    same(run(fh.hessian(lambda c: f(c).sum()), c), torch.func.hessian(lambda c: oracle(c).sum())(c))
    same(run(fh.vmap(f), c[None]), oracle(c)[None])


@every_mode
def test_backward_inside_a_body(run):
    """Plain autograd on values of the body itself."""

    def step(c):
        v = c.detach().requires_grad_()
        (slope,) = torch.autograd.grad((v**3).sum(), v)
        return c - 0.1 * slope

    c = torch.tensor([0.5, -0.7], dtype=F64)
    once = lambda c: c - 0.3 * c.detach() ** 2
    f = lambda c: fh.fori_loop(0, 2, lambda i, c: step(c), c)
    same(run(f, c), once(once(c)))


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_autograd_function_bound_before_the_import(when) -> None:
    """``f = MyFunction.apply`` keeps torch's own ``apply``; in a body its derivative is the custom one all the same.

    Or it is refused, from torch 2.14 on, where nothing can be put into it any more.
    """
    code = """
import torch

class Cube(torch.autograd.Function):
    generate_vmap_rule = True
    forward = staticmethod(lambda x: x**3)
    setup_context = staticmethod(lambda ctx, inputs, output: ctx.save_for_backward(*inputs))
    backward = staticmethod(lambda ctx, g: g * 7 * ctx.saved_tensors[0])

BIND

x = torch.tensor([1.0, 2.0])
with fh.eager_capture():
    for body in (cube, fh.vmap(cube)):
        loop = lambda v: fh.scan(lambda c, _: (body(c), None), v, None, 1)[0].sum()
        print(fh.grad(loop)(x).tolist())
        print(torch.autograd.grad(loop(y := x.clone().requires_grad_()), y)[0].tolist())
"""
    lines = ["cube = Cube.apply", "import functorch_hops as fh"]
    code = code.replace("BIND", "\n".join(lines if when == "before" else lines[::-1]))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    is_python = "apply" in vars(torch.autograd.function._SingleLevelFunction)  # and hooked
    if when == "before" and not is_python:
        assert "CaptureError: scan: Cube.apply was bound before functorch_hops was imported" in done.stderr
    else:
        assert done.stdout == "[7.0, 14.0]\n" * 4


# ---------------------------------------------------------------------------------------------------------------------
# what observes a body


@while_capturing
def test_modes_that_observe_operators_see_those_of_the_bodies(run):
    """A FLOP counter counts the products in a captured loop and in its backward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    w, x = torch.randn(4, 4, dtype=F64, requires_grad=True), torch.randn(4, dtype=F64)
    loss = lambda w: fh.scan(lambda c, _: ((w @ c[:, None])[:, 0], None), x, None, 3)[0].sum()
    with FlopCounterMode(display=False) as counter:
        run(loss, w).backward()
    assert counter.get_total_flops() == 3 * 3 * (2 * 4 * 4)  # one forward, two backward, in each of three steps


@every_mode
def test_a_deep_copy_of_a_configuration_with_tensors(run):
    """In lanes and in what is differentiated, too, where torch refuses ``requires_grad_()``."""
    configuration = {"scale": 2.0, "weight": torch.tensor([1.0, 3.0], dtype=torch.float64)}

    def f(x):
        own = copy.deepcopy(configuration)
        own["weight"] = own["weight"] * x
        own["scale"] += 1
        return own["weight"] * own["scale"] + configuration["weight"]

    x = torch.tensor([0.5, -1.0], dtype=torch.float64)
    same(run(fh.vmap(f), torch.stack([x, x + 1])), torch.stack([f(x), f(x + 1)]))
    same(run(fh.grad(lambda x: f(x).sum()), x), 3 * configuration["weight"])
