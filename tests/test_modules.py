"""Modules: as functions, as bodies, with buffers that they update, shared, tied, parametrized, called functionally."""

import copy
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.testing._internal.two_tensor import TwoTensor

import functorch_hops as fh
from leftovers import are_gone
from modes import same, while_capturing

F64 = torch.float64


def jit(func, **options):
    return fh.jit(func, backend="eager", **options)


class Mean(nn.Module):
    """A running mean and a count, updated in the ways in which users do."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.linear = nn.Linear(2, 2)
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x):
        y = self.linear(x)
        if self.how == "in place":
            with torch.no_grad():
                self.mean.mul_(0.9).add_(y.mean(0), alpha=0.1)
        elif self.how == "copy":
            with torch.no_grad():
                self.mean.copy_(y.mean(0))
        elif self.how == "index":
            with torch.no_grad():
                self.mean[0] = y.mean()
        elif self.how == "view":
            self.mean.view(2, 1)[1].add_(1)
        elif self.how == "bound anew":
            self.mean = 0.9 * self.mean + 0.1 * y.mean(0).detach()
        elif self.how == "in place, then anew":
            self.mean.add_(1)
            self.mean = self.mean * 2
        elif self.how == "data":
            self.mean.data.add_(1)
        self.count += 1
        return y - self.mean + self.count


MODULES = {
    "BatchNorm1d": lambda: nn.BatchNorm1d(2),
    "without affine": lambda: nn.BatchNorm1d(2, affine=False),
    "without statistics": lambda: nn.BatchNorm1d(2, track_running_stats=False),
    "a net": lambda: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Linear(2, 2), nn.BatchNorm1d(2)),
    "one layer twice": lambda: nn.Sequential(*[nn.BatchNorm1d(2)] * 2),
    **{
        how: lambda how=how: Mean(how)
        for how in ("in place", "copy", "index", "view", "bound anew", "in place, then anew")
    },
}


def assert_same_state(module, expected):
    state, other = module.state_dict(), expected.state_dict()
    assert state.keys() == other.keys()
    for name, value in state.items():
        torch.testing.assert_close(value, other[name])
    for buffer, other_buffer in zip(module.buffers(), expected.buffers(), strict=True):
        assert type(buffer) is torch.Tensor
        assert buffer.requires_grad == other_buffer.requires_grad


@pytest.mark.parametrize("name", MODULES)
def test_training_updates_buffers_as_eager_does(name):
    torch.manual_seed(0)
    module = MODULES[name]().double()
    expected = copy.deepcopy(module)
    compiled = jit(module)
    optimizers = [torch.optim.SGD([*m.parameters(), torch.zeros(1)], 0.1) for m in (module, expected)]
    for _ in range(3):
        x = torch.randn(4, 2, dtype=F64)
        got, want = compiled(x), expected(x)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
        assert_same_state(module, expected)
        for loss, optimizer in ((got, optimizers[0]), (want, optimizers[1])):
            optimizer.zero_grad()
            if loss.requires_grad:
                loss.square().sum().backward()
                optimizer.step()
        assert_same_state(module, expected)
    assert compiled.cache_info().misses == 1
    module.eval(), expected.eval()
    x = torch.randn(4, 2, dtype=F64)
    torch.testing.assert_close(compiled(x), expected(x), rtol=0, atol=1e-12)


def test_images():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).double()
    expected, x = copy.deepcopy(module), torch.randn(2, 1, 5, 5, dtype=F64)
    compiled = jit(module)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), expected(x))
    assert_same_state(module, expected)


def test_two_calls_before_one_backward():
    module = nn.BatchNorm1d(2).double()
    expected, x = copy.deepcopy(module), torch.randn(4, 2, dtype=F64)
    for m, f in ((module, jit(module)), (expected, expected)):
        (f(x).sin().sum() + f(2 * x).cos().sum()).backward()
        assert m.weight.grad is not None
    torch.testing.assert_close(module.weight.grad, expected.weight.grad)
    assert_same_state(module, expected)


def test_second_derivatives_of_a_training_step():
    module = nn.BatchNorm1d(2).double()
    expected, x = copy.deepcopy(module), torch.randn(4, 2, dtype=F64, requires_grad=True)
    results = []
    for f in (jit(module), expected):
        (grad,) = torch.autograd.grad(f(x).sin().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(grad.square().sum(), x)[0])
    torch.testing.assert_close(*results)


LAYERS = {
    "layer norm": lambda: nn.LayerNorm(6),
    "group norm": lambda: nn.GroupNorm(2, 6),
    "batch norm in eval mode": lambda: nn.BatchNorm1d(6).eval(),
    "cross entropy": lambda: lambda x: F.cross_entropy(x.tanh(), torch.tensor([0, 1, 2, 3])),
    "attention": lambda: nn.TransformerDecoderLayer(6, 2, 8, dropout=0.0).eval().self_attn,
    "GRU cell": lambda: nn.GRUCell(6, 3),
    "linear solve": lambda: lambda x: torch.linalg.solve(x.T @ x + torch.eye(6, dtype=F64), x.T),
}


@pytest.mark.parametrize("name", LAYERS)
def test_second_derivatives_of_layers(name):
    """Layers whose derivative reads what has no derivative of its own (NOTE [Constant residuals])."""
    torch.manual_seed(0)
    layer = LAYERS[name]()
    layer = layer.double() if isinstance(layer, nn.Module) else layer
    f = (lambda x: layer(x, x, x)[0].sin().sum()) if name == "attention" else lambda x: layer(x).sin().sum()

    def slope(f):
        return lambda x: fh.grad(f)(x).square().sum()

    x = torch.randn(4, 6, dtype=F64)
    y = x.clone().requires_grad_()
    results = []
    for g in (f, jit(f)):
        (grad,) = torch.autograd.grad(g(y), y, create_graph=True)
        results.append(torch.autograd.grad(grad.square().sum(), y)[0])
    results.append(fh.grad(slope(jit(f)))(x))
    results.append(jit(fh.grad(slope(f)))(x))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


def test_an_update_may_carry_gradients_as_in_eager():
    class Running(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("total", torch.zeros((), dtype=F64))

        def forward(self, x):
            self.total = self.total + x.sum()
            return self.total * 2

    grads = []
    for f in (jit(Running()), Running()):
        x = torch.ones(2, dtype=F64, requires_grad=True)
        f(x)
        f(x).backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)


def test_an_update_in_place_that_carries_gradients_is_refused_when_it_is_read():
    class Running(Mean):
        def forward(self, x):
            self.mean.add_(self.linear(x).mean(0))
            return self.mean * 2

    module, expected = Running(""), Running("")
    expected.load_state_dict(module.state_dict())
    compiled, x = jit(module), torch.randn(4, 2)
    for f, m in ((compiled, module), (expected, expected)):
        f(x).sum().backward()
        assert m.mean.requires_grad
    torch.testing.assert_close(module.linear.weight.grad, expected.linear.weight.grad)
    with pytest.raises(fh.InputMutationError, match="carries gradients"):
        compiled(x)


def test_no_gradient_flows_through_what_no_grad_wrote():
    def f(x):
        t = torch.zeros(2, dtype=F64)
        with torch.no_grad():
            t.copy_(x)
            t.add_(x)
        return x * t

    x = torch.tensor([2.0, 3.0], dtype=F64, requires_grad=True)
    (expected,) = torch.autograd.grad(f(x).sum(), x)
    assert torch.equal(torch.autograd.grad(jit(f)(x).sum(), x)[0], expected)
    assert torch.equal(torch.func.grad(lambda x: jit(f)(x).sum())(x.detach()), expected)


def test_a_function_over_a_module_and_a_module_as_argument():
    x = torch.randn(4, 2)
    module = nn.BatchNorm1d(2)
    expected = copy.deepcopy(module)
    over, argument = jit(lambda x: module(x) * 2), jit(lambda m, x: m(x))
    for _ in range(2):
        over(x), argument(module, x)
        expected(x), expected(x)
    assert_same_state(module, expected)
    other = copy.deepcopy(module)
    argument(other, x), expected(x)
    assert_same_state(other, expected)


def test_a_module_shared_by_two_jits():
    module, x = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)), torch.randn(4, 2)
    expected = copy.deepcopy(module)
    first, second = jit(module), jit(lambda x: module(x).sum())
    for _ in range(2):
        torch.testing.assert_close(first(x), expected(x))
        torch.testing.assert_close(second(x), expected(x).sum())
        module[1].weight.data.mul_(2)
        expected[1].weight.data.mul_(2)
    assert_same_state(module, expected)


def test_a_buffer_set_from_outside_is_read():
    module, x = nn.BatchNorm1d(2), torch.randn(4, 2)
    compiled = jit(module)
    compiled(x)
    module.reset_running_stats()
    expected = copy.deepcopy(module)
    compiled(x), expected(x)
    assert_same_state(module, expected)
    module.running_mean = torch.ones(2)
    expected.running_mean = torch.ones(2)
    compiled(x), expected(x)
    assert_same_state(module, expected)
    assert compiled.cache_info().misses == 1


def test_an_updated_buffer_that_shares_memory_is_refused():
    module, x = nn.BatchNorm1d(2), torch.randn(4, 2)
    compiled = jit(lambda x: module(x) + module.running_mean)
    compiled(x)
    with pytest.raises(fh.InputMutationError, match="shares memory"):
        jit(module)(module.running_mean.expand(4, 2))
    module.running_var = module.running_mean.view(2)
    with pytest.raises(fh.InputMutationError, match="shares memory"):
        compiled(x)


def test_inductor_updates_buffers():
    module, x = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), torch.randn(4, 2)
    expected = copy.deepcopy(module)
    compiled = fh.jit(module)
    for _ in range(2):
        got, want = compiled(x), expected(x)
        torch.testing.assert_close(got, want)
        got.square().sum().backward(), want.square().sum().backward()
    torch.testing.assert_close(module.state_dict(), expected.state_dict())
    torch.testing.assert_close(module[0].weight.grad, expected[0].weight.grad)


LOOPS = {
    "scan": lambda read, x: fh.scan(lambda c, r: (c + read(c) * r, read(x)), x, torch.ones(2)),
    "map": lambda read, x: fh.map(lambda r: read(x) * r, torch.ones(2)),
    "fori_loop": lambda read, x: fh.fori_loop(0, 2, lambda i, c: c + read(x), x),
    "while_loop": lambda read, x: fh.while_loop(lambda c: c.sum() < 9, lambda c: c + read(x).abs() + 1, x),
    "scan in scan": lambda read, x: fh.scan(
        lambda c, _: fh.scan(lambda c, _: (c + read(x), None), c, length=2), x, length=2
    )[0],
}


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("use", ["batch norm", "function of a buffer", "cast buffer"])
def test_buffers_first_read_in_loop_invariant_work(loop, use):
    """The work is taken out of the loop, and reads the copy of the buffer there."""
    module, x = nn.BatchNorm1d(3).eval(), torch.randn(3)
    module.running_var.uniform_(1, 2)
    read = {
        "batch norm": lambda x: module(x[None])[0],
        "function of a buffer": lambda x: module.running_var.sin(),
        "cast buffer": lambda x: module.running_var.double().cos().float(),
    }[use]
    torch.testing.assert_close(jit(lambda x: loop(read, x))(x), loop(read, x))

    def read_then_updated(x):
        out = loop(read, x)
        with torch.no_grad():
            module.running_var.mul_(2)
        return out, read(x)

    var = module.running_var.clone()
    expected = read_then_updated(x)
    module.running_var.copy_(var)
    torch.testing.assert_close(jit(read_then_updated)(x), expected)
    torch.testing.assert_close(module.running_var, var * 2)


# Where an update can't be written back.

XS = torch.randn(3, 4, 2)
REFUSED = {
    "vmap(jit)": lambda m: fh.vmap(jit(m))(XS),
    "grad(jit)": lambda m: fh.grad(lambda x: jit(m)(x).sum())(XS[0]),
    "jvp(jit)": lambda m: fh.jvp(jit(m), (XS[0],), (XS[1],)),
    "jit(vmap)": lambda m: jit(fh.vmap(m))(XS),
    "jit(grad)": lambda m: jit(fh.grad(lambda x: m(x).sum()))(XS[0]),
    "jit(jvp)": lambda m: jit(lambda x: fh.jvp(m, (x,), (x,)))(XS[0]),
    "jit(jit)": lambda m: jit(lambda x: jit(m)(x))(XS[0]),
    "jit(scan)": lambda m: jit(lambda x: fh.scan(lambda c, _: (m(c), None), x, None, 3))(XS[0]),
    "jit(while_loop)": lambda m: jit(lambda x: fh.while_loop(lambda c: c.sum() > 0, m, x))(XS[0]),
    "jit(cond)": lambda m: jit(lambda x: fh.cond(x.sum() > 0, m, torch.neg, x))(XS[0]),
    "jit(checkpoint)": lambda m: jit(fh.checkpoint(m))(XS[0]),
    "vmap(cond)": lambda m: fh.vmap(lambda x: fh.cond(x.sum() > 0, m, torch.neg, x))(XS),
    "make_graph": lambda m: fh.make_graph(m)(XS[0]),
}


@pytest.mark.parametrize("where", REFUSED)
@pytest.mark.parametrize("name", ["BatchNorm1d", "in place", "copy", "bound anew"])
def test_an_update_is_refused_where_it_would_be_lost(where, name):
    module = MODULES[name]()
    before = copy.deepcopy(module)
    buffers = list(module.buffers())
    with pytest.raises(fh.InputMutationError, match=r"a module's buffer .*\n(.*\n)*.*functional_call"):
        REFUSED[where](module)
    assert_same_state(module, before)
    assert all(a is b for a, b in zip(module.buffers(), buffers, strict=True))


def test_a_failed_capture_leaves_the_buffers():
    module = Mean("bound anew")
    buffers = list(module.buffers())

    def f(x):
        y = module(x)
        raise ValueError(f"mine {y.dim()}")

    with pytest.raises(ValueError, match="mine 2"):
        jit(f)(XS[0])
    assert all(a is b for a, b in zip(module.buffers(), buffers, strict=True))


def test_plain_loops_over_a_jitted_module_update_its_buffers():
    module = nn.BatchNorm1d(2)
    expected, compiled = copy.deepcopy(module), jit(module)
    got = fh.scan(lambda c, x: (compiled(x), None), XS[0], XS)[0]
    for x in XS:
        want = expected(x)
    torch.testing.assert_close(got, want)
    assert_same_state(module, expected)


def test_eval_shape_updates_nothing():
    module = nn.BatchNorm1d(2)
    before = copy.deepcopy(module)
    assert fh.eval_shape(module, XS[0]).shape == (4, 2)
    assert_same_state(module, before)


# Carried by functional_call.


def carried(module, wrap=lambda f: f):
    """The remedy of the message: buffers as a carry."""
    parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())

    def step(buffers, x):
        new = {name: b.detach().clone() for name, b in buffers.items()}
        y = functional_call(module, (parameters, new), x)
        return new, y.sum()

    return wrap(lambda xs: fh.scan(step, buffers, xs))


@pytest.mark.parametrize("wrap", [lambda f: f, jit, lambda f: fh.make_graph(f)(XS.double())])
@pytest.mark.parametrize("name", ["BatchNorm1d", "a net", "in place", "copy"])
def test_buffers_are_carried_through_a_scan(name, wrap):
    torch.manual_seed(0)
    module = MODULES[name]().double()
    expected, xs = copy.deepcopy(module), XS.double()
    state, sums = carried(module, wrap)(xs)
    torch.testing.assert_close(sums, torch.stack([expected(x).sum() for x in xs]), rtol=0, atol=1e-10)
    torch.testing.assert_close(state, dict(expected.named_buffers()), rtol=0, atol=1e-12)
    if any(True for _ in module.parameters()):
        sums.square().sum().backward()
        for m in (expected,):
            m.load_state_dict(module.state_dict())
        torch.stack([expected(x).sum() for x in xs]).square().sum().backward()
        for p, q in zip(module.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("wrap", [lambda f: f, jit])
def test_an_ensemble_by_functional_call(wrap):
    modules = [nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double() for _ in range(3)]
    stacked = torch.func.stack_module_state(modules)[0]
    stacked = {name: value.detach() for name, value in stacked.items()}
    base = copy.deepcopy(modules[0])

    def loss(parameters, x):
        return functional_call(base, parameters, x).square().sum()

    f = wrap(fh.vmap(fh.grad(loss), (0, None)))
    x = torch.randn(4, 2, dtype=F64)
    for _ in range(2):
        grads = f(stacked, x)
        for i, module in enumerate(modules):
            expected = torch.autograd.grad(module(x).square().sum(), list(module.parameters()))
            for name, want in zip(grads, expected, strict=True):
                torch.testing.assert_close(grads[name][i], want)


def test_functional_call_inside_bodies():
    module, x = nn.Linear(2, 2).double(), torch.randn(2, dtype=F64)

    def f(weight, x):
        body = lambda c: functional_call(module, {"weight": weight}, c).tanh()
        return fh.fori_loop(0, 3, lambda i, c: body(c), x).sum()

    def oracle(weight, x):
        for _ in range(3):
            x = functional_call(module, {"weight": weight}, x).tanh()
        return x.sum()

    w = torch.randn(2, 2, dtype=F64)
    expected = torch.func.grad(oracle)(w, x)
    hessian = torch.func.hessian(oracle)(w, x)
    with fh.eager_capture():
        torch.testing.assert_close(fh.grad(f)(w, x), expected)
        torch.testing.assert_close(fh.hessian(f)(w, x), hessian)
    for _ in range(2):
        torch.testing.assert_close(jit(fh.grad(f))(w, x), expected)
        torch.testing.assert_close(fh.grad(jit(f))(w, x), expected)


# Parameters of other kinds.


class Symmetric(nn.Module):
    def forward(self, w):
        return w.triu() + w.triu(1).transpose(-1, -2)


@pytest.mark.parametrize("where", ["jit", "jit(scan)", "eager_capture", "vmap(cond)"])
def test_parametrized_modules(where):
    module = nn.Linear(2, 2).double()
    parametrize.register_parametrization(module, "weight", Symmetric())
    x = torch.randn(2, dtype=F64)
    functions = {
        "jit": jit(module),
        "jit(scan)": jit(lambda x: fh.scan(lambda c, _: (module(c), None), x, None, 1)[0]),
        "vmap(cond)": lambda x: fh.vmap(lambda p: fh.cond(p, module, torch.neg, x))(torch.tensor([True]))[0],
    }

    def captured(x):
        with fh.eager_capture():
            return fh.scan(lambda c, _: (module(c), None), x, None, 1)[0]

    f = functions.get(where, captured)
    for _ in range(2):
        torch.testing.assert_close(f(x), module(x))
        original = module.parametrizations.weight.original
        got = torch.autograd.grad(f(x).square().sum(), original)
        torch.testing.assert_close(got, torch.autograd.grad(module(x).square().sum(), original))
        with torch.no_grad():
            original.mul_(2)


def test_spectral_norm_updates_its_buffers():
    torch.manual_seed(0)
    module = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 3)).double()
    expected, x = copy.deepcopy(module), torch.randn(4, 2, dtype=F64)
    compiled = jit(module)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), expected(x))
        assert_same_state(module, expected)


def test_tied_parameters():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.decode = nn.Linear(2, 2), nn.Linear(2, 2)
            self.decode.weight = self.encode.weight

        def forward(self, x):
            return self.decode(self.encode(x).tanh())

    module, x = Tied(), torch.randn(2)
    compiled = jit(module)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), module(x))
        (got,) = torch.autograd.grad(compiled(x).sum(), module.encode.weight)
        torch.testing.assert_close(got, torch.autograd.grad(module(x).sum(), module.encode.weight)[0])
    module.decode.weight = nn.Parameter(torch.zeros(2, 2))  # tied no more
    torch.testing.assert_close(compiled(x), module(x))
    assert compiled.cache_info().misses == 2


class Tagged(torch.Tensor):
    """A subclass that only bears a name."""


class Doubling(torch.Tensor):
    """A subclass that redefines operators."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs or {})
        return result * 2 if func is torch.Tensor.add else result


