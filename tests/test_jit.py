"""jit: captured once per signature, never stale, and part of every transform."""

import collections
import copy
import dataclasses
import functools
import pickle
import warnings
import weakref

import pytest
import torch
from torch import nn

import functorch_hops as fh
from leftovers import are_gone

SCALE = 2.0
WEIGHT = torch.tensor([1.0, 2.0, 3.0])


def jit(func, **options):
    return fh.jit(func, backend="eager", **options)


def calls(jitted):
    info = jitted.cache_info()
    return info.hits, info.misses


@pytest.mark.filterwarnings("ignore:jit. f does what no graph does")
def test_the_function_is_called_once_per_signature():
    seen = []

    def f(x, n):
        seen.append(n)
        return x * n

    g = jit(f)
    for _ in range(3):
        assert torch.equal(g(torch.ones(2), 2), torch.full((2,), 2.0))
    g(torch.ones(3), 2)
    g(torch.ones(2), 3)
    assert seen == [2, 2, 3]
    assert calls(g) == (2, 3)


def test_a_float_is_traced_and_promotes_as_in_python():
    g = jit(lambda x, lr: x * lr + (1 - lr))
    for dtype in (torch.float32, torch.float64, torch.int64):
        x = torch.ones(2, dtype=dtype)
        for lr in (0.1, 0.7):
            got, expected = g(x, lr), x * lr + (1 - lr)
            assert got.dtype == expected.dtype
            assert torch.equal(got, expected)
    assert calls(g) == (3, 3)


def test_a_float_that_python_branches_on_becomes_static():
    g = jit(lambda x, lr: x * lr if lr > 0.5 else x)
    x = torch.ones(2)
    assert torch.equal(g(x, 0.7), x * 0.7)
    assert torch.equal(g(x, 0.2), x)
    assert torch.equal(g(x, 0.7), x * 0.7)


def test_a_float_reaches_nested_bodies():
    g = jit(lambda x, lr: fh.scan(lambda c, a: (c * (1 - lr) + a, None), x, torch.ones(3, 2))[0])
    for lr in (0.5, 0.25):
        expected = torch.zeros(2)
        for _ in range(3):
            expected = expected * (1 - lr) + 1
        assert torch.allclose(g(torch.zeros(2), lr), expected)
    assert calls(g) == (1, 1)


def test_a_rebound_global_is_noticed(monkeypatch):
    g = jit(lambda x: x * SCALE + WEIGHT)
    x = torch.ones(3)
    assert torch.equal(g(x), x * 2 + WEIGHT)
    monkeypatch.setitem(globals(), "SCALE", 5.0)
    assert torch.equal(g(x), x * 5 + WEIGHT)
    monkeypatch.setitem(globals(), "WEIGHT", torch.zeros(3))
    assert torch.equal(g(x), x * 5)
    assert g.cache_info().misses == 2  # a tensor is an input: rebinding it is no new capture


def test_a_rebound_closure_is_noticed():
    factor, weight = 2, torch.ones(3)

    def f(x):
        return x * factor + weight

    g, x = jit(f), torch.ones(3)
    assert torch.equal(g(x), x * 2 + 1)
    factor = 3
    assert torch.equal(g(x), x * 3 + 1)
    weight = torch.full((3,), 4.0)
    assert torch.equal(g(x), x * 3 + 4)
    weight = torch.zeros(1)
    assert torch.equal(g(x), x * 3)


def test_a_module_is_never_stale():
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).eval()
    g, x = jit(module), torch.ones(3)
    assert torch.equal(g(x), module(x))
    with torch.no_grad():
        module[0].weight.mul_(2)
    assert torch.equal(g(x), module(x))
    module[0].bias = nn.Parameter(torch.zeros(3))
    assert torch.equal(g(x), module(x))
    assert g.cache_info().misses == 1
    module.train()
    torch.manual_seed(0)
    got = g(x)
    torch.manual_seed(0)
    assert torch.equal(got, module(x))
    assert g.cache_info().misses == 2


def test_backward_reaches_the_parameters_of_a_module():
    module = nn.Linear(3, 2)
    x = torch.randn(4, 3)
    module(x).square().sum().backward()
    expected = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    jit(module)(x).square().sum().backward()
    for p, grad in zip(module.parameters(), expected, strict=True):
        assert torch.allclose(p.grad, grad)


