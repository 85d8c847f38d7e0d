"""A jitted function that differentiates by tensors that require gradients: nothing is saved for a derivative of its
results until one is asked for, and that derivative is eager's, then and in every later call.

The oracle is the same function in plain eager.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks

import functorch_hops as fh
from functorch_hops.ops.closed_call import rules, taped
from modes import same

Params = dict[str, Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parameters() -> Params:
    return {"w": nn.Parameter(normal(3, 3)), "b": nn.Parameter(normal(3, seed=1))}


X = normal(4, 3, seed=2)


def loss(p: Params, x: Tensor) -> Tensor:
    return torch.tanh(x @ p["w"] + p["b"]).pow(2).sum()


def scanned(p: Params, x: Tensor) -> Tensor:
    return fh.scan(lambda c, x: (torch.tanh(c @ p["w"] + x), None), p["b"], x)[0].pow(3).sum()


def looped(p: Params, x: Tensor) -> Tensor:
    step = lambda s: (s[0] + 1, torch.sin(s[1] @ p["w"] + p["b"]))
    return fh.while_loop(lambda s: (s[0] < 4) & (s[1].abs().sum() > 1e-3), step, (0, x))[1].pow(2).sum()


def root(p: Params, x: Tensor) -> Tensor:
    solve = lambda f, z: fh.fori_loop(0, 30, lambda _, z: z + f(z), z)
    tangent_solve = lambda f, y: torch.linalg.solve(torch.func.jacfwd(f)(y), y)
    residual = lambda z: torch.tanh(0.1 * z @ p["w"] + x[0]) * p["b"] - z
    return fh.custom_root(residual, torch.zeros(3, dtype=x.dtype), solve, tangent_solve).pow(2).sum()


def pulled(p: Params, x: Tensor) -> Any:
    value, pull = fh.vjp(lambda p: torch.tanh(x @ p["w"] + p["b"]), p)
    return value.sum(), pull(value)[0]


def descended(p: Params, x: Tensor) -> Any:
    """A step of gradient descent, and a number."""
    value, gradients = fh.value_and_grad(loss)(p, x)
    return value.detach(), {name: p[name] - 0.1 * g for name, g in gradients.items()}, torch.tensor(3)


def accumulated(p: Params, x: Tensor) -> Any:
    """The sum of the gradients of parts, in the steps of a loop."""
    add = lambda total, x: (optree.tree_map(torch.add, total, fh.grad(loss)(p, x)), None)
    return 0, fh.scan(add, optree.tree_map(torch.zeros_like, dict(p)), x)[0]


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "product": fh.value_and_grad(loss),
    "scan": fh.value_and_grad(scanned),
    "while loop": fh.value_and_grad(looped),
    "root": fh.value_and_grad(root),
    "pull function": pulled,
    "of torch": lambda p, x: torch.func.grad_and_value(loss)(p, x)[::-1],
    "for each row": lambda p, x: (0, fh.vmap(fh.grad(loss), in_dims=(None, 0))(p, x)),
    "jacobian": lambda p, x: (0, fh.jacrev(lambda p: torch.tanh(x @ p["w"] + p["b"]))(p)),
    "hessian": lambda p, x: (0, fh.hessian(lambda b: loss({**p, "b": b}, x))(p["b"])),
    "jitted inside": lambda p, x: fh.jit(fh.value_and_grad(loss), backend="eager")(p, x),
    "descent": descended,
    "in steps": accumulated,
}


def tensors(tree: Any) -> list[Tensor]:
    return [x for x in optree.tree_leaves(tree) if isinstance(x, Tensor)]


def second(f: Callable[..., Any], p: Params, **options: Any) -> Any:
    """What ``f`` returns, and the gradients of a function of it."""
    outs = f(p, X)
    differentiable = [x for x in tensors(outs) if x.requires_grad]
    total = sum(((i + 1) * x.pow(2).sum() for i, x in enumerate(differentiable)), torch.tensor(0.0))
    return outs, torch.autograd.grad(total, list(p.values()), materialize_grads=True, **options)


def how(f: Callable[..., Any], *args: Any) -> str | None:
    return fh.explain(f)(*args).backward


@pytest.fixture
def partitions(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The graphs that were split into what saves and what reads."""
    found: list[Any] = []
    for module in (rules, taped):
        split = module.partition
        monkeypatch.setattr(module, "partition", lambda *args, split=split: found.append(args) or split(*args))
    return found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_of_derivatives_are_those_of_eager(name: str) -> None:
    f, p = FUNCTIONS[name], parameters()
    jitted = fh.jit(f, backend="eager")
    expected = second(f, p)
    for _ in range(4):
        got = second(jitted, p)
        same(got, expected)
        assert [x.requires_grad for x in tensors(got)] == [x.requires_grad for x in tensors(expected)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["product", "while loop"])
