"""jit of a module: a module that is the same in all but its call."""

import copy
import inspect
import multiprocessing
import pickle
import weakref

import pytest
import torch
from torch import nn

import functorch_hops as fh
from leftovers import are_gone

X = torch.linspace(-1, 1, 12).reshape(4, 3)


def jit(func, **options):
    return fh.jit(func, backend="eager", **options)


class Net(nn.Module):
    """A module with overrides, a property, a method and a mode."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("scale", torch.tensor(2.0))
        self.calls = 0

    def forward(self, x, *, shift=0.0):
        return self.norm(self.linear(x)) * self.scale + shift

    def twice(self, x):
        return self(self(x))

    @property
    def width(self):
        return self.linear.out_features

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()  # frozen
        return self


def make():
    torch.manual_seed(0)
    return Net()


def test_it_is_a_module_of_the_same_kind():
    module = make()
    jitted = jit(module)
    assert isinstance(jitted, nn.Module)
    assert isinstance(jitted, Net)
    assert isinstance(jitted, fh.Jitted)
    assert repr(jitted) == f"jit({module!r})"
    assert torch.equal(jitted(X, shift=1.0), make()(X, shift=1.0))
    assert jitted.cache_info()[:2] == (0, 1)
    assert "batch_norm" in jitted.lower(X).as_text()
    jitted.clear_cache()
    assert jitted.cache_info()[:2] == (0, 0)


def test_parameters_buffers_and_attributes_are_shared():
    module = make()
    jitted = jit(module)
    for names in ("parameters", "buffers", "children"):
        assert all(a is b for a, b in zip(getattr(jitted, names)(), getattr(module, names)(), strict=True))
    assert jitted.linear is module.linear
    assert jitted.width == 3
    assert list(jitted.state_dict()) == list(module.state_dict())
    jitted.linear = nn.Linear(3, 5)
    jitted.norm = nn.Identity()
    jitted.calls = 7
    assert (module.calls, module.linear.out_features, jitted.width) == (7, 5, 5)
    assert torch.equal(jitted(X), module(X))
    assert next(jitted.modules()) is jitted


def test_modes_and_conversions():
    module = make()
    jitted = jit(module)
    assert jitted.eval() is jitted
    assert not module.training
    assert not module.norm.training
    assert torch.equal(jitted(X), module(X))
    jitted.train()
    assert module.training
    assert not module.norm.training  # as its own method has it
    jitted.double()
    assert module.linear.weight.dtype == torch.float64
    assert torch.equal(jitted(X.double()), module(X.double()))
    assert jitted.half() is jitted
    assert jitted.to("meta").linear.weight.device.type == "meta"
    assert module.requires_grad_(False) is module
    assert not any(p.requires_grad for p in jitted.parameters())


def test_in_a_container():
    module = make()
    model, expected = nn.Sequential(jit(module), nn.ReLU(), jit(nn.Linear(3, 2))), nn.Sequential(make(), nn.ReLU())
    assert list(model.state_dict())[: len(expected.state_dict())] == list(expected.state_dict())
    assert [name for name, _ in model.named_parameters()][-2:] == ["2.weight", "2.bias"]
    model.load_state_dict({name: torch.zeros_like(t) for name, t in model.state_dict().items()})
    assert not module.linear.weight.any()
    assert not model(X).any()
    model.apply(lambda m: m.requires_grad_(False))
    model.double()
    assert module.linear.weight.dtype == torch.float64
    model.eval()
    assert not module.training


def test_training_is_that_of_the_module():
    def train(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(X).square().sum().backward()
            optimizer.step()
        return model.state_dict()

    torch.testing.assert_close(train(jit(make())), train(make()))
    torch.testing.assert_close(train(nn.Sequential(jit(make()))), train(nn.Sequential(make())))


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "copy": copy.copy}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_is_jitted_with_its_options(copied):
    module = make().eval()
    jitted = jit(module, dynamic=True)
    jitted(X)
    other = copied(jitted)
    assert isinstance(other, type(jitted))
    assert other.cache_info()[:2] == (0, 0)
    assert torch.equal(other(X), module(X))
    assert torch.equal(other(X[:2]), module(X[:2]))
    assert other.cache_info()[:2] == (1, 1)  # of any size
    other.calls = 7
    assert module.calls == 0
    assert (other.linear.weight is module.linear.weight) == (copied is copy.copy)


def test_a_copy_of_a_container_keeps_what_is_shared():
    module = nn.Linear(3, 3)
    model = copy.deepcopy(nn.Sequential(jit(module), module))
    assert model[0].weight is model[1].weight
    assert model[0].weight is not module.weight
    assert repr(model[0]) == f"jit({module!r})"


def _in_another_process(model, queue):
    queue.put((model.cache_info()[1], model(X).detach().numpy(), model.cache_info()[1]))


@pytest.mark.slow
def test_it_is_sent_to_a_spawned_process():
    jitted = jit(nn.Linear(3, 3))
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_in_another_process, args=(jitted, queue))
    process.start()
    before, out, after = queue.get()
    process.join()
    assert (before, after) == (0, 1)
    torch.testing.assert_close(torch.from_numpy(out), jitted(X).detach())


@pytest.mark.filterwarnings("ignore:.* does what no graph does:RuntimeWarning")
def test_hooks_run_around_the_graph_or_in_it():
    module, seen = nn.Linear(3, 3), []
    jitted = jit(module)
    inner = module.register_forward_hook(lambda m, args, out: seen.append("in the graph") or out + 1)
    outer = jitted.register_forward_hook(lambda m, args, out: seen.append(m) or out * 2)
    jitted.register_forward_pre_hook(lambda m, args: (args[0] * 3,))
    expected = (nn.functional.linear(X * 3, module.weight, module.bias) + 1) * 2
    for _ in range(2):
        assert torch.equal(jitted(X), expected)
    assert seen[0] == "in the graph" and seen.count(jitted) == 2
    assert torch.equal(module(X), nn.functional.linear(X, module.weight, module.bias) + 1)
    over = jit(lambda x: jitted(x))
    assert torch.equal(over(X), expected)
    outer.remove()
    assert torch.equal(over(X), expected / 2)
    inner.remove()
    torch.testing.assert_close(over(X), expected / 2 - 1)


def test_backward_hooks():
    jitted, seen = jit(nn.Linear(3, 3)), []
    jitted.register_full_backward_hook(lambda m, grad_in, grad_out: seen.append(grad_out[0]))
    jitted(X.clone().requires_grad_()).sum().backward()
    assert torch.equal(seen[0], torch.ones(4, 3))


def test_methods_call_what_is_compiled():
    module = make()
    jitted = jit(module)
    assert torch.equal(jitted.twice(X), make().twice(X))
    assert jitted.cache_info()[:2] == (1, 1)
    assert torch.equal(jitted.forward(X), module.forward(X))


class Odd(nn.Linear):
    """Its call is its own, and so is a compiled method."""

    def __call__(self, x):
        return super().__call__(x) + 1

    @fh.jit(backend="eager")
    def double(self, x):
        return self.weight.sum() * x * 2


def test_a_call_and_methods_of_its_own():
    module = Odd(3, 3)
    jitted = jit(module)
    assert torch.equal(jitted(X), module(X))
    for _ in range(3):
        assert torch.equal(jitted.double(X), module.double(X))
    assert module.double.cache_info()[:2] == (5, 1)
    module.forward = lambda x: x * 2
    assert torch.equal(jitted(X), X * 2 + 1)
    jitted.forward = lambda x: x * 3
    assert torch.equal(jitted(X), X * 3 + 1)
    assert torch.equal(module(X), X * 3 + 1)


def test_jit_of_jit_and_other_transforms():
    module = nn.Linear(3, 3)
    jitted = jit(module)
    assert torch.equal(jit(jitted)(X), module(X))
    assert torch.equal(fh.vmap(jitted)(X), module(X))
    zeros = {name: torch.zeros_like(p) for name, p in jitted.named_parameters()}
    assert not torch.func.functional_call(jitted, zeros, X).any()
    assert torch.equal(jitted(X), module(X))
    loss = lambda m: lambda p, x: torch.func.functional_call(m, p, x).square().sum()
    parameters = dict(module.named_parameters())
    torch.testing.assert_close(fh.grad(loss(jitted))(parameters, X), torch.func.grad(loss(module))(parameters, X))
    assert torch.equal(fh.export(jitted, (X,)).module()(X), module(X))
    assert jit(nn.Sequential(nn.Linear(3, 2), nn.ReLU()))[0].out_features == 2


def test_parametrizations_of_either():
    for of in (lambda module, jitted: module, lambda module, jitted: jitted):
        module = nn.Linear(3, 3)
        jitted = jit(module)
        expected = module(X)
        torch.nn.utils.parametrizations.weight_norm(of(module, jitted))
        torch.testing.assert_close(jitted(X), expected)
        torch.testing.assert_close(jitted.weight, module.weight)
        assert list(jitted.state_dict()) == list(module.state_dict())
        torch.nn.utils.parametrize.remove_parametrizations(of(module, jitted), "weight")
        torch.testing.assert_close(jitted(X), expected)
        assert jitted.weight is module.weight


def test_it_is_freed():
    module = make()
    jitted = jit(module)
    jitted(X)
    watched = weakref.ref(module), weakref.ref(jitted)
    del module, jitted
    assert are_gone(*watched)


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_data_parallel_around_and_inside(process_group):
    parallel = nn.parallel.DistributedDataParallel

    def train(wrap):
        module = make()
        model = wrap(module)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(X).square().sum().backward()
            optimizer.step()
        model.eval()
        assert not module.training
        return model.state_dict(), model

    expected, _ = train(parallel)
    for wrap in (lambda m: parallel(jit(m)), lambda m: jit(parallel(m))):
        state, model = train(wrap)
        torch.testing.assert_close(state, expected)
        assert isinstance(model, parallel)
        assert repr(model.module).startswith("jit(")
        assert model.module.cache_info()[:2] == (2, 1)
    assert model.cache_info() == model.module.cache_info()
    with model.no_sync():
        model(X).sum().backward()


# ---------------------------------------------------------------------------------------------------------------------
# decorators


def test_transforms_with_options_are_decorators():
    x, y = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])

    @fh.jit(backend="eager", static_argnums=1)
    def scaled(x, n):
        return x * n

    @fh.vmap(in_dims=(0, None))
    def dot(x, y):
        return x * y.sum()

    @fh.grad(argnums=1)
    def by_y(x, y):
        return (x * y).sum()

    @fh.value_and_grad(has_aux=True)
    def with_aux(x):
        return x.sum(), "aux"

    @fh.jacrev(argnums=1)
    def rows(x, y):
        return x * y

    @fh.jacfwd()
    def columns(x):
        return x**2

    @fh.hessian(argnums=1)
    def second(x, y):
        return (x * y**2).sum()

    @fh.checkpoint(policy=fh.checkpoint_policies.save_matmuls)
    def again(x):
        return x.sin()

    assert torch.equal(scaled(x, 3), x * 3)
    assert scaled.__name__ == "scaled"
    assert torch.equal(dot(x, y), x * 7)
    assert torch.equal(by_y(x, y), x)
    assert with_aux(x)[0][1] == "aux"
    assert torch.equal(rows(x, y), torch.diag(x))
    assert torch.equal(columns(x), torch.diag(2 * x))
    assert torch.equal(second(x, y), torch.diag(2 * x))
    assert torch.equal(again(x), x.sin())


def test_a_decorator_of_methods_and_modules():
    class Model:
        @fh.jit(backend="eager")
        def double(self, x):
            return x * 2

    assert torch.equal(Model().double(X), X * 2)
    assert isinstance(fh.jit(backend="eager")(nn.Linear(3, 3)), nn.Linear)


def test_a_module_that_torch_compiled() -> None:
    """``torch.compile`` makes a module around the module, whose mode is that of the inner one."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).eval()
    outer = torch.compile(model, backend="eager")
    jitted = jit(outer)
    expected = model(X)
    assert torch.equal(jitted(X), expected) and jit(lambda x: outer(x) * 2)(X).equal(expected * 2)
    assert len(fh.make_graph(outer)(X)(X)) == 4
    assert "no loops" in str(fh.explain(jitted)(X))
    model[0] = nn.Linear(3, 3)
    assert torch.equal(jitted(X), model(X)) and not torch.equal(jitted(X), expected)
    outer.register_forward_hook(lambda module, args, result: result + 1)
    assert torch.equal(jitted(X), model(X) + 1)
    model.train()
    assert (jitted(X) == 1).any()


def test_forward_has_the_signature_and_the_documentation_of_the_modules():
    """Trainers look at it for the names of arguments."""
    module = nn.Linear(2, 2)
    jitted = fh.jit(module, backend="eager")
    assert inspect.signature(jitted.forward) == inspect.signature(module.forward)
    assert inspect.signature(jitted) == inspect.signature(module)
    assert inspect.getdoc(jitted.forward) == inspect.getdoc(module.forward)