def test_a_deep_copy_of_a_module_inside():
    net, x = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval(), torch.ones(2, 3)

    def f(x):
        copied, (first, second) = copy.deepcopy(net), copy.deepcopy([x, x])
        with torch.no_grad():
            for p in copied.parameters():
                p.mul_(0.5)
        first.add_(1)
        return copied(x).detach(), second, x.clone(), copied[0].weight.requires_grad

    assert repr(jit(f)(x)) == repr(f(x))


def test_a_subclass_that_only_bears_a_name_is_a_tensor():
    w = torch.tensor([1.0, 2.0]).as_subclass(Tagged)
    x = torch.ones(2)
    closing, taking = jit(lambda x: x * w), jit(lambda x: x * 2)
    for _ in range(2):
        for got, expected in ((closing(x), [1.0, 2.0]), (taking(w), [2.0, 4.0]), (fh.vmap(taking)(w), [2.0, 4.0])):
            assert type(got) is torch.Tensor
            assert got.tolist() == expected
    learned = torch.tensor([1.0, 2.0], requires_grad=True)
    tagged = learned.as_subclass(Tagged)
    jit(lambda x: x * tagged)(x).sum().backward()
    taking(tagged).sum().backward()
    assert learned.grad.tolist() == [3.0, 3.0]