def test_and_so_they_are_under_inductor(name: str) -> None:
    f, p = FUNCTIONS[name], parameters()
    jitted = fh.jit(f)
    for _ in range(3):
        same(jitted(p, X), f(p, X))
    for _ in range(3):
        same(second(jitted, p), second(f, p))


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "hessian"])
def test_nothing_is_prepared_until_one_is_asked_for(name: str, partitions: list[Any]) -> None:
    p, x = parameters(), normal(5, 3)  # of a size of its own: equal graphs are one
    jitted = fh.jit(FUNCTIONS[name], backend="eager")
    result = lambda: next(x for x in tensors(jitted(p, x)) if x.requires_grad)
    saved = lambda: result().grad_fn.saved_tensors  # type: ignore[union-attr]
    result()
    partitions.clear()  # those of the capture
    for _ in range(3):
        assert all(any(t is s for t in (*p.values(), x)) or s.numel() < 10 for s in saved())
    assert not partitions and how(jitted, p, x) == "late"
    n_saved = len(saved())
    result().sum().backward()
    assert partitions and how(jitted, p, x) == "saved"
    assert [len(saved()) > n_saved for _ in range(3)] == [True] * 3


def test_a_loss_saves_at_once() -> None:
    """Its backward pass is what it is for, whatever it differentiates by on its way."""
    p = parameters()

    def with_slope(p: Params, x: Tensor) -> Tensor:
        return fh.vmap(fh.grad(lambda x: loss(p, x)))(x).pow(2).sum()

    def adapted(p: Params, x: Tensor) -> Tensor:
        gradients = fh.grad(loss)(p, x)
        return loss({name: p[name] - 0.1 * g for name, g in gradients.items()}, x)

    for f in (loss, with_slope, adapted):
        assert how(fh.jit(f, backend="eager"), p, X) is None
        same(second(fh.jit(f, backend="eager"), p), second(f, p))


def test_without_gradients_there_is_nothing_to_say() -> None:
    f = fh.jit(fh.value_and_grad(loss), backend="eager")
    p, x = parameters(), normal(6, 3)
    assert how(f, optree.tree_map(Tensor.detach, p), x) is None
    with torch.no_grad():
        assert how(f, p, x) is None and not f(p, x)[0].requires_grad
    assert "run the graph once more" in str(fh.explain(f)(p, x))


@pytest.mark.parametrize("name", ["product", "scan", "while loop"])
def test_higher_orders(name: str) -> None:
    f, p = FUNCTIONS[name], parameters()

    def third(f: Callable[..., Any]) -> Any:
        _, gradients = second(f, p, create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in gradients), list(p.values()))

    jitted = fh.jit(f, backend="eager")
    for _ in range(3):
        same(third(jitted), third(f))


