"""The second call that finds its trace prepares one function for calls like it: which calls does that function answer?

None that differs in anything that the trace depends on, and every call gives what plain Python gives. The library must
not even search for the trace where nothing differs.
"""

import collections
import contextlib
import dataclasses
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import functorch_hops as fh
from functorch_hops import _torch
from functorch_hops.transforms.jit import JittedFunction
from leftovers import are_gone


def close(got, expected):
    torch.testing.assert_close(got, expected)


@pytest.fixture
def searches(monkeypatch):
    """The calls that searched for their trace."""
    found = []
    find = JittedFunction._find

    def counted(self, args, kwargs):
        found.append(self)
        return find(self, args, kwargs)

    monkeypatch.setattr(JittedFunction, "_find", counted)
    return found


def prepared(f, *args, **kwargs):
    """``f``, jitted, and called until calls like this one are prepared."""
    jitted = fh.jit(f, backend="eager")
    for _ in range(2):
        close(jitted(*args, **kwargs), f(*args, **kwargs))
    return jitted


@dataclasses.dataclass
class Pair:
    a: torch.Tensor
    scale: int


class Named(torch.Tensor):
    pass


Point = collections.namedtuple("Point", "x y")
X, Y = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])
LIKE_X = torch.tensor([7.0, 9.0])
P = nn.Parameter(torch.tensor([1.0, 4.0]))


def total(value):
    """A number that depends on all that plain Python can tell of a value."""
    if isinstance(value, torch.Tensor):
        value = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
        weight = (3 if isinstance(value, nn.Parameter) else 2) + value.ndim + (0.5 if value.requires_grad else 0)
        return weight * value.double().sum()
    if dataclasses.is_dataclass(value):
        return total({"a": value.a, "scale": value.scale})
    if isinstance(value, dict):
        keys = sum(n * (len(str(key)) + isinstance(key, bool)) for n, key in enumerate(value, 1))
        return keys + total([*value.values()])
    if isinstance(value, (list, tuple, collections.deque)):
        return len(type(value).__name__) + sum(n * total(part) for n, part in enumerate(value, 1))
    if isinstance(value, (float, torch.SymFloat)):
        return 5 + value
    return len(str(type(value))) + (value if isinstance(value, int) else len(str(value)))


# What stays: a call, and another one that it prepares.
SAME = {
    "tensors": ((X, Y), (LIKE_X, X)),
    "parameter": ((P,), (nn.Parameter(Y),)),
    "float": ((X, 2.5), (X, 0.5)),
    "statics": ((X, 2, True, "a", None), (Y, 2, True, "a", None)),
    "nested": (([X, (Y, 2)], {"b": X + 1, "a": [Y + 1]}), ([Y, (X, 2)], {"b": Y + 1, "a": [X + 1]})),
    "namedtuple": ((Point(X, Y),), (Point(Y, X),)),
    "dataclass": ((Pair(X, 2),), (Pair(Y, 2),)),
    "one object twice": ((X, X), (Y, Y)),
    "empty": ((X, {}, [], ()), (Y, {}, [], ())),
    "device": ((X, torch.device("cpu")), (Y, torch.device("cpu"))),
    "order of a dict": (({"b": X, "a": Y},), ({"b": Y, "a": X},)),
}

