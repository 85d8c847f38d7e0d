"""torch's own tools around and inside the library's operations: autograd and its checkers, forward mode, torch.func,
hooks and parametrizations of modules.
"""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations
from torch.overrides import TorchFunctionMode

import functorch_hops as fh
from modes import captured, every_mode, gradients, plain, same

F64 = torch.float64
W = torch.tensor([[0.3, -0.5, 0.1], [0.2, 0.4, -0.3], [-0.1, 0.6, 0.2]], dtype=F64)
X = torch.tensor([0.4, -0.7, 0.9], dtype=F64)


def rnn(x):
    return fh.scan(lambda c, _: (torch.tanh(W @ c), c.sum()), x, length=3)


def rnn_oracle(x):
    ys = []
    for _ in range(3):
        ys.append(x.sum())
        x = torch.tanh(W @ x)
    return x, torch.stack(ys)


def growth(x):
    return fh.while_loop(lambda v: v.norm() < 5, lambda v: v * 1.5 + v.sin(), x)


def scalar(f):
    return lambda x: f(x)[1].prod() + f(x)[0].sum()


tf = torch.func
TRANSFORMS = {
    "grad": tf.grad,
    "hessian": tf.hessian,
    "jacfwd": tf.jacfwd,
    "jacrev": tf.jacrev,
    "vmap of grad": lambda f: lambda x: tf.vmap(tf.grad(f))(torch.stack([x, 2 * x])),
    "jvp": lambda f: lambda x: tf.jvp(f, (x,), (x,)),
    "vjp": lambda f: lambda x: tf.vjp(f, x)[1](torch.ones((), dtype=F64)),
    "jvp of grad": lambda f: lambda x: tf.jvp(tf.grad(f), (x,), (x,)),
    "jacfwd of jacfwd of jacrev": lambda f: tf.jacfwd(tf.jacfwd(tf.jacrev(f))),
}


@every_mode
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_of_torch_func(run, name):
    transform = TRANSFORMS[name]
    same(run(transform(scalar(rnn)), X), transform(scalar(rnn_oracle))(X))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_of_torch_func_around_jit(name):
    transform = TRANSFORMS[name]
    same(transform(fh.jit(scalar(rnn), backend="eager"))(X), transform(scalar(rnn_oracle))(X))


@every_mode
@pytest.mark.parametrize("f", [scalar(rnn), growth], ids=["scan", "while_loop"])
def test_gradcheck(run, f):
    x = X.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: run(f, x), (x,), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: run(f, x), (x,), check_fwd_over_rev=True)


@every_mode
@pytest.mark.parametrize("vectorize", [False, True])
def test_autograd_functional(run, vectorize):
    for name in ("jacobian", "hessian"):
        derive = getattr(torch.autograd.functional, name)
        same(derive(lambda x: run(scalar(rnn), x), X, vectorize=vectorize), derive(scalar(rnn_oracle), X))


@every_mode
def test_plain_forward_mode(run):
    """A body is captured and differentiated for the first time within the level."""
    scale = torch.tensor(1.5, dtype=F64)
    f = lambda x: fh.scan(lambda c, _: (torch.sin(c * scale - 0.25), c.sum()), x, length=2)
    with forward_ad.dual_level():
        out = run(scalar(f), forward_ad.make_dual(X, X))
        tangent = forward_ad.unpack_dual(out).tangent
    same(tangent, tf.jvp(scalar(f), (X,), (X,))[1])


def mixed(x):
    """Outputs of several dtypes, of which some depend on x, and residuals of a loop of unknown length."""
    loop = lambda s: (s[0] * 1.5 + torch.sin(s[1]), s[1] * s[0], s[2] + 1)
    a, b, n = fh.while_loop(lambda s: s[0].norm() < 5, loop, (x, torch.ones_like(x), 0))
    return fh.cond(x[0] > 0, lambda: (a * b, n, x > 0), lambda: (a + b, n * 2, x < 0))