def test_a_module_may_be_an_argument():
    module, x = nn.Linear(3, 2), torch.ones(3)
    g = jit(lambda m, x: m(x))
    assert torch.equal(g(module, x), module(x))
    module.weight = nn.Parameter(torch.ones(2, 3))
    assert torch.equal(g(module, x), module(x))
    assert g.cache_info().misses == 1


def test_ambient_settings_belong_to_the_signature():
    weight = torch.randn(2, 2, requires_grad=True)
    g, x = jit(lambda x: x @ weight + torch.zeros(2)), torch.randn(2)
    assert g(x).requires_grad
    with torch.no_grad():
        assert not g(x).requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(g(x), (x @ weight + torch.zeros(2)))
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        assert g(x).dtype == torch.float64
    finally:
        torch.set_default_dtype(default)
    assert g(x).dtype == torch.float32


def test_the_choice_of_kernels_belongs_to_the_signature():
    x = torch.randn(1, 1, 3, 4)
    g = jit(lambda x: nn.functional.scaled_dot_product_attention(x, x, x))
    expected = g(x)
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        assert torch.allclose(g(x), expected, atol=1e-6)
        assert "softmax" in g.lower(x).as_text()
    assert torch.equal(g(x), expected)
    assert g.cache_info().misses == 2


@pytest.mark.parametrize(
    "transform", ["grad(jit)", "jit(grad)", "vmap(jit)", "jit(vmap)", "hessian(jit)", "jit(hessian)"]
)
def test_transforms_of_jit_and_jit_of_transforms(transform):
    def loss(x):
        return fh.scan(lambda c, a: ((c * a).sin() + c, None), x, WEIGHT[:, None].expand(3, 2))[0].sum()

    x, xs = torch.tensor([0.3, -0.2]), torch.randn(4, 2)
    outer, inner = transform.rstrip(")").split("(")
    name = outer if inner == "jit" else inner
    change = {"grad": fh.grad, "vmap": fh.vmap, "hessian": fh.hessian}[name]
    argument = xs if name == "vmap" else x
    compiled = change(jit(loss)) if inner == "jit" else jit(change(loss))
    assert torch.allclose(compiled(argument), change(loss)(argument), atol=1e-6)


def test_a_repeated_capture_warns_and_says_why():
    g = jit(lambda x, n: x * n)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for n in range(9):
            g(torch.ones(2), n)
    (warning,) = caught
    assert "captured 9 times" in str(warning.message)
    assert "from (float32[2]@cpu, 7) to (float32[2]@cpu, 8)" in str(warning.message)
    assert warning.filename == __file__


def test_many_batch_sizes_warn_and_say_what_to_do():
    """A vmap outside is compiled for each of its sizes; inside of a dynamic jit it is not."""
    f = lambda x: (x * 2).sum()
    outside, inside = fh.vmap(fh.grad(jit(f))), fh.jit(fh.vmap(fh.grad(f)), dynamic=True, backend="eager")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for n in [*range(2, 11), 3, 4]:
            xs = torch.ones(n, 3)
            assert torch.equal(outside(xs), 2 * xs)
            assert torch.equal(inside(xs), 2 * xs)
    (warning,) = caught
    assert "compiled for 9 batch sizes of the vmap around it, last 10" in str(warning.message)
    assert "jit(vmap(f), dynamic=True)" in str(warning.message)
    assert inside.cache_info().misses == 1


def test_static_arguments():
    g = jit(lambda x, mode: x * 2 if mode == "double" else x, static_argnames="mode")
    x = torch.ones(2)
    assert torch.equal(g(x, mode="double"), x * 2)
    assert torch.equal(g(x, mode="same"), x)
    h = jit(lambda sizes, x: x.reshape(*sizes), static_argnums=0)
    assert h((1, 2), x).shape == (1, 2)
    with pytest.raises(fh.ArgumentTypeError, match="not hashable"):
        h([1, 2], x)


@pytest.mark.parametrize("wrap", [lambda n: n, lambda n: (n, "a"), lambda n: frozenset([n])])
@pytest.mark.parametrize("options", [{"static_argnums": 1}, {"static_argnames": "n"}, {}])
def test_equal_static_values_of_other_types_are_other_values(wrap, options):
    f = jit(lambda x, n: x if repr(n) == "" else repr(n), **options)
    numbers = [True, 1, False, 0] if not options else [True, 1, 1.0, False, 0, 0.0, -0.0]
    for _ in range(2):
        assert [f(torch.ones(2), wrap(n)) for n in numbers] == [repr(wrap(n)) for n in numbers]
    assert f.cache_info().misses == len(numbers)