# What changes: a call, and another one that it does not prepare.
OTHER = {
    "shape": ((X,), (torch.ones(3),)),
    "dimensions": ((X,), (torch.ones(1, 2),)),
    "dtype": ((X,), (X.double(),)),
    "strides": ((torch.ones(2, 2),), (torch.tensor([[1.0, 2.0], [3.0, 4.0]]).t(),)),
    "expanded": ((X,), (torch.ones(1).expand(2),)),
    "conjugated": ((X + 1j * Y,), ((Y + 1j * X).conj(),)),
    "negated": ((X,), ((Y + 1j * X).conj().imag,)),
    "zero, without memory": ((X,), (torch._efficientzerotensor(2),)),
    "gradient": ((X,), (Y.clone().requires_grad_(),)),
    "parameter": ((X,), (P,)),
    "subclass": ((X,), (Y.as_subclass(Named),)),
    "objects": ((X, Y), (X, X)),
    "objects apart": ((X, X), (X, LIKE_X)),
    "number": ((X, 2), (X, 3)),
    "number for bool": ((X, True), (X, 1)),
    "bool for number": ((X, 1), (X, True)),
    "float for number": ((X, 1), (X, 1.0)),
    "number for float": ((X, 1.0), (X, 1)),
    "tensor for float": ((X, 1.0), (X, torch.tensor(1.0))),
    "none": ((X, None), (X, Y)),
    "not none": ((X, Y), (X, None)),
    "list for tuple": (([X, Y],), ((X, Y),)),
    "longer": (([X, Y],), ([X, Y, LIKE_X],)),
    "one argument more": ((X,), (X, Y)),
    "one argument less": ((X, Y), (X,)),
    "keys": (({"a": X},), ({"b": X},)),
    "types of keys": (({1: X, False: Y},), ({True: X, 0: Y},)),
    "namedtuple for tuple": ((Point(X, Y),), ((X, Y),)),
    "field": ((Pair(X, 2),), (Pair(X, 3),)),
    "deque": ((collections.deque([X, Y]),), (collections.deque([X]),)),
}


@pytest.mark.parametrize("name", SAME)
def test_calls_like_one_before_need_no_search(name, searches):
    first, second = SAME[name]

    f = lambda *args: total(args)
    jitted = prepared(f, *first)
    searches.clear()
    for args in (first, second, first):
        close(jitted(*args), f(*args))
    assert not searches
    assert jitted.cache_info()[:2] == (4, 1)


@pytest.mark.parametrize("name", OTHER)
def test_calls_unlike_it_are_searched_for(name, searches):
    first, second = OTHER[name]
    f = lambda *args: total(args) + sum(a is b for a in args for b in args)
    jitted = prepared(f, *first)
    searches.clear()
    close(jitted(*second), f(*second))
    assert searches
    close(jitted(*first), f(*first))


def test_names_of_arguments_count(searches):
    def f(x, *, a=1.0, b=1):
        return x * a - b

    jitted = prepared(f, X, a=2.0, b=3)
    searches.clear()
    close(jitted(Y, a=4.0, b=3), f(Y, a=4.0, b=3))
    assert not searches
    for keywords in ({"a": 2.0}, {"b": 3}, {"a": 2.0, "b": 4}, {}):
        close(jitted(X, **keywords), f(X, **keywords))
    assert len(searches) == 4


def test_static_arguments_are_compared_as_a_whole(searches):
    class Scale:
        def __init__(self, value):
            self.value = value

        def __eq__(self, other):
            return isinstance(other, Scale) and self.value == other.value

        def __hash__(self):
            return hash(self.value)

    def f(x, scale, sizes, *, name):
        return x * scale.value + sum(sizes) + len(name)

    jitted = fh.jit(f, backend="eager", static_argnums=(1, 2), static_argnames="name")
    for _ in range(2):
        jitted(X, Scale(2), (1, 2), name=("a",))
    searches.clear()
    close(jitted(Y, Scale(2), (1, 2), name=("a",)), f(Y, Scale(2), (1, 2), name=("a",)))
    assert not searches
    for args, name in (((X, Scale(3), (1, 2)), ("a",)), ((X, Scale(2), (1, 3)), ("a",)), ((X, Scale(2), (1, 2)), "ab")):
        close(jitted(*args, name=name), f(*args, name=name))
    assert len(searches) == 3


def _switched(get, set_, value):
    @contextlib.contextmanager
    def manager():
        before = get()
        set_(value)
        try:
            yield
        finally:
            set_(before)

    return manager


