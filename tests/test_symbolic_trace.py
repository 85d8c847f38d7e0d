"""``torch.fx.symbolic_trace``: a call of the library is one node, whose functions are graphs that FX made.

The oracle is the model itself, untraced: the same values, and the same gradients under the same names.
"""

import copy
import gc
import io
from typing import NamedTuple

import pytest
import torch
from torch import fx, nn

import functorch_hops as fh

XS = torch.linspace(-1, 2, 12).reshape(4, 3)


class State(NamedTuple):
    h: torch.Tensor
    count: torch.Tensor


class Model(nn.Module):
    """Applies a function to itself and the input."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.linear = nn.GRUCell(3, 3), nn.Linear(3, 3)
        self.weight = nn.Parameter(torch.tensor([0.5, 1.0, -0.5]))
        self.register_buffer("shift", torch.tensor([0.1, 0.2, 0.3]))
        self.function = function

    def forward(self, xs):
        return self.function(self, xs)


@fh.custom_vjp
def doubled(x):
    return x.sin()


doubled.defvjp(lambda x: (x.sin(), x), lambda x, ct: (2 * ct * x.cos(),))


@fh.custom_jvp
def tripled(x):
    return x.sin()


tripled.defjvp(lambda primals, tangents: (primals[0].sin(), 3 * tangents[0] * primals[0].cos()))


@fh.jit(backend="eager")
def jitted(x, power):
    return (x**power).sin()


def scan(m, xs):
    y = xs.tanh().sum(0)

    def step(carry, x):
        h = m.cell(x[None], carry.h[None])[0] * m.weight + y + m.shift
        return State(h, carry.count + 1), {"h": h, "two": h * 2}

    state, ys = fh.scan(step, State(xs[0], 0), xs, reverse=True)
    return state.h * state.count + ys["two"].sum(0)


def cond_in_scan_in_while(m, xs):
    def branch(h, x):
        return fh.cond(h.sum() > 0, lambda a: m.linear(a) * x, lambda a: a - m.weight, h)

    def step(h):
        return 2 * h.abs() + 1 + fh.scan(lambda c, x: (branch(c, x), None), h, xs)[0].square()

    return fh.while_loop(lambda h: h.sum() < 50, step, xs[0])


def without_a_traced_argument(m, xs):
    return fh.scan(lambda c, x: (m.linear(c) + x, None), torch.zeros(3), torch.ones(4, 3))[0] + xs.sum(0)


def layers(m, xs):
    def step(carry, x):
        news = []
        for layer, h in zip([m.linear, m.linear, torch.sin], carry, strict=True):
            x = layer(x + h)
            news.append(x)
        return news, x

    return fh.scan(step, [xs[0], xs[1], xs[2]], xs)[1].sum(0)


def solved(m, xs):
    def solve(f, x):
        return fh.fori_loop(0, 30, lambda _, x: x - 0.3 * f(x), x)

    def tangent_solve(g, b):
        return b / g(torch.ones_like(b))

    return fh.custom_root(lambda x: x + 0.1 * x**3 - m.weight, xs[0], solve, tangent_solve)


def linearly_solved(m, xs):
    def solve(matvec, b):
        return b / matvec(torch.ones_like(b))

    return fh.custom_linear_solve(lambda x: x * (1 + m.weight.square()), xs[0], solve, symmetric=True)


def pulled(m, xs):
    out, pull = fh.vjp(m.linear, xs[0])
    (ct,) = pull(out)
    return ct + fh.linearize(m.linear, xs[0])[1](xs[1])


PROGRAMS = {
    "scan": scan,
    "cond in scan in while": cond_in_scan_in_while,
    "without a traced argument": without_a_traced_argument,
    "layers": layers,
    "switch": lambda m, xs: fh.switch(xs.sum().int(), [torch.sin, m.linear, lambda x: x * m.weight], xs[0]),
    "fori_loop": lambda m, xs: fh.fori_loop(0, 3, lambda i, h: m.linear(h) * i + xs[1], xs[0]),
    "map": lambda m, xs: fh.map(lambda t: t["x"].sin() + m.weight, {"x": xs}).sum(0),
    "associative_scan": lambda m, xs: fh.associative_scan(lambda a, b: a * b + m.weight.sum() * 0, xs)[-1],
    "custom_root": solved,
    "custom_linear_solve": linearly_solved,
    "jvp": lambda m, xs: fh.jvp(lambda x: m.linear(x).sin(), (xs[0],), (xs[1],))[1],
    "vjp, linearize": pulled,
    "vmap of grad": lambda m, xs: fh.vmap(fh.grad(lambda x: m.linear(x).sin().sum()))(xs).sum(0),
    "value_and_grad": lambda m, xs: fh.value_and_grad(lambda x, n: (m.linear(x) ** n).sum())(xs[0], 3)[1],
    "jacfwd": lambda m, xs: fh.jacfwd(lambda x: m.linear(x).sin())(xs[0]).sum(0),
    "jacrev": lambda m, xs: fh.jacrev(lambda x: m.linear(x).sin())(xs[0]).sum(0),
    "hessian": lambda m, xs: fh.hessian(lambda x: m.linear(x).sin().sum())(xs[0]).sum(0),
    "checkpoint": lambda m, xs: fh.checkpoint(
        lambda x, scale: m.linear(x).sin() * scale, policy=fh.checkpoint_policies.save_matmuls
    )(xs[0], scale=m.weight),
    "custom_vjp": lambda m, xs: doubled(xs[0] * m.weight),
    "custom_jvp": lambda m, xs: tripled(xs[0] * m.weight),
    "jit": lambda m, xs: jitted(xs[0] * m.weight, power=2),
    "jit of a closure": lambda m, xs: fh.jit(lambda x: m.linear(x) * xs[1], backend="eager")(xs[0]),
}


def value_and_gradients(module, xs):
    module.zero_grad()
    xs = xs.clone().requires_grad_()
    value = module(xs)
    value.sum().backward()
    gradients = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return value.detach(), xs.grad, gradients


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_traced_model_is_the_model(name):
    model = Model(PROGRAMS[name])
    traced = fx.symbolic_trace(model)
    traced.graph.lint()
    expected, (value, of_xs, gradients) = value_and_gradients(model, XS), value_and_gradients(traced, XS)
    torch.testing.assert_close(value, expected[0])
    torch.testing.assert_close(of_xs, expected[1])
    for again in (fx.symbolic_trace(traced), copy.deepcopy(traced)):
        torch.testing.assert_close(value_and_gradients(again, XS), (value, of_xs, gradients))
    used = {name: gradient for name, gradient in expected[2].items() if name in dict(traced.named_parameters())}
    torch.testing.assert_close(gradients, used)
    assert all(not gradient.any() for name, gradient in expected[2].items() if name not in used)
    torch.testing.assert_close(traced(XS - 0.5), model(XS - 0.5))


def test_every_operation_is_traced():
    """Those of the table, besides the sharded ones, which need a process group."""
    called = set()
    for function in PROGRAMS.values():
        for module in fx.symbolic_trace(Model(function)).modules():
            if isinstance(module, fx.GraphModule):
                called |= {getattr(n.target, "__name__", n.target) for n in module.graph.nodes}
    operations = {"associative_scan", "checkpoint", "cond", "custom_linear_solve", "custom_root", "fori_loop", "grad"}
    operations |= {"hessian", "jacfwd", "jacrev", "jvp", "linearize", "map", "scan", "switch", "value_and_grad", "vjp"}
    assert operations | {"vmap", "while_loop"} <= called


def test_the_code_of_a_traced_model():
    def forward(m, xs):
        y = xs.tanh()
        return fh.scan(lambda c, x: (m.linear(c + y[0]), x), xs[0], xs)[0]

    traced = fx.symbolic_trace(Model(forward))
    code = [line.partition(";")[0].strip() for line in traced.code.strip().splitlines()]
    assert code == [
        "def forward(self, xs):",
        "tanh = xs.tanh()",
        "getitem = xs[0]",
        "linear_1 = self.linear",
        "scan_f_0 = self.scan_f_0",
        "partial = functools_partial(scan_f_0, tanh, linear_1)",
        "scan = functorch_hops_ops_scan_api_scan(partial, getitem, xs)",
        "getitem_2 = scan[0]",
        "return getitem_2",
    ]
    step = [line.partition(";")[0].strip() for line in traced.scan_f_0.code.strip().splitlines()]
    assert step == [
        "def forward(self, tanh, linear_1, c, x):",
        "getitem = tanh[0]",
        "add = c + getitem",
        "call = linear_1.__call__(add)",
        "return (call, x)",
    ]


def test_a_traced_model_has_the_state_of_the_model_and_leaves_it_as_it_was():
    model = Model(scan)
    modules, attributes = list(model.modules()), set(model.__dict__)
    traced = fx.symbolic_trace(model)
    assert list(model.modules()) == modules
    assert all(traced.get_parameter(name) is model.get_parameter(name) for name, _ in traced.named_parameters())
    assert set(traced.state_dict()) == {*(f"cell.{name}" for name in model.cell.state_dict()), "weight", "shift"}
    del traced
    gc.collect()
    assert set(model.__dict__) == attributes


def test_a_traced_sequential():
    """It calls its submodules one by one, among which a function of a loop must not be."""
    row = nn.Sequential(nn.Linear(3, 3), Model(layers))
    torch.testing.assert_close(fx.symbolic_trace(row)(XS), row(XS))


def test_a_traced_model_is_saved_and_loaded():
    traced = fx.symbolic_trace(Model(layers))
    file = io.BytesIO()
    torch.save(traced, file)
    file.seek(0)
    torch.testing.assert_close(torch.load(file, weights_only=False)(XS), traced(XS))


def test_a_jitted_module_is_a_leaf_as_those_of_torch_are():
    model = Model(lambda m, xs: m.net(xs) + fh.scan(lambda c, x: (m.net(c), None), xs, length=2)[0])
    model.net = fh.jit(nn.Linear(3, 3), backend="eager")
    traced = fx.symbolic_trace(model)
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["net"]
    torch.testing.assert_close(value_and_gradients(traced, XS), value_and_gradients(model, XS))
    assert model.net.cache_info().currsize > 0


def test_a_jitted_function_keeps_its_cache():
    traced = fx.symbolic_trace(Model(PROGRAMS["jit"]))
    traced(XS), traced(XS + 1)
    assert traced.jitted_0.function.cache_info()[:2] == (1, 1)


def test_a_subclass_of_the_tracer_decides_what_a_leaf_is():
    class Through(fx.Tracer):
        def is_leaf_module(self, m, module_qualified_name):
            return False

    model = Model(lambda m, xs: fh.scan(lambda c, x: (m.linear(c), None), xs[0], xs)[0])
    traced = fx.GraphModule(model, Through().trace(model))
    assert "linear" in {getattr(n.target, "__name__", None) for n in traced.scan_f_0.graph.nodes}
    torch.testing.assert_close(value_and_gradients(traced, XS), value_and_gradients(model, XS))


def test_a_traced_model_is_compiled_exported_and_jitted():
    model = Model(cond_in_scan_in_while)
    traced = fx.symbolic_trace(model)
    torch.testing.assert_close(torch.compile(traced, backend="eager", fullgraph=True)(XS), model(XS))
    torch.testing.assert_close(torch.export.export(traced, (XS,)).module()(XS), model(XS))
    torch.testing.assert_close(fh.jit(traced, backend="eager")(XS), model(XS))


def test_what_is_printed_and_called_back_is_printed_and_called_back_by_the_traced_model(capsys):
    def forward(m, xs):
        def step(c, x):
            fh.debug.print("c = {}", c.sum())
            return fh.pure_callback(lambda a: a + 1, fh.TensorSpec((3,), torch.float32), c), None

        return fh.scan(step, xs[0] * 0, xs[:2])[0]

    model = Model(forward)
    traced = fx.symbolic_trace(model)
    assert capsys.readouterr().out == ""
    torch.testing.assert_close(traced(XS), model(XS))
    assert capsys.readouterr().out == "c = 0.0\nc = 3.0\n" * 2


def test_python_that_asks_for_values_is_refused():
    model = Model(lambda m, xs: fh.scan(lambda c, x: (c if c.sum() > 0 else x, None), xs[0], xs)[0])
    with pytest.raises(fh.CaptureError, match=r"scan: torch\.fx can't trace a function(.|\n)*control flow"):
        fx.symbolic_trace(model)


def test_torch_fx_loses_settings():
    """Without an operation of this library, too."""

    def forward(m, xs):
        with torch.no_grad():
            y = m.linear(xs)
        with torch.autocast("cpu", torch.bfloat16):
            return y, m.linear(xs)

    model = Model(forward)
    found = [(y.requires_grad, z.dtype) for y, z in (model(XS), fx.symbolic_trace(model)(XS))]
    assert found == [(False, torch.bfloat16), (True, torch.float32)]


def test_a_value_that_leaves_its_function_is_refused():
    def forward(m, xs):
        kept = []
        fh.scan(lambda c, x: (c + x, kept.append(x)), xs[0], xs)
        return fh.map(lambda x: x + kept[0], xs)

    with pytest.raises(fh.LeakedTensorError, match=r"map: a value of another function"):
        fx.symbolic_trace(Model(forward))


def test_a_rule_that_closes_over_a_traced_value_is_refused():
    def forward(m, xs):
        scaled = fh.custom_vjp(lambda x: x * xs[0])
        scaled.defvjp(lambda x: (x * xs[0], None), lambda _, ct: (ct * xs[0],))
        return scaled(xs[1])

    with pytest.raises(fh.CaptureError, match=r"custom_vjp: .* closes over a value that it traces"):
        fx.symbolic_trace(Model(forward))