def test_a_graph_may_be_retained_and_batched() -> None:
    f, p = FUNCTIONS["scan"], parameters()

    def both(f: Callable[..., Any]) -> Any:
        _, gradients = f(p, X)
        directions = normal(5, 3, 3, seed=3)
        inputs = list(p.values())
        grad = lambda ct, **options: torch.autograd.grad(gradients["w"], inputs, ct, retain_graph=True, **options)
        return grad(directions, is_grads_batched=True), [grad(d) for d in directions[:2]]

    jitted = fh.jit(f, backend="eager")
    for _ in range(3):
        same(both(jitted), both(f))


def test_forward_mode_over_it() -> None:
    f, p = FUNCTIONS["scan"], parameters()

    def tangents(f: Callable[..., Any]) -> Any:
        with forward_ad.dual_level():
            duals = {name: forward_ad.make_dual(x, normal(*x.shape, seed=4)) for name, x in p.items()}
            return [forward_ad.unpack_dual(x).tangent for x in tensors(f(duals, X))]

    jitted = fh.jit(f, backend="eager")
    for _ in range(3):
        same(tangents(jitted), tangents(f))
        same(second(jitted, p), second(f, p))


def test_transforms_around_it() -> None:
    f, p = FUNCTIONS["scan"], parameters()
    jitted = fh.jit(f, backend="eager")
    around = lambda f: fh.grad(lambda p: f(p, X)[1]["w"].pow(2).sum())
    for _ in range(2):
        same(around(jitted)(p), around(f)(p))
        same(fh.vmap(lambda x: jitted(p, x[None]))(X), fh.vmap(lambda x: f(p, x[None]))(X))


def test_what_was_written_to_is_noticed() -> None:
    """A late gradient runs the function again. Later calls save what it reads, which is not this parameter."""
    f = fh.value_and_grad(lambda p, x: 1.25 * loss(p, x))  # of which no other test made a derivative
    jitted = fh.jit(f, backend="eager")

    def gradient_of_gradient(f: Callable[..., Any]) -> Any:
        p = parameters()
        gradients = f(p, X)[1]
        with torch.no_grad():
            p["w"].mul_(0.5)
        gradients["b"].sum().backward()
        return p["w"].grad, p["b"].grad

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradient_of_gradient(jitted)
    for _ in range(2):
        same(gradient_of_gradient(jitted), gradient_of_gradient(f))


def test_a_buffer_is_read_as_it_was() -> None:
    class Model(nn.Module):
        scale: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(normal(3))
            self.register_buffer("scale", torch.ones((), dtype=torch.float64))

        def forward(self, x: Tensor) -> Any:
            self.scale.mul_(2)
            return fh.value_and_grad(lambda w: (x @ w).tanh().pow(2).sum() * self.scale.clone())(self.w)

    eager, model = Model(), Model()
    jitted = fh.jit(model, backend="eager")
    for _ in range(4):
        got, expected = jitted(X), eager(X)
        same(got, expected)
        for m, (_, gradient) in ((model, got), (eager, expected)):
            m.w.grad = None
            gradient.pow(2).sum().backward()
        same(model.w.grad, eager.w.grad)


AROUND: dict[str, Callable[[Any], Any]] = {
    "value_and_grad": lambda jit: fh.value_and_grad(jit(scanned)),
    "grad of torch": lambda jit: lambda p, x: (0, torch.func.grad(jit(scanned))(p, x)),
    "for each row": lambda jit: lambda p, x: (0, fh.vmap(fh.grad(jit(loss)), in_dims=(None, 0))(p, x)),
    "pull function": lambda jit: lambda p, x: (0, fh.vjp(lambda p: jit(scanned)(p, x), p)[1](torch.ones_like(x[0, 0]))),
    "twice": lambda jit: lambda p, x: (0, fh.grad(lambda p: fh.grad(jit(scanned))(p, x)["b"].sum())(p)),
}


@pytest.mark.parametrize("name", AROUND)
def test_transforms_of_compiled_functions(name: str) -> None:
    p, jit = parameters(), lambda f: fh.jit(f, backend="eager")
    f, expected = AROUND[name](jit), AROUND[name](lambda f: f)
    for _ in range(3):
        same(f(p, X), expected(p, X))
    for _ in range(3):
        same(second(f, p), second(expected, p))
        grads = [second(g, p, create_graph=True)[1] for g in (f, expected)]
        third = [torch.autograd.grad(sum(x.pow(2).sum() for x in g), list(p.values())) for g in grads]
        same(*third)


