"""checkpoint: the same function under every transform, its policies and names, and what is computed again."""

from __future__ import annotations

import contextlib
import functools
import operator
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import functorch_hops as fh
from modes import every_mode, same

policies = fh.checkpoint_policies
W = torch.tensor([[0.4, -0.3, 0.2], [0.1, 0.5, -0.6], [-0.2, 0.3, 0.7]], dtype=torch.float64)
X = torch.tensor([0.3, -0.7, 0.5], dtype=torch.float64)


def calls(graph: Any, name: str) -> int:
    """How often an ATen operator is called in a graph and in the bodies in it, each body counted once per use."""
    return len(re.findall(rf" = {name}[(.]", graph.as_text()))


# ---------------------------------------------------------------------------------------------------------------------
# the same function


def layer(w: Tensor, x: Tensor) -> Tensor:
    hidden = fh.checkpoint_name(torch.tanh(w @ x), "hidden")
    return fh.checkpoint_name(hidden * x, "product").sin() + w[0]


def network(wrap: Callable[[Any], Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """A wrapped layer which closes over a weight, in a wrapped layer that takes it."""

    def f(w: Tensor, x: Tensor) -> Tensor:
        outer = wrap(lambda w, x: wrap(lambda x: layer(w, x))(x) * 0.5)
        return (outer(w, x) * x).sum()

    return f


TRANSFORMS = {
    "grad": lambda t, f: t.grad(f, argnums=(0, 1)),
    "vmap(grad)": lambda t, f: t.vmap(t.grad(f, argnums=(0, 1)), in_dims=(None, 0)),
    "grad(vmap)": lambda t, f: t.grad(lambda w, x: t.vmap(f, in_dims=(None, 0))(w, x).sum(), argnums=(0, 1)),
    "hessian": lambda t, f: t.hessian(f, argnums=(0, 1)),
    "jacrev(jacfwd)": lambda t, f: t.jacrev(t.jacfwd(f, argnums=1), argnums=0),
    "jacrev(grad)": lambda t, f: t.jacrev(t.grad(f, argnums=1), argnums=0),
}
POLICIES = {
    "none": None,
    "nothing": policies.nothing,
    "everything": policies.everything,
    "matmuls": policies.save_matmuls,
    "names": policies.save_names("product"),
    "combined": policies.union(policies.save_matmuls, policies.complement(policies.save_names("hidden"))),
}
MODES = {
    "plain": lambda f: f,
    "captured": lambda f: functools.wraps(f)(lambda *args: _captured(f, *args)),
    "in jit": functools.partial(fh.jit, backend="eager"),
}


def _captured(f: Any, *args: Any) -> Any:
    with fh.eager_capture():
        return f(*args)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("mode", MODES)
def test_is_the_same_function(transform: str, policy: str, mode: str) -> None:
    x = torch.stack([X, X * 2, -X]) if "vmap" in transform else X
    expected = TRANSFORMS[transform](torch.func, network(lambda f: f))(W, x)
    checkpointed = network(functools.partial(fh.checkpoint, policy=POLICIES[policy]))
    torch.testing.assert_close(MODES[mode](TRANSFORMS[transform](fh, checkpointed))(W, x), expected)


@pytest.mark.parametrize("transform", ["grad", "vmap(grad)", "hessian"])
def test_torch_func_takes_it(transform: str) -> None:
    """pytorch/pytorch 122729 (torch.func refuses torch's checkpoint)."""
    x = torch.stack([X, -X]) if "vmap" in transform else X
    expected = TRANSFORMS[transform](torch.func, network(lambda f: f))(W, x)
    torch.testing.assert_close(TRANSFORMS[transform](torch.func, network(fh.checkpoint))(W, x), expected)


def test_vmap_of_checkpointed_models() -> None:
    """pytorch/pytorch 165880: an ensemble of models with checkpointed blocks, its per-sample gradients included."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    params = {k: torch.stack([v.detach(), v.detach() * 0.5]) for k, v in model.named_parameters()}

    def loss(wrap: Any, p: dict[str, Tensor], x: Tensor) -> Tensor:
        block = wrap(lambda x: torch.func.functional_call(model, p, (x,)))
        return block(block(x)).square().sum()

    over = lambda t, f: t.vmap(t.vmap(t.grad(f), in_dims=(None, 0)), in_dims=(0, None))
    xs = torch.stack([X, -X, X * 3])
    expected = over(torch.func, functools.partial(loss, lambda f: f))(params, xs)
    torch.testing.assert_close(over(torch.func, functools.partial(loss, fh.checkpoint))(params, xs), expected)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_backward_and_double_backward(policy: str, compiled: bool) -> None:
    checkpointed = network(functools.partial(fh.checkpoint, policy=POLICIES[policy]))
    if compiled:
        checkpointed = fh.jit(checkpointed, backend="eager")
    results = []
    for f in (checkpointed, network(lambda f: f)):
        w, x = W.clone().requires_grad_(), X.clone().requires_grad_()
        grads = torch.autograd.grad(f(w, x), (w, x), create_graph=True)
        results.append((*grads, *torch.autograd.grad(sum(g.square().sum() for g in grads), (w, x))))
    torch.testing.assert_close(*results)


def test_gradgradcheck() -> None:
    f = fh.checkpoint(lambda w, x: layer(w, x), policy=policies.save_names("hidden"))
    inputs = (W.clone().requires_grad_(), X.clone().requires_grad_())
    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


def test_binomial_checkpoints() -> None:
    """Checkpoints of checkpoints, as in JAX's test_remat_binomial_checkpointing."""

    def composed(functions: list[Any]) -> Any:
        if len(functions) == 1:
            return functions[0]
        first, second = composed(functions[: len(functions) // 2]), composed(functions[len(functions) // 2 :])
        return fh.checkpoint(lambda x: second(first(x)))

    f = composed([torch.sin, torch.cos, torch.tanh, torch.exp])
    plain = lambda x: x.sin().cos().tanh().exp()
    torch.testing.assert_close(fh.grad(f)(X[0]), torch.func.grad(plain)(X[0]))
    torch.testing.assert_close(fh.grad(fh.grad(f))(X[0]), torch.func.grad(torch.func.grad(plain))(X[0]))


def test_arguments_and_outputs_are_trees() -> None:
    @fh.checkpoint
    def f(pair: Any, *, scale: Any, use_reentrant: bool) -> Any:
        return {"y": pair[0] * scale["s"] if use_reentrant else pair[0], "label": "a", "none": None, "same": pair[1]}

    def loss(x: Tensor) -> Tensor:
        out = f((x, X), scale={"s": x}, use_reentrant=True)
        assert out["label"] == "a"
        assert out["none"] is None
        return out["y"].sum() + out["same"].sum()

    torch.testing.assert_close(fh.grad(loss)(X), 2 * X)
    x = X.clone().requires_grad_()
    loss(x).backward()
    torch.testing.assert_close(x.grad, 2 * X)


def test_reads_what_an_enclosing_function_computed() -> None:
    """As in JAX's test_remat_freevars."""

    def f(wrap: Any, x: Tensor) -> Tensor:
        y = 2 * x.sin()
        return wrap(lambda x: x.cos() * y.sin())(x)

    expected = torch.func.jvp(lambda x: f(lambda g: g, x), (X,), (X,))
    torch.testing.assert_close(fh.jvp(lambda x: f(fh.checkpoint, x), (X,), (X,)), expected)
    _, push = fh.linearize(lambda x: f(fh.checkpoint, x), X)
    torch.testing.assert_close(push(X), expected[1])


# ---------------------------------------------------------------------------------------------------------------------
# what is computed again


def _chain(w: Tensor, x: Tensor) -> Tensor:
    return fh.checkpoint_name((w @ x).sin(), "inner").exp().sum()


@pytest.mark.parametrize(
    ("policy", "products", "sines", "exps"),
    [
        (policies.nothing, 2, 2, 2),
        (policies.save_matmuls, 1, 2, 2),
        (policies.save_names("inner"), 2, 1, 2),
        (policies.everything, 1, 1, 1),
        (policies.union(policies.save_matmuls, policies.save_names("inner")), 1, 1, 2),
        (policies.intersection(policies.save_matmuls, policies.save_names("inner")), 2, 2, 2),
        # cos of the product is saved, so nothing needs the product.
        (policies.complement(policies.save_matmuls), 1, 1, 1),
        (policies.save_names("another"), 2, 2, 2),
    ],
    ids=repr,
)
def test_a_policy_saves_what_it_says(policy: Any, products: int, sines: int, exps: int) -> None:
    """``nothing`` computes all again (the derivative of sin reads the product); a policy takes its values out of it."""
    graph = fh.make_graph(fh.value_and_grad(fh.checkpoint(_chain, policy=policy), argnums=0))(W, X)
    assert [calls(graph, name) for name in ("mv", "sin", "exp")] == [products, sines, exps]


@pytest.mark.parametrize("transform", ["vmap", "jvp", "jit"])
def test_names_survive_rewriting(transform: str) -> None:
    policy = policies.save_names("inner")

    def count(policy: Any) -> int:
        f = fh.checkpoint(_chain, policy=policy)
        if transform == "vmap":
            g = lambda w, x: fh.vmap(f, in_dims=(None, 0))(w, torch.stack([x, -x])).sum()
        elif transform == "jvp":
            g = lambda w, x: fh.jvp(lambda x: f(w, x), (x,), (x,))[1]
        else:
            g = fh.jit(f, backend="eager")
        return calls(fh.make_graph(fh.grad(g))(W, X), "sin")

    assert count(policy) < count(policies.nothing)


def test_tangents_have_the_name_too() -> None:
    f = fh.checkpoint(lambda x: fh.checkpoint_name(x.exp(), "a").sin(), policy=policies.save_names("a"))
    graph = fh.make_graph(lambda x: fh.jvp(f, (x,), (x,)))(X)
    assert graph.as_text().count("= checkpoint_name[name=a]") == 2


def test_a_name_is_no_operation_for_compilers() -> None:
    seen = []

    def backend(graph: fx.GraphModule, inputs: Any) -> Any:
        seen.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return graph

    torch.testing.assert_close(
        fh.jit(lambda x: fh.checkpoint_name(x.sin(), "a").cos(), backend=backend)(X), X.sin().cos()
    )
    assert seen == [[torch.ops.aten.sin.default, torch.ops.aten.cos.default]]


def test_a_policy_reaches_into_loops() -> None:
    """A matrix product inside a scan inside the checkpoint is as little computed again as one outside."""

    def f(w: Tensor, x: Tensor) -> Tensor:
        return fh.scan(lambda h, _: ((w @ h).sin(), None), x, length=4)[0].sum()

    def products(policy: Any) -> int:
        return calls(fh.make_graph(fh.grad(fh.checkpoint(f, policy=policy), argnums=1))(W, X), "mv")

    assert products(policies.save_matmuls) + 1 == products(policies.nothing)
    expected = torch.func.grad(lambda w, x: functools.reduce(lambda h, _: (w @ h).sin(), range(4), x).sum())(W, X)
    torch.testing.assert_close(fh.grad(fh.checkpoint(f, policy=policies.save_matmuls))(W, X), expected)


def test_a_name_reaches_out_of_loops() -> None:
    def f(x: Tensor) -> Tensor:
        return fh.scan(lambda h, _: (fh.checkpoint_name(h.exp().sin(), "step"), None), x, length=4)[0].sum()

    def sines(policy: Any) -> int:
        return calls(fh.make_graph(fh.grad(fh.checkpoint(f, policy=policy)))(X), "exp")

    assert sines(policies.save_names("step")) < sines(policies.nothing)


def test_plain_eager_computes_once_more() -> None:
    count = 0

    def f(x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return x.sin().cos()

    x = X.clone().requires_grad_()
    out = fh.checkpoint(f)(x)
    assert count == 1
    out.sum().backward()
    assert count == 2


# ---------------------------------------------------------------------------------------------------------------------
# random numbers


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("mode", [contextlib.nullcontext, fh.eager_capture])
def test_recomputation_sees_the_same_random_numbers(policy: str, mode: Any) -> None:
    """The function is linear in x given its random numbers: its value is the inner product of x and the gradient."""

    def f(x: Tensor) -> Tensor:
        return (torch.dropout(x, 0.5, True) * torch.rand_like(x)).sum()

    with mode():
        value, grad = fh.value_and_grad(fh.checkpoint(f, policy=POLICIES[policy]))(X)
        torch.testing.assert_close(value, grad @ X)
        x = X.clone().requires_grad_()
        value = fh.checkpoint(f, policy=POLICIES[policy])(x)
        value.backward()
        assert x.grad is not None
        torch.testing.assert_close(value.detach(), x.grad @ X)


def test_random_numbers_of_an_unbounded_loop_are_drawn_again() -> None:
    """The function is linear in x given its random numbers."""

    def draw(x: Tensor) -> Tensor:
        return fh.while_loop(lambda s: s[1] < 2, lambda s: (s[0] * torch.rand(()), s[1] + 1), (x, 0))[0]

    with fh.eager_capture():
        value, grad = fh.value_and_grad(lambda x: fh.scan(lambda c, _: (draw(c), None), x, length=2)[0].sum())(X)
    torch.testing.assert_close(value, grad @ X)


# ---------------------------------------------------------------------------------------------------------------------
# compilation does not undo it


def _normalise(x: Tensor) -> Tensor:
    for _ in range(4):
        x = torch.softmax(x.sin() + x, 0) * torch.softmax(x.cos(), 1)
    return x


def _blocks(wrap: Callable[[Any], Any], x: Tensor) -> Tensor:
    for _ in range(4):
        x = wrap(_normalise)(x)
    return x.square().sum()


def _peak(function: Callable[[], Any]) -> int:
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        function()
    events = sorted((e.start_ns(), e.nbytes()) for e in profile.kineto_results.events() if e.name() == "[memory]")
    live = peak = 0
    for _, size in events:
        live += size
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compilation_keeps_the_recomputation(backend: str) -> None:
    """Forward and recomputation are in one graph here, and without a barrier Inductor fuses one with the other."""
    x = torch.rand(256, 128)
    peaks, results = [], []
    for wrap in (lambda f: f, fh.checkpoint):
        gradient = fh.jit(fh.grad(functools.partial(_blocks, wrap)), backend=backend)
        results.append(gradient(x))
        peaks.append(_peak(lambda: gradient(x)))
    torch.testing.assert_close(*results)
    assert peaks[1] < peaks[0] / 2


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_backward_through_compiled_checkpoints(backend: str) -> None:
    kept, grads = [], []
    for wrap in (lambda f: f, fh.checkpoint):
        x = torch.rand(256, 128, requires_grad=True)
        torch.manual_seed(0)
        torch.nn.init.uniform_(x)
        compiled = fh.jit(functools.partial(_blocks, wrap), backend=backend)
        compiled(x).backward()
        grads.append(x.grad)
        values: list[Tensor] = []
        size = lambda t: values.append(t) or t
        with torch.autograd.graph.saved_tensors_hooks(size, lambda t: t):
            compiled(x)
        kept.append(sum(t.nbytes for t in values))
    torch.testing.assert_close(*grads)
    assert kept[1] <= 6 * x.nbytes, "the inputs of the blocks, and the output of the last for the square"
    assert kept[1] < kept[0] / 2


# ---------------------------------------------------------------------------------------------------------------------
# misuse


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: fh.checkpoint(torch.sin, policy="save_matmuls"), fh.ArgumentValueError),
        (lambda: fh.checkpoint(torch.sin, policy=lambda value: True), fh.ArgumentTypeError),
        (lambda: fh.checkpoint(torch.sin, policy=policies.save_names), fh.ArgumentTypeError),
        (lambda: policies.union(policies.nothing, "a"), fh.ArgumentValueError),
        (lambda: policies.intersection(3), fh.ArgumentTypeError),
        (lambda: policies.complement(None), fh.ArgumentTypeError),
    ],
)
def test_what_is_no_policy_is_refused(call: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="where: policy"):
        call()


def test_what_is_no_name_is_refused() -> None:
    with pytest.raises(fh.ArgumentTypeError, match="where: name"):
        fh.checkpoint_name(X, 3)
    with pytest.raises(fh.ArgumentTypeError, match="where: names"):
        policies.save_names("a", None)


def test_a_named_value_is_not_written_to() -> None:
    def f(x: Tensor) -> Tensor:
        y = x.sin()
        fh.checkpoint_name(y, "a").add_(1)
        return y

    with pytest.raises(fh.InputMutationError, match="checkpoint_name"):
        fh.jit(f, backend="eager")(X)


def test_policies_are_values() -> None:
    assert policies.save_names("a", "b") == policies.save_names("b", "a")
    assert policies.union(policies.save_matmuls, policies.nothing) == policies.union(
        policies.nothing, policies.save_matmuls
    )
    assert repr(policies.complement(policies.save_names("b", "a"))) == "complement(save_names('a', 'b'))"
    assert (
        repr(policies.intersection(policies.everything, policies.save_matmuls))
        == "intersection(everything, save_matmuls)"
    )


def test_a_name_keeps_the_tree() -> None:
    tree = {"a": X, "b": (None, "label", 2)}
    assert fh.checkpoint_name(tree, "n") is tree
    out = fh.jit(lambda t: fh.checkpoint_name(t, "n"), backend="eager")(tree)
    torch.testing.assert_close(out["a"], X)
    assert out["b"] == (None, "label", 2)
    assert operator.is_not(out["a"], X)


@fh.custom_vjp
def sine_by_vjp(x):
    return x.sin()


sine_by_vjp.defvjp(lambda x: (x.sin(), x), lambda x, ct: (ct * x.cos(),))


@fh.custom_jvp
def sine_by_jvp(x):
    return x.sin()


sine_by_jvp.defjvp(lambda primals, tangents: (primals[0].sin(), tangents[0] * primals[0].cos()))

WITH_DERIVATIVES = {
    "grad": fh.grad(lambda y: (y**3).sum()),
    "torch_hessian": lambda x: torch.func.hessian(lambda y: (y**3).sum())(x).sum(0),
    "vjp": lambda x: fh.vjp(torch.sin, x)[1](x)[0],
    "jvp": lambda x: fh.jvp(torch.sin, (x,), (x,))[1],
    "custom_vjp": sine_by_vjp,
    "custom_jvp": sine_by_jvp,
    "random": lambda x: fh.grad(lambda y: (y**3 * torch.rand_like(y)).sum())(x),
}


@every_mode
@pytest.mark.parametrize("f", WITH_DERIVATIVES.values(), ids=WITH_DERIVATIVES)
def test_checkpoint_of_derivatives(run, f):
    """torch refuses transforms where hooks on saved tensors are in place."""
    x = torch.tensor([0.5, -1.5], dtype=torch.float64, requires_grad=True)
    g = lambda x: f(x * 2) * x
    results = []
    for h in (g, lambda x: run(lambda x: fh.checkpoint(g)(x), x)):
        torch.manual_seed(0)
        out = h(x)
        (first,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        results.append((out, first, *torch.autograd.grad(first.sum(), x)))
    same(*results)