def test_a_subclass_that_redefines_operators_is_refused():
    w, x = torch.tensor([1.0, 2.0]).as_subclass(Doubling), torch.ones(2)
    wrapper = TwoTensor(torch.ones(2), torch.ones(2))
    for t in (w, wrapper):
        for call in (
            lambda t=t: jit(lambda x: x + t)(x),
            lambda t=t: jit(lambda y: y + x)(t),
            lambda t=t: fh.vmap(lambda p: fh.cond(p > 0, lambda: x + t, lambda: x))(x),
        ):
            with pytest.raises(fh.CaptureError, match=f"redefines operators.*\n.*\n.*got: {type(t).__name__}"):
                call()


def test_a_jitted_module_dies_with_its_last_reference():
    module = nn.BatchNorm1d(2)
    compiled = jit(module)
    compiled(XS[0]).sum().backward()
    reference = weakref.ref(module)
    del module, compiled
    assert are_gone(reference)


@while_capturing
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_embedding_bags_and_sparse_embeddings(run, mode):
    """torch.func differentiates neither."""
    bag = nn.EmbeddingBag(5, 3, mode=mode, padding_idx=1, dtype=F64)
    rows = nn.Embedding(5, 3, sparse=True, dtype=F64)
    places, offsets = torch.tensor([0, 2, 4, 1, 1, 3]), torch.tensor([0, 2, 3, 3])
    table = lambda c: c * bag(places, offsets) + bag(places.reshape(2, 3)).sum(0) * rows(places[:4])
    x = torch.linspace(-1, 1, 12, dtype=F64).reshape(4, 3)
    f = lambda x: fh.scan(lambda c, _: (table(c), c), x, length=2)[0]
    same(run(f, x), table(table(x)))
    gradient = torch.autograd.functional.jacobian(lambda x: table(table(x)).sum(), x)
    same(run(fh.grad(lambda x: f(x).sum()), x), gradient)
    same(run(fh.vmap(f), torch.stack([x, 2 * x]))[1], table(table(2 * x)))
    weights = [bag.weight, rows.weight]
    got = torch.autograd.grad(run(f, x).sum(), weights)
    expected = torch.autograd.grad(table(table(x)).sum(), weights)
    same(got, tuple(g.to_dense() for g in expected))