@pytest.mark.parametrize("name", ["value_and_grad", "grad of torch"])
def test_of_a_transform_only_the_gradient_is_prepared(name: str, partitions: list[Any]) -> None:
    for requires_grad in (False, True):
        p = {name: x.detach().requires_grad_(requires_grad) for name, x in parameters().items()}
        f, x = AROUND[name](lambda f: fh.jit(f, backend="eager")), normal(7 + requires_grad, 3)
        partitions.clear()
        outs = f(p, x)
        assert len({graph for graph, *_ in partitions}) == 1
        if requires_grad:
            with torch.no_grad():
                p["w"].mul_(0.5)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                outs[1]["b"].sum().backward()


def asked(p: Params, x: Tensor, **options: Any) -> Any:
    value = scanned(p, x)
    return value, torch.autograd.grad(value, list(p.values()), **options)


def test_gradients_asked_for_inside(partitions: list[Any]) -> None:
    p, x = parameters(), normal(9, 3)
    f = fh.jit(asked, backend="eager")
    same(f(p, x), asked(p, x))
    f(p, x)
    assert how(f, p, x) == "late" and not partitions
    value, gradients = f(p, x)
    assert [g.requires_grad for g in gradients] == [False, False]
    for _ in range(2):
        same(torch.autograd.grad(value, list(p.values()), retain_graph=True), gradients)
    closed = fh.jit(lambda x: asked(p, x), backend="eager")
    assert how(closed, normal(10, 3)) == "late"
    for options in ({"create_graph": True}, {"retain_graph": True}):
        g = lambda p, x, options=options: asked(p, x, **options)
        assert how(fh.jit(g, backend="eager"), p, x) is None
        same(second(fh.jit(g, backend="eager"), p), second(g, p))


def test_hooks_see_and_replace_what_is_saved() -> None:
    f, p = FUNCTIONS["scan"], parameters()
    jitted = fh.jit(f, backend="eager")
    for _ in range(3):
        with saved_tensors_hooks(lambda x: x.detach().clone(), lambda x: x):
            got = second(jitted, p)
        same(got, second(f, p))


def test_random_numbers_are_those_of_the_call() -> None:
    def dropped(p: Params, x: Tensor) -> Tensor:
        return loss(p, torch.nn.functional.dropout(x, 0.5))

    f, p = fh.value_and_grad(dropped), parameters()
    jitted = fh.jit(f, backend="eager")
    for seed in range(4):
        torch.manual_seed(seed)
        expected = second(f, p)
        torch.manual_seed(seed)
        same(second(jitted, p), expected)


def test_the_user_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    def told(p: Params, x: Tensor) -> Tensor:
        fh.debug.print("told {}", x[0, 0])
        return loss(p, x)

    jitted = fh.jit(fh.value_and_grad(told), backend="eager")
    second(jitted, parameters())
    assert capfd.readouterr().out.count("told") == 1


def test_python_runs_once() -> None:
    calls = []

    def twice(x: Any) -> Any:
        calls.append(x)
        return x * 2

    def called(p: Params, x: Tensor) -> Tensor:
        return loss(p, fh.pure_callback(twice, torch.empty_like(x), x))

    jitted = fh.jit(fh.value_and_grad(called), backend="eager")
    second(jitted, parameters())
    assert len(calls) == 1


def test_open_sizes() -> None:
    p = parameters()
    jitted = fh.jit(fh.value_and_grad(scanned), backend="eager", dynamic=True)
    for n in (4, 3, 2, 4):
        at = lambda f, n=n: second(lambda p, x: f(p, x[:n]), p)
        same(at(jitted), at(fh.value_and_grad(scanned)))