def test_equal_objects_may_hold_other_values():
    config = dataclasses.make_dataclass("Config", ["n"], frozen=True)
    pair = collections.namedtuple("Pair", "n")
    for make, options in ((config, {"static_argnums": 1}), (pair, {"static_argnums": 1})):
        f = jit(lambda x, c: repr(c.n), **options)
        for _ in range(2):
            assert [f(torch.ones(2), make(n)) for n in (True, 1, 1.0)] == ["True", "1", "1.0"]
        assert f.cache_info()[:2] == (3, 3)


def test_a_static_argument_may_be_passed_either_way():
    def scaled(x, n):
        assert type(n) is float
        return x * n

    x = torch.ones(2)
    for f in (jit(scaled, static_argnums=1), jit(scaled, static_argnames="n")):
        torch.testing.assert_close(f(x, 2.0), 2 * x)
        torch.testing.assert_close(f(x, n=3.0), 3 * x)


def test_a_method_is_compiled_per_instance():
    class Model:
        def __init__(self, k):
            self.k = k

        def __call__(self, x):
            return x * self.k

    first, second = Model(2), Model(3)
    g, h = jit(first), jit(second)
    assert g(torch.ones(())) == 2
    assert h(torch.ones(())) == 3
    first.k = 7
    assert g(torch.ones(())) == 7