@pytest.mark.skipif(torch.__version__ < (2, 13), reason="torch has it from 2.13 on")
def test_a_loss_in_chunks_is_computed_at_once_and_says_so():
    """Its operator computes gradients with the value if they are needed, which a graph that is derived can't know."""
    x, w, target = torch.randn(6, 3, dtype=F64), torch.randn(4, 3, dtype=F64), torch.arange(6) % 4
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=2)
    loss = lambda x, w: F.linear_cross_entropy(x, w, target, options=options)
    expected = torch.autograd.functional.jacobian(lambda x, w: F.cross_entropy(x @ w.T, target), (x, w))
    with pytest.warns(RuntimeWarning, match="computes all of its logits at once"):
        same(jit(fh.grad(loss, argnums=(0, 1)))(x, w), expected)
    w.requires_grad_()
    with pytest.warns(RuntimeWarning, match="computes all of its logits at once"):
        same(torch.autograd.grad(jit(loss)(x, w), w), expected[1:])


def test_old_spectral_norm_keeps_a_weight_with_a_history():
    torch.manual_seed(0)
    module = nn.utils.spectral_norm(nn.Linear(2, 3)).double()
    expected, x = copy.deepcopy(module), torch.randn(4, 2, dtype=F64)
    compiled = jit(module)
    for _ in range(2):
        got, wanted = compiled(x), expected(x)
        torch.testing.assert_close(got, wanted)
        gradients = [torch.autograd.grad(y.sum(), m.weight_orig)[0] for y, m in ((got, module), (wanted, expected))]
        torch.testing.assert_close(*gradients)
        assert_same_state(module, expected)