@every_mode
def test_plain_forward_mode_with_plain_reverse_mode(run):
    """One over the other, in both orders."""
    f = lambda x: run(mixed, x)[0].sum()
    expected = tf.hessian(lambda x: mixed(x)[0].sum())(X) @ X
    x = X.clone().requires_grad_()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, X)
        (slope,) = torch.autograd.grad(f(dual), dual, create_graph=True)
        same(forward_ad.unpack_dual(slope).tangent, expected)
        tangent = forward_ad.unpack_dual(f(forward_ad.make_dual(x, X))).tangent
        same(torch.autograd.grad(tangent, x)[0], expected)


@every_mode
def test_backward(run):
    """Retained graphs, parts of the outputs, accumulation, graphs of gradients, and a graph that is gone."""
    x = X.clone().requires_grad_()
    _, ys = run(rnn, x)
    ys[1].backward(retain_graph=True)
    once = x.grad.clone()
    ys[1].backward()
    same(x.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        ys[0].backward()
    slopes = []
    for f in (lambda x: run(rnn, x), rnn_oracle):
        x = X.clone().requires_grad_()
        slope = torch.autograd.grad(f(x)[0][0], x, create_graph=True)[0]
        slopes.append((slope, torch.autograd.grad(slope.sum(), x)[0]))
    same(*slopes)


@every_mode
def test_modes_without_gradients(run):
    x, wanted = X.clone().requires_grad_(), tf.grad(scalar(rnn_oracle))(X)
    with torch.no_grad():
        out = run(scalar(rnn), x)
        assert not out.requires_grad
        same(run(fh.grad(scalar(rnn)), x), wanted)
    with torch.inference_mode():
        out = run(scalar(rnn), X)
        assert out.is_inference()
        same(run(fh.vmap(scalar(rnn)), torch.stack([X, X])), torch.stack([out, out]))
        same(run(fh.grad(scalar(rnn)), X), wanted)


@every_mode
def test_autograd_grad_in_a_body(run):
    """A body may differentiate by torch.autograd on leaves of its own."""

    def step(c, _):
        leaf = c.detach().requires_grad_()
        (slope,) = torch.autograd.grad((leaf**3).sum(), leaf)
        return c - 0.1 * slope, None

    expected = X
    for _ in range(2):
        expected = expected - 0.3 * expected**2
    same(run(lambda x: fh.scan(step, x, length=2)[0], X), expected)


@pytest.mark.parametrize("run", [plain, captured], ids=["plain", "captured"])
def test_modules_hooks_and_parametrizations(run):
    torch.manual_seed(0)
    layers = {
        "hook": nn.Linear(3, 3).double(),
        "weight norm": parametrizations.weight_norm(nn.Linear(3, 3).double()),
        "orthogonal": parametrizations.orthogonal(nn.Linear(3, 3).double()),
    }
    layers["hook"].register_forward_hook(lambda module, inputs, output: output * 2)
    calls = []
    layers["hook"].weight.register_post_accumulate_grad_hook(lambda p: calls.append(1))
    for layer in layers.values():
        twice = lambda x: fh.scan(lambda c, _: (torch.tanh(layer(c)), None), x, length=2)[0]
        expected = torch.tanh(layer(torch.tanh(layer(X))))
        same(run(twice, X), expected)
        gradients = torch.autograd.grad(expected.sum(), list(layer.parameters()))
        layer.zero_grad()
        run(twice, X).sum().backward()
        same(tuple(p.grad for p in layer.parameters()), gradients)
    assert len(calls) == 1


@pytest.mark.parametrize("mode", ["cat", "slice_scatter", "slice"])
def test_zero_tangents_of_other_shapes(mode):
    """Views of zero tangents in a capture: derivatives of derivatives of lanes whose parts go different ways."""

    def f(x):
        if mode == "cat":
            return (torch.cat([x[:1], x[1:3] * 2, x[3:]]) ** 2).sum()
        return (x.slice_scatter(x[1:3] * 2, 0, 1, 3) if mode == "slice_scatter" else x[:3] * x[1:]).square().sum()

    x = torch.linspace(-1, 1, 12, dtype=F64).reshape(3, 4)
    looped = lambda x: fh.scan(lambda c, _: (c + f(x), None), x.sum(), length=2)[0]
    for g in (f, looped):
        expected = tf.vmap(tf.hessian(lambda x: f(x) * (2 if g is looped else 1)))(x)
        for outer in (fh.jacfwd, fh.jacrev):
            for inner in (fh.jacfwd, fh.jacrev):
                same(fh.jit(fh.vmap(outer(inner(g))), backend="eager")(x), expected)


WEIGHT = torch.nn.Parameter(torch.tensor([0.5, -2.0, 1.5], dtype=F64))


@torch.no_grad()
def twice_without_gradient(x):
    return x * 2


@every_mode
@pytest.mark.parametrize(
    "f",
    [
        lambda x: (WEIGHT * 1, x * 1),
        lambda x: (x * (WEIGHT * 2).detach(), x.detach() * WEIGHT, x * WEIGHT, x > 0),
        lambda x: fh.cond(x.sum() > 0, lambda: x.detach() * 1, lambda: twice_without_gradient(WEIGHT)),
        lambda x: fh.scan(lambda c, _: (c * x, c.detach() * WEIGHT), WEIGHT, length=2),
    ],
    ids=["a parameter beside", "a parameter without gradient", "neither", "a loop"],
)
def test_plain_forward_mode_with_a_parameter(run, f):
    """A parameter has gradients and no tangent, the argument has a tangent: each output has what reaches it."""

    def tangents(call):
        with forward_ad.dual_level():
            outs = call(forward_ad.make_dual(X, X * 2))
            outs = outs if isinstance(outs, tuple) else (outs,)
            found = [forward_ad.unpack_dual(o) for o in outs]
        return [torch.zeros_like(p) if t is None else t for p, t in found]

    def slopes(call):
        outs = call(X)
        total = sum(o.sum() for o in (outs if isinstance(outs, tuple) else (outs,)) if o.requires_grad)
        return torch.autograd.grad(total, WEIGHT) if isinstance(total, torch.Tensor) else None

    same([t.detach() for t in tangents(lambda x: run(f, x))], [t.detach() for t in tangents(f)])
    same(slopes(lambda x: run(f, x)), slopes(f))


# ---------------------------------------------------------------------------------------------------------------------
# anomaly mode, torch's checkpoint, torch's own control flow, objects that define what functions do


@every_mode
@pytest.mark.filterwarnings("ignore:Error detected in")
def test_anomaly_mode(run):
    f = lambda x: fh.scan(lambda c, _: (c.sin() * c, None), x, length=3)[0].sum()
    oracle = lambda x: functools.reduce(lambda c, _: c.sin() * c, range(3), x).sum()
    x = torch.tensor([0.5, -0.7], dtype=F64)
    with torch.autograd.set_detect_anomaly(True):
        same(run(fh.grad(f), x), torch.func.grad(oracle)(x))
        same(run(fh.hessian(f), x), torch.func.hessian(oracle)(x))
        same(gradients(run, f, x), gradients(plain, oracle, x))
        with pytest.raises(RuntimeError, match="returned nan values"):
            gradients(run, lambda x: fh.scan(lambda c, _: ((c * 0).sqrt() * 0 + c, None), x, length=2)[0], x)


def test_torch_refuses_its_transforms_in_its_own_checkpoint() -> None:
    slope = lambda grad: lambda x: grad(lambda x: x.sin().prod())(x)
    expected = slope(fh.grad)(x := torch.tensor([0.3, 0.5], dtype=torch.float64, requires_grad=True))
    for grad in (torch.func.grad, fh.grad):
        with pytest.raises(RuntimeError, match="don't yet support saved tensor hooks"):
            torch.utils.checkpoint.checkpoint(slope(grad), x, use_reentrant=False)
    inside = fh.jit(slope(fh.grad), backend="eager")
    around = lambda x: torch.utils.checkpoint.checkpoint(slope(fh.grad), x, use_reentrant=False)
    runs = [
        lambda x: torch.utils.checkpoint.checkpoint(inside, x, use_reentrant=False),
        fh.jit(around, backend="eager"),
        torch.compile(around, backend="aot_eager", fullgraph=True),
        fh.checkpoint(slope(fh.grad)),
    ]
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    for run in runs:
        torch.testing.assert_close(torch.autograd.grad(run(x).sum(), x)[0], gradient)


@every_mode
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_torchs_checkpoint(run, use_reentrant):
    """It is a plain call under a transform and in a capture."""
    step = lambda c: torch.utils.checkpoint.checkpoint(lambda c: c.sin() * c, c, use_reentrant=use_reentrant)
    inside = lambda x: fh.scan(lambda c, _: (step(c), None), x, length=2)[0].sum()
    around = lambda x: torch.utils.checkpoint.checkpoint(
        lambda x: fh.scan(lambda c, _: (c.sin() * c, None), x, length=2)[0].sum(), x, use_reentrant=use_reentrant
    )
    oracle = lambda x: (x.sin() * x).sin() @ (x.sin() * x)
    x = torch.tensor([0.5, -0.7], dtype=F64)
    for f in (inside, around):
        same(run(f, x), oracle(x))
        same(run(fh.grad(f), x), torch.func.grad(oracle)(x))
        same(run(lambda x, f=f: fh.jvp(f, (x,), (x,)), x), torch.func.jvp(oracle, (x,), (x,)))
        if run is not captured:  # which torch runs again in its backward pass, outside of the mode
            y = x.clone().requires_grad_()
            run(f, y).backward()
            same(y.grad, torch.func.grad(oracle)(x))


@every_mode
def test_products_in_another_dtype(run):
    a = torch.tensor([[1, 2], [3, 100]], dtype=torch.int8)
    product = lambda: torch.ops.higher_order.out_dtype(torch.ops.aten.mm.default, torch.int32, a, a)
    f = lambda x: fh.cond(x.sum() > -99, lambda x: x * product(), lambda x: x * 0, x)
    x, exact = torch.eye(2, dtype=F64), (a.long() @ a.long()).double()
    same(run(f, x), x * exact)
    if run is not plain:  # torch's operator knows no transform
        same(run(fh.grad(lambda x: f(x).sum()), x), exact)
        same(run(fh.vmap(f), x[None]), (x * exact)[None])


class Quantity:
    """A tensor with a unit."""

    def __init__(self, value, unit):
        self.value, self.unit = value, unit

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        values = [a.value if isinstance(a, cls) else a for a in args]
        return cls(func(*values, **(kwargs or {})), f"{func.__name__}")


@every_mode
def test_objects_that_define_what_functions_do(run):
    q, x = Quantity(torch.tensor([0.5, -0.7], dtype=F64), "m"), torch.tensor([1.0, 2.0], dtype=F64)
    f = lambda x: fh.scan(lambda c, _: (torch.add(torch.sin(q), c).value, None), x, length=2)[0]
    same(run(f, x), x + 2 * q.value.sin())
    same(run(fh.grad(lambda x: (torch.mul(q, x).value * x).sum()), x), 2 * q.value * x)
    same(run(lambda q: torch.sin(q).value, q), q.value.sin())
    same(run(lambda x: torch.where(x > 1, x, q).value, x), torch.tensor([0.5, 2.0], dtype=F64))


class Scaled(TorchFunctionMode):
    """What is watched is what the mode does with a call."""

    def __init__(self, scale, functions=(torch.sin, torch.Tensor.sin)):
        self.scale, self.functions = scale, functions

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result * self.scale if func in self.functions else result


def waves(x):
    def step(c, v):
        return c + v.sin() * X.sum(), torch.sin(c)

    c, ys = fh.scan(step, x[0], x)
    return fh.cond(c > 1e3, lambda: ys, lambda: ys.sin() * 2)


def test_modes_of_torch_functions_around_captured_ones():
    """As in eager, a mode sees what the function calls, once; what it does is watched."""
    run, mode, other = fh.jit(waves, backend="eager"), Scaled(3.0), Scaled(0.5)

    def slope(f):
        x = X.clone().requires_grad_()
        return torch.autograd.grad(f(x).sum(), x)[0]

    for scale in (3.0, 3.0, -2.0):
        mode.scale = scale
        with mode:
            same(run(X), waves(X))
            same(slope(run), slope(waves))
            same(fh.vmap(run)(torch.stack([X, -X]))[1], waves(-X))
            with other:
                same(run(X), waves(X))
        same(run(X), waves(X))
    assert run.cache_info().misses == 5  # without a mode; with one and with two, at two scales


@dataclasses.dataclass
class ScaledByValue(TorchFunctionMode):
    """Equal to others, so it has no hash."""

    scale: float

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result * self.scale if func is torch.sin else result


@pytest.mark.parametrize("kind", [Scaled, ScaledByValue])
def test_equal_modes_of_torch_functions_made_anew(kind):
    """What they hold counts, not which object it is: a ``with`` in a training loop makes a new one in each step."""
    run = fh.jit(waves, backend="eager")
    for scale in (3.0, 3.0, -2.0, 3.0, -2.0):
        with kind(scale):
            same(run(X), waves(X))
    assert run.cache_info().misses == 2


class OnDevice(TorchFunctionMode):
    """Doubles what is made where somebody said so."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result * 2 if func is torch.ones and "device" in (kwargs or {}) else result


def test_modes_of_torch_functions_and_default_devices_in_their_order():
    """What is inside sees a call first, and the default device gives it one; the order is a part of the signature."""
    run = fh.jit(lambda x: x + torch.ones(3, dtype=F64), backend="eager")
    for _ in range(2):
        with OnDevice(), torch.device("cpu"):
            same(run(X), X + 2)
        with torch.device("cpu"), OnDevice():
            same(run(X), X + 1)
    assert run.cache_info().misses == 2


def test_modes_of_torch_functions_inside_captured_ones():
    def inside(x):
        with Scaled(3.0):
            ys = waves(x)
        return ys + waves(x)

    with Scaled(3.0):
        expected = waves(X)
    expected = expected + waves(X)
    same(fh.jit(inside, backend="eager")(X), expected)
    same(fh.make_graph(inside)(X)(X), expected)
    with fh.eager_capture():
        same(inside(X), expected)


def test_graphs_are_not_what_a_mode_of_torch_functions_sees():
    """It saw their function: the operators of the graph are not to be changed once more."""
    operators = Scaled(3.0, (torch.Tensor.sin, torch.ops.aten.sin.default))
    with operators:
        same(fh.jit(lambda x: x.sin(), backend="eager")(X), X.sin())


def test_hooks_on_saved_tensors_inside_captured_functions_are_named():
    """Around the call they are called with what autograd saves of it."""

    def inside(x):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t * 2):
            return x.exp() * x

    in_a_body = lambda x: fh.scan(lambda c, _: (inside(c), None), x, length=2)[0]
    for f in inside, in_a_body:
        with pytest.warns(RuntimeWarning, match=r"(?s)saved_tensors_hooks.*are not called.*fh.checkpoint"):
            fh.jit(f, backend="eager")(X)
    with torch.autograd.graph.save_on_cpu():
        same(fh.jit(waves, backend="eager")(X), waves(X))