class Scaled:
    """Its instances are all equal, and have compiled methods."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, k):
        self.k = k

    def __eq__(self, other):
        return True

    @functools.partial(jit, static_argnums=(0, 2))
    def times(self, x, mode="once"):
        return x * self.k if mode == "once" else x * self.k * self.k

    linear = jit(torch.nn.Linear(2, 3))


def test_methods_belong_to_one_object():
    x, first, second = torch.ones(()), Scaled(2.0), Scaled(torch.tensor(3.0))
    assert (first.times(x), second.times(x)) == (2, 3)
    with fh.log_captures(quiet=True) as events:
        assert (first.times(x, "twice"), second.times(x, "twice")) == (4, 9)
    assert any("is new: a method" in reason for event in events for reason in event.reasons)
    first.times(x)
    assert first.times.cache_info() == (1, 2, 128, 2)
    assert first.linear(torch.ones(2)).shape == (3,)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "deepcopy", "pickle"]
)
def test_copies_of_objects_have_methods_of_their_own(copied):
    x, model = torch.ones(()), Scaled(torch.tensor(2.0))
    model.times(x)
    other = copied(model)
    other.k = torch.tensor(5.0)
    assert (model.times(x), other.times(x)) == (2, 5)


def test_compiled_methods_do_not_keep_their_object_alive():
    model = Scaled(torch.tensor(2.0))
    model.times(torch.ones(()))
    alive = weakref.ref(model)
    del model
    assert are_gone(alive)


def test_methods_need_a_place_to_be_kept():
    class Slotted:
        __slots__ = ("k",)

        @jit
        def times(self, x):
            return x * self.k

    with pytest.raises(fh.ArgumentTypeError, match="times is a method of an object that can't keep"):
        Slotted().times(torch.ones(()))


def test_copies_of_a_jitted_function_are_compiled_anew():
    linear = jit(torch.nn.Linear(2, 3))
    linear(torch.ones(2))
    other = copy.deepcopy(linear)
    assert other.cache_info().currsize == 0
    assert torch.equal(other(torch.ones(2)), linear(torch.ones(2)))
    assert all(a is not b for a, b in zip(other.parameters(), linear.parameters()))


def test_a_failed_capture_leaves_nothing_behind():
    fail = True

    def f(x):
        if fail:
            raise ValueError("mine")
        return x + 1

    g = jit(f)
    with pytest.raises(ValueError, match="mine"):
        g(torch.ones(2))
    assert g.cache_info().currsize == 0
    fail = False
    assert torch.equal(g(torch.ones(2)), torch.full((2,), 2.0))


def test_constants_of_a_body_do_not_forbid_caching():
    g = jit(lambda x: fh.scan(lambda c, _: (c + torch.tensor([1.0, 2.0]), None), x, None, 3)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            assert torch.equal(g(torch.zeros(2)), torch.tensor([3.0, 6.0]))
    assert calls(g) == (1, 1)


def test_lower_shows_the_graph_and_compiles():
    lowered = jit(lambda x: fh.scan(lambda c, a: (c + a, c), x, torch.ones(5))).lower(torch.tensor(0.0))
    assert isinstance(lowered.graph, torch.fx.GraphModule)
    assert "scan[" in lowered.as_text()
    carry, ys = lowered.compile()(torch.tensor(1.0))
    assert carry == 6
    assert torch.equal(ys, torch.arange(1.0, 6.0))
    with pytest.raises(fh.ArgumentValueError, match="another signature"):
        lowered.compile()(torch.ones(2))


def test_the_graph_does_not_grow_with_the_trip_count():
    def loss(x, xs):
        return fh.scan(lambda c, a: ((c * a).tanh(), None), x, xs)[0].sum()

    sizes = {
        t: len(fh.make_graph(fh.value_and_grad(loss))(torch.ones(2), torch.ones(t, 2)).graph.nodes) for t in (4, 64)
    }
    assert sizes[4] == sizes[64]


def test_make_graph_runs_and_prints():
    graph = fh.make_graph(lambda x: {"y": x.sin() + WEIGHT})(torch.ones(3))
    assert torch.equal(graph(torch.zeros(3))["y"], WEIGHT)
    assert "sin" in str(graph)
    with pytest.raises(fh.ArgumentValueError, match="another signature"):
        graph(torch.zeros(4))


def test_a_graph_can_be_copied():
    weight = torch.ones(2, requires_grad=True) * 3
    graph = fh.make_graph(lambda x: fh.cond(x.sum() > 0, lambda v: v * weight, torch.cos, x))(torch.ones(2))
    copied = copy.deepcopy(graph)
    assert str(copied) == str(graph)
    assert copied.graph is not graph.graph
    torch.testing.assert_close(copied(torch.full((2,), 2.0)), torch.full((2,), 6.0))


def test_eval_shape_computes_nothing():
    spec = fh.TensorSpec((1 << 20, 1 << 20), torch.float32)
    out = fh.eval_shape(lambda x: (x @ x, None, 3), spec)
    assert out == (fh.TensorSpec((1 << 20, 1 << 20), torch.float32), None, 3)


def test_a_callable_backend_gets_native_operators():
    seen = []

    def backend(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    g = fh.jit(lambda x: fh.scan(lambda c, a: (c + a, c), x, torch.ones(5))[1], backend=backend)
    assert torch.equal(g(torch.tensor(0.0)), torch.arange(5.0))
    assert "scan" in seen


@pytest.mark.parametrize("second", [fh.hessian, lambda f: fh.jacfwd(fh.jacfwd(f))], ids=["hessian", "jacfwd(jacfwd)"])
def test_lanes_of_second_derivatives_of_a_difference(second):
    """Forward mode makes the tangent of the first operand a zero, which is no fake tensor (and was on no device)."""
    x, xs = torch.tensor(2.0), torch.tensor([0.5, 3.0])
    for f in (lambda a: x**3 - a * a, lambda a: fh.cond(x > 0, lambda: x - a**3, lambda: a)):
        assert torch.equal(jit(fh.vmap(second(f)))(xs), fh.vmap(second(f))(xs))


@pytest.mark.filterwarnings("ignore:jit. <lambda> was captured:RuntimeWarning")
def test_the_traces_used_last_are_kept() -> None:
    f = fh.jit(lambda x, n: x * n, backend="eager")
    x = torch.ones(2)
    for n in range(f.cache_info().maxsize):
        f(x, n)
    f(x, 0)
    f(x, -1)
    assert f.cache_info().currsize == f.cache_info().maxsize == 128
    misses = f.cache_info().misses
    f(x, 0)
    f(x, 2)
    assert f.cache_info().misses == misses
    f(x, 1)  # the one that was not used for longest
    assert f.cache_info().misses == misses + 1


def test_the_warning_ends_with_a_remedy() -> None:
    f = fh.jit(lambda x: x * 2, backend="eager")
    for n in range(2, 10):
        f(torch.ones(n))
    with pytest.warns(RuntimeWarning, match="pass dynamic=True; if a number changes, pass it as a tensor$"):
        f(torch.ones(10))