@pytest.mark.parametrize("in_loop", [False, True])
def test_a_parameter_without_a_gradient_has_none(in_loop):
    """None, where no gradient leads: an optimizer with momentum or decay would move a parameter of zero gradient."""
    p, q, r = (nn.Parameter(torch.ones(2)) for _ in range(3))
    body = lambda c: (c[0] * p, c[1] * q + r.detach())
    f = (lambda x: fh.scan(lambda c, _: (body(c), None), (x, x), length=2)[0]) if in_loop else lambda x: body((x, x))
    for loss in (lambda y, z: y.sum(), lambda y, z: z.sum(), lambda y, z: (y * z).sum()):
        found = []
        for function in (jit(f), f):
            p.grad = q.grad = r.grad = None
            loss(*function(torch.ones(2))).backward()
            found.append([None if t.grad is None else t.grad.tolist() for t in (p, q, r)])
        assert found[0] == found[1]


def test_a_penalty_on_gradients_leaves_the_last_bias_without():
    module = nn.Sequential(nn.Linear(2, 3), nn.Softplus(), nn.Linear(3, 1)).double()
    x, found = torch.ones(1, 2, dtype=F64, requires_grad=True), []
    for function in (jit(module), module):
        module.zero_grad()
        (g,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
        g.square().sum().backward()
        found.append([None if p.grad is None else p.grad.clone() for p in module.parameters()])
    assert found[0][-1] is None
    torch.testing.assert_close(found[0][:-1], found[1][:-1])