class Seen(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class SeenFunctions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


MATMUL = torch.backends.mkldnn.matmul
SETTINGS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default dtype": _switched(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "default device": lambda: torch.device("cpu"),
    "threads": _switched(torch.get_num_threads, torch.set_num_threads, 2),
    "determinism": _switched(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True),
    "filling": _switched(
        lambda: torch.utils.deterministic.fill_uninitialized_memory,
        lambda value: setattr(torch.utils.deterministic, "fill_uninitialized_memory", value),
        False,
    ),
    "precision": _switched(
        lambda: MATMUL.fp32_precision, lambda value: setattr(MATMUL, "fp32_precision", value), "bf16"
    ),
    "mkldnn": _switched(torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled, False),
    "attention": lambda: nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH),
    "fast path": _switched(torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled, False),
    "anomaly": torch.autograd.detect_anomaly,
}
ACTIVE = {
    "dispatch mode": Seen,
    "function mode": SeenFunctions,
    "forward mode": torch.autograd.forward_ad.dual_level,
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", [*SETTINGS, *ACTIVE])
def test_settings_are_compared(name, searches):
    jitted = prepared(lambda x: x @ P + torch.ones(2), X)
    searches.clear()
    before = _torch.ambient_state()
    with {**SETTINGS, **ACTIVE}[name]():
        assert name in ACTIVE or _torch.ambient_state() != before
        got, expected = jitted(X), X @ P + torch.ones(2)
        assert got.dtype == expected.dtype
        assert got.requires_grad == expected.requires_grad
        close(got, expected)
    assert len(searches) == 1
    close(jitted(X), X @ P + torch.ones(2))
    assert len(searches) == 1


def test_a_default_device_is_a_setting(searches):
    f = lambda x: x + torch.ones(2)
    with torch.device("cpu"):
        jitted = prepared(f, X)
    searches.clear()
    with torch.device("cpu"):
        close(jitted(Y), f(Y))
        assert not searches
        with SeenFunctions():
            close(jitted(Y), f(Y))
        assert len(searches) == 1
    with torch.device("meta"):
        assert jitted(torch.ones(2)).is_meta
    close(jitted(X), f(X))
    assert len(searches) == 3


def test_the_configuration_of_inductor_is_compared():
    from torch._inductor import config

    checks = _torch.ambient_checks("inductor")
    holds = lambda: all(check(*args) == expected for check, args, expected in checks)
    assert holds()
    with config.patch(max_fusion_size=3):
        assert not holds()
    config.get_hash()  # as the search for a trace asks for it
    assert holds()


@pytest.mark.parametrize("name", ["vmap", "grad", "jvp", "functionalize", "legacy vmap"])
def test_levels_of_transforms_are_seen_from_tensors_of_none(name, searches):
    """A level dispatches every operator, whether or not it wraps an argument."""
    jitted = prepared(lambda x: x * 2, X)

    def inside(y):
        searches.clear()
        z = jitted(X)
        assert searches
        return (y * z).sum()

    if name == "legacy vmap":
        y = Y.clone().requires_grad_()
        jitted_in_backward = []

        class Doubled(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x * 2

            @staticmethod
            def backward(ctx, ct):
                searches.clear()
                jitted_in_backward.append(jitted(X))
                assert searches
                return ct * 2

        torch.autograd.grad(Doubled.apply(y), y, torch.eye(2), is_grads_batched=True)
        close(jitted_in_backward, [X * 2])
    elif name == "jvp":
        torch.func.jvp(inside, (Y,), (Y,))
    else:
        getattr(torch.func, name)(inside)(torch.stack([Y, Y]) if name == "vmap" else Y)
    close(jitted(X), X * 2)


def test_captures_see_the_call(searches):
    jitted = prepared(lambda x: x * 2, X)
    searches.clear()
    graph = fh.make_graph(lambda x: jitted(X) + x)(Y)
    assert len(searches) == 1
    assert "mul" in str(graph)
    with fh.eager_capture():
        close(jitted(X), X * 2)
    assert len(searches) == 2
    exported = torch.export.export(_Module(lambda x: jitted(X) + x), (Y,))
    close(exported.module()(Y), X * 2 + Y)


class _Module(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x)


def test_tensors_of_the_environment_are_compared(searches):
    weights = {"a": torch.ones(2), "b": torch.ones(2)}
    jitted = prepared(lambda x: x * weights["a"] + weights["b"], X)
    searches.clear()
    weights["a"] = Y
    close(jitted(X), X * Y + 1)
    Y.add_(0)
    close(jitted(X), X * Y + 1)
    assert not searches
    changes = [Y.double(), Y[:1], torch.stack([Y, Y], 1)[:, 0], Y.clone().requires_grad_(), weights["b"], P]
    for n, new in enumerate(changes, 1):
        weights["a"] = new
        close(jitted(X), X * new + 1)
        assert len(searches) == n


def test_sparse_tensors_go_the_long_way():
    weights = [torch.ones(2), torch.eye(2).to_sparse()]
    f = lambda x, matrix: x * weights[0] + matrix @ x
    jitted = fh.jit(f, backend="eager")
    for matrix in (torch.eye(2).to_sparse(), torch.ones(2, 2).to_sparse()):
        for _ in range(3):
            close(jitted(X, matrix), f(X, matrix))


def test_what_the_function_asked_is_compared():
    def f(x):
        return (x * 2 if x.is_leaf else x * 3) + x.storage_offset() + (5 if x.is_contiguous() else 7)

    jitted, base = fh.jit(f, backend="eager"), torch.arange(6.0)
    leaf = torch.ones(2, requires_grad=True)
    for x in (base[:2], base[2:4], base[::3], leaf, leaf * 1, base[:2], base[2:4], base[::3], leaf, leaf * 1) * 3:
        close(jitted(x), f(x))


def test_a_call_may_be_prepared_for_several_signatures(searches):
    jitted = fh.jit(lambda x: x * 2, backend="eager")
    xs = [torch.ones(n) for n in range(1, 6)]
    for _ in range(2):
        for x in xs:
            jitted(x)
    searches.clear()
    for _ in range(3):
        for x in xs:
            close(jitted(x), x * 2)
    assert not searches
    jitted.clear_cache()
    jitted(xs[0])
    assert jitted.cache_info() == (0, 1, 128, 1)


def test_open_sizes_that_come_again_need_no_search(searches):
    f = lambda x: fh.scan(lambda c, a: (c + a, None), x[0], x)[0] if x.shape[0] > 3 else x.sum(0)
    jitted = fh.jit(f, backend="eager", dynamic=True)
    xs = [torch.rand(n, 2) for n in (2, 3, 4, 5)]
    for _ in range(3):
        for x in xs:
            close(jitted(x), f(x))
    searches.clear()
    for x in xs:
        close(jitted(x), f(x))
    assert len(searches) <= 2


def test_gradients_of_prepared_calls(searches):
    w = torch.rand(2, 2, requires_grad=True)

    def f(x):
        return fh.scan(lambda c, a: ((c @ w + a).tanh(), c.sum()), x, torch.ones(3, 2)), (x > 0)

    x = torch.rand(2, requires_grad=True)
    jitted = prepared(f, x)
    searches.clear()
    (a, (b, flags)), (c, (d, _)) = [(out[0], (out[1], mask)) for out, mask in (jitted(x), f(x))]
    assert not searches
    assert not flags.requires_grad
    grads = lambda a, b, **options: torch.autograd.grad(a.sum() + (b * b).sum(), (x, w), retain_graph=True, **options)
    close(grads(a, b), grads(c, d))
    alone = lambda a: torch.autograd.grad(a.sum(), (x, w), retain_graph=True)
    close(alone(a), alone(c))
    first, second = grads(a, b, create_graph=True), grads(c, d, create_graph=True)
    close(*(torch.autograd.grad(sum((g * g).sum() for g in gs), (x, w)) for gs in (first, second)))


def test_gradients_of_prepared_calls_under_modes_and_batches():
    w = torch.rand(2, 2, requires_grad=True)
    f = lambda x: (x @ w).sin()
    jitted = prepared(f, X)
    eye = torch.eye(2)
    batched = lambda g: torch.autograd.grad(g(X), w, eye, is_grads_batched=True)
    close(batched(jitted), batched(f))
    for mode in (Seen, SeenFunctions, lambda: torch.autocast("cpu", dtype=torch.bfloat16)):
        out, expected = jitted(X).sum(), torch.autograd.grad(f(X).sum(), w)
        with mode():
            close(torch.autograd.grad(out, w), expected)
    with torch.autograd.graph.save_on_cpu():
        close(torch.autograd.grad(jitted(X).sum(), w), torch.autograd.grad(f(X).sum(), w))


def test_what_the_gradient_of_a_prepared_call_reads_may_not_be_written_to():
    w = torch.rand(2, 2, requires_grad=True)
    f, reading = (lambda x: (x @ w).sin()), (lambda x: (x @ w * w).sin())
    outs = [g(X).sum() for g in (prepared(f, X), f, prepared(reading, X), reading)]
    with torch.no_grad():
        w.mul_(2)
    close(torch.autograd.grad(outs[0], w), torch.autograd.grad(outs[1], w))
    for out in outs[2:]:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(out, w)


def test_buffers_are_written_back(searches):
    module, plain = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    jitted, x = fh.jit(module, backend="eager"), torch.rand(3, 2)
    for _ in range(4):
        close(jitted(x), plain(x))
    assert len(searches) == 2
    close(module.running_mean, plain.running_mean)
    assert module.num_batches_tracked == 4


def test_buffers_of_the_module_that_is_there_are_bound_anew(searches):
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(2))

        def forward(self, x):
            self.mean = self.mean * 0.5 + x
            return x - self.mean

    first, second = Mean(), Mean()
    held = [first]
    jitted = fh.jit(lambda x: held[0](x), backend="eager")
    for held[0] in (first, first, second, second, first):
        jitted(X)
    assert len(searches) == 4
    close(first.mean, 1.75 * X)
    close(second.mean, 1.5 * X)


def test_threads_have_settings_of_their_own(searches):
    jitted = prepared(lambda x: x * P, X)
    results = {}

    def run(name, mode):
        with mode:
            results[name] = [jitted(X).requires_grad for _ in range(50)]

    modes = {"on": torch.enable_grad(), "off": torch.no_grad()}
    threads = [threading.Thread(target=run, args=item) for item in modes.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {"on": [True] * 50, "off": [False] * 50}


def test_nothing_is_kept_alive():
    weights = [torch.ones(2)]
    argument = torch.ones(2)
    jitted = prepared(lambda x: x * weights[0], argument)
    held = [weakref.ref(weights[0]), weakref.ref(argument)]
    weights[0], argument = torch.zeros(2), None
    assert are_gone(*held)
    close(jitted(X), X * 0)


def test_results_are_computed_anew_and_of_the_same_tree():
    @dataclasses.dataclass
    class Out:
        a: torch.Tensor
        name: str

    def f(x):
        return {"b": Out(x + 1, "n"), "a": (x.t(), [x * 2, None, 3])}

    jitted, x = prepared_tree(f, torch.rand(2, 3)), torch.rand(2, 3)
    got, again = jitted(x), jitted(x)
    assert list(got) == ["b", "a"]
    assert got["b"].name == "n"
    assert got["a"][1][1:] == [None, 3]
    assert got["a"][0]._base is x
    close(got["a"][0], x.t())
    got["b"].a.zero_()
    close(again["b"].a, x + 1)


def prepared_tree(f, x):
    jitted = fh.jit(f, backend="eager")
    jitted(x), jitted(x)
    return jitted
