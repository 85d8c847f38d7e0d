"""While loops in reverse mode by kernels that hand on a tape."""

from __future__ import annotations

import io
import resource
from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from torch import Tensor

import functorch_hops as fh
from functorch_hops.ir.meta import TensorMeta
from functorch_hops.ir.subgraph import params_of
from functorch_hops.lowering.inductor import exact_code
from functorch_hops.lowering.loops.forms import TAPE_META, is_whole
from functorch_hops.lowering.loops.planning import planned
from functorch_hops.lowering.loops.plans import LoopReport, Plan
from functorch_hops.lowering.loops.tapes import taped_kernel
from functorch_hops.ops.closed_call.op import ClosedCallParams
from functorch_hops.ops.closed_call.taped import partition_of
from modes import same

N = 6


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def python_while(cond_fn: Any, body_fn: Any, value: Any) -> Any:
    while cond_fn(value):
        value = body_fn(value)
    return value


def plan(f: Callable[..., Any], *args: Tensor) -> Plan:
    with exact_code():
        return planned(fh.jit(f).lower(*args)._body, {})


def damped(loop: Any, x: Tensor, w: Tensor) -> Any:
    return loop(lambda s: s.abs().max() > 0.3, lambda s: torch.sin(s * w) * 0.9, x)


def counted(loop: Any, x: Tensor, w: Tensor) -> Any:
    step = lambda s: (s[0] + 1, torch.sin(s[1] * w) + s[0], ~s[2])
    return loop(lambda s: s[0] < 7, step, (0, x, x[0] < 0))[1]


def with_products(loop: Any, x: Tensor, w: Tensor, b: Tensor) -> Any:
    step = lambda s: (s[0] + 1, torch.tanh(s[1] @ w + b) * 0.8)
    return loop(lambda s: (s[0] < 9) & (s[1].abs().sum() > 1e-3), step, (0, x))[1]


def within_lanes(loop: Any, x: Tensor, w: Tensor) -> Any:
    f = lambda x: loop(lambda y: y.abs() > 0.3, lambda y: torch.sin(y * w) * 0.9, x)
    return fh.vmap(f)(x) if loop is fh.while_loop else torch.stack([f(lane) for lane in x])


def around_a_loop(loop: Any, x: Tensor, w: Tensor) -> Any:
    """Each step stacks what a loop in it stacks."""
    inner = lambda s: fh.fori_loop(0, 3, lambda i, s: torch.sin(s * w + i), s) * 0.5
    return loop(lambda s: s.abs().max() > 0.3, inner, x)


def in_a_loop(loop: Any, x: Tensor, w: Tensor) -> Any:
    for scale in torch.tensor([1.0, 2.0, 0.5]) if loop is python_while else ():
        x = damped(loop, x * scale, w) + 1
    if loop is python_while:
        return x
    return fh.scan(lambda c, scale: (damped(loop, c * scale, w) + 1, None), x, torch.tensor([1.0, 2.0, 0.5]))[0]


Program = tuple[Callable[..., Any], tuple[Tensor, ...]]

PROGRAMS: dict[str, Program] = {
    "vector": (damped, (normal(N), torch.tensor(0.9))),
    "number": (damped, (torch.tensor(1.3), torch.tensor(0.9))),
    "double": (damped, (normal(N).double(), torch.tensor(0.9).double())),
    "several carries": (counted, (normal(N), torch.tensor(0.9))),
    "no step": (damped, (normal(N) * 0, torch.tensor(0.9))),
    "many steps": (damped, (normal(N) * 3, torch.tensor(1.109))),
    "products": (with_products, (normal(3, 8), normal(8, 8) / 6, normal(8) / 4)),
    "lanes": (within_lanes, (normal(N), torch.tensor(0.9))),
    "around a loop": (around_a_loop, (normal(N), torch.tensor(0.9))),
}


def loss(f: Callable[..., Any], loop: Any) -> Callable[..., Tensor]:
    return lambda *args: (f(loop, *args).cos() * 3).sum()


def gradients(f: Callable[..., Any], args: tuple[Tensor, ...]) -> Any:
    """Value and gradients by autograd."""
    leaves = [x.clone().requires_grad_() for x in args]
    value = f(*leaves)
    return value.detach(), torch.autograd.grad(value, leaves, materialize_grads=True)


def check(name: str) -> Plan:
    f, args = PROGRAMS[name]
    ours = loss(f, fh.while_loop)
    expected = gradients(loss(f, python_while), args)
    g = fh.value_and_grad(ours, argnums=tuple(range(len(args))))
    made = plan(g, *args)
    tolerances = {"rtol": 1e-4, "atol": 1e-5}
    same(list(made.body(*args)), optree.tree_leaves(expected), **tolerances)
    same(fh.jit(g)(*args), expected, **tolerances)
    same(gradients(fh.jit(ours), args), expected, **tolerances)
    return made


def test_a_tape_goes_from_one_kernel_to_another() -> None:
    made = check("vector")
    assert made.loops == (LoopReport("while_loop", "tape"), LoopReport("scan", "tape"))
    writer, reader = (node for node in made.body.module.graph.nodes if node.target is taped_kernel)
    assert writer.args[1] is None and reader.args[1].args[0] is writer
    assert "u0" not in str([node.meta["val"] for node in made.body.module.graph.nodes if node.op == "call_function"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PROGRAMS if name != "vector"])
def test_gradients_by_tapes(name: str) -> None:
    assert [report.taken for report in check(name).loops][:2] == ["tape", "tape"]


@pytest.mark.usefixtures("no_graph_around")
def test_tapes_in_the_steps_of_a_loop() -> None:
    """Each step writes a tape, reads it, and frees it; by autograd the loop backwards does."""
    args = normal(N), torch.tensor(0.9)
    expected = gradients(loss(in_a_loop, python_while), args)
    f = loss(in_a_loop, fh.while_loop)
    g = fh.value_and_grad(f, argnums=(0, 1))
    assert [report.taken for report in plan(g, *args).loops].count("tape") == 2
    same(fh.jit(g)(*args), expected, rtol=1e-4, atol=1e-5)
    same(gradients(fh.jit(f), args), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("no_graph_around")
def test_the_forward_graph_hands_its_tape_to_the_backward_graph() -> None:
    """Each is one kernel; what fails behind a tape frees it."""

    def f(x: Tensor, w: Tensor, n: Tensor) -> Any:
        y = fh.while_loop(lambda s: s[0] < 4, lambda s: (s[0] + 1, torch.sin(s[1] * w)), (0, x))[1]
        return y.sum(), 6 // n

    x, w = normal(N).requires_grad_(), torch.tensor(0.9, requires_grad=True)
    expected = torch.autograd.grad(f(x, w, torch.tensor([2]))[0], (x, w))
    jitted = fh.jit(f)
    same(torch.autograd.grad(jitted(x, w, torch.tensor([2]))[0], (x, w)), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        jitted(x, w, torch.tensor([0]))


@pytest.mark.slow
def test_tapes_in_a_kernel_are_freed() -> None:
    step = lambda s: (s[0] + 1, torch.sin(s[1]))
    g = fh.jit(fh.grad(lambda x: fh.while_loop(lambda s: s[0] < 100, step, (0, x))[1].sum()))
    x = torch.ones(100_000)  # 40 MB a tape
    g(x)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(20):
        g(x)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@pytest.mark.slow
def test_a_default_device_is_not_that_of_a_tape() -> None:
    f, args = PROGRAMS["vector"]
    with torch.device("meta"):
        found = gradients(fh.jit(loss(f, fh.while_loop)), args)
    same(found, gradients(loss(f, python_while), args), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_loop_runs_once() -> None:
    """The forward graph writes the tape, the backward graph reads it and has no other loop."""
    f, args = PROGRAMS["vector"]
    x, w = (x.clone().requires_grad_() for x in args)
    jitted = fh.jit(loss(f, fh.while_loop))
    value = jitted(x, w)
    params = value.grad_fn.params  # type: ignore[union-attr]
    assert isinstance(params, ClosedCallParams)
    part = partition_of(params, (True, True))
    assert TAPE_META in part.residuals
    for body, tape in ((part.forward, False), (part.backward, True)):
        nodes = body.module.graph.nodes
        (kernel,) = (node for node in nodes if node.target is taped_kernel)
        assert (kernel.args[1] is not None) is tape and not any(params_of(node, body.module) for node in nodes)
    (tape,) = (x for x in value.grad_fn.saved_tensors if TensorMeta.of(x) == TAPE_META)  # type: ignore[union-attr]
    assert is_whole(tape)


def on_disk(x: Tensor) -> io.BytesIO:
    """The whole storage of a tensor, as ``torch.save`` writes it."""
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return file


@pytest.mark.slow
def test_what_reads_a_tape_again_and_what_can_not() -> None:
    f, args = PROGRAMS["vector"]
    found = []
    for backend in ("inductor", "eager"):
        jitted = fh.jit(loss(f, fh.while_loop), backend=backend)
        x, w = (x.clone().requires_grad_() for x in args)
        value = jitted(x, w)
        once = torch.autograd.grad(value, (x, w), retain_graph=True)
        twice = torch.autograd.grad(value, (x, w), retain_graph=True)
        rows = torch.autograd.grad(value, x, torch.arange(3.0), is_grads_batched=True, retain_graph=True)
        first = torch.autograd.grad(value, (x, w), create_graph=True)
        second = torch.autograd.grad(first[0].square().sum() + first[1], (x, w))
        with torch.autograd.graph.save_on_cpu():
            copied = torch.autograd.grad(jitted(x, w), (x, w))
        with torch.autograd.graph.saved_tensors_hooks(on_disk, torch.load):
            stored = jitted(x, w)
        jitted(2 * x, w)  # another tape, where the first one was
        loaded = torch.autograd.grad(stored, (x, w))
        of_gradient = fh.grad(jitted)(*args), fh.vmap(fh.grad(jitted), in_dims=(0, None))(args[0].expand(2, N), args[1])
        found.append([once, twice, rows, [y.detach() for y in first], second, copied, loaded, of_gradient])
    same(found[0], found[1], rtol=1e-4, atol=1e-5)


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "second derivative": (lambda f: fh.grad(lambda x, w: fh.grad(f)(x, w).sum()), "second derivative"),
    "lanes of gradients": (
        lambda f: lambda x, w: fh.vmap(fh.grad(f), in_dims=(0, None))(torch.stack([x, 2 * x]), w),
        "more than the loop of its gradient",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_loops_without_a_tape_say_why(name: str) -> None:
    transform, reason = REFUSED[name]
    f, args = PROGRAMS["vector"]
    made = plan(transform(loss(f, fh.while_loop)), *args)
    assert "native" in [report.taken for report in made.loops]
    assert any(reason in str(report.reason) for report in made.loops), made.loops


@pytest.mark.slow
def test_tapes_are_freed_with_the_graph() -> None:
    step = lambda s: (s[0] + 1, torch.sin(s[1]))
    f = fh.jit(lambda x: fh.while_loop(lambda s: s[0] < 100, step, (0, x))[1].sum())
    x = torch.ones(100_000, requires_grad=True)  # 40 MB a tape
    f(x).backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(20):
        value = f(x)
        if i % 2:
            value.backward()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def _backward(x: Tensor, ct: Tensor) -> tuple[Tensor]:
    fh.debug.print("back {:.3f}", ct[1])
    return (ct * x.cos(),)


watched = fh.custom_vjp(torch.sin)
watched.defvjp(lambda x: (x.sin(), x), _backward)


def eventful(x: Tensor, w: Tensor) -> Tensor:
    """Effects in the test, in the step, in a loop in it, and in its gradient."""

    def goes_on(s: Tensor) -> Tensor:
        fh.debug.print("test {:.3f}", s.abs().max())
        return s.abs().max() > 0.3

    def inner(i: Any, s: Tensor) -> Tensor:
        fh.debug.print("  inner {iteration} {i} {:.3f}", s[0], i=i)
        return torch.sin(s * w)

    def step(s: Tensor) -> Tensor:
        fh.debug.check(s.abs().max() < 2, "{:.1f} is too large", s.max())
        return watched(fh.fori_loop(0, 2, inner, s)) * 0.9

    return fh.while_loop(goes_on, step, x).sum()


@pytest.mark.slow
@pytest.mark.parametrize("around", [0.0, 1.0], ids=["one kernel", "a graph around"])
def test_what_happens_in_a_loop_with_a_tape_happens_once(around: float, capsys: pytest.CaptureFixture[str]) -> None:
    def f(x: Tensor, w: Tensor) -> Tensor:
        return eventful(x, w) + (torch.linalg.svdvals(x.reshape(2, -1)).sum() if around else 0)

    args = torch.linspace(-1, 1.2, N), torch.tensor(0.9)
    expected = gradients(f, args)[1]
    printed = capsys.readouterr().out
    assert "inner (1, 1)" in printed and "back" in printed
    of_gradient, jitted = fh.jit(fh.grad(f, argnums=(0, 1))), fh.jit(f)
    assert [loop.lowering for loop in fh.explain(of_gradient)(*args).loops].count("tape") == 2
    for found in (of_gradient, lambda *args: gradients(jitted, args)[1]):
        for _ in range(2):
            capsys.readouterr()
            same(found(*args), expected, rtol=1e-4, atol=1e-5)
            assert capsys.readouterr().out == printed
        with pytest.raises(fh.CheckError, match=r"^3\.6 is too large\n  iteration: 0\n"):
            found(3 * args[0], args[1])


@pytest.mark.slow
def test_what_ends_a_loop_frees_its_tape() -> None:
    def f(x: Tensor) -> Tensor:
        def step(s: tuple[int, Tensor]) -> tuple[int, Tensor]:
            fh.debug.check(s[0] < 100, "it goes on")
            return s[0] + 1, torch.sin(s[1])

        return fh.while_loop(lambda s: s[0] < 200, step, (0, x))[1].sum()

    x = torch.ones(100_000, requires_grad=True)  # 40 MB a tape
    found = fh.jit(f), fh.jit(fh.grad(f))
    before = 0
    for _ in range(20):
        for g in found:
            with pytest.raises(fh.CheckError):
                g(x)
        before = before or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@pytest.mark.slow
def test_an_effect_happens_once_where_the_forward_graph_runs_again() -> None:
    seen: list[float] = []

    @fh.jit
    def f(x: Tensor) -> Tensor:
        fh.debug.callback(lambda total: seen.append(float(total)), x.sum())
        return fh.while_loop(lambda c: c[1] < 3, lambda c: (c[0].sin() * x, c[1] + 1), (x, torch.tensor(0)))[0].sum()

    x = torch.full((N,), 0.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(f(x), x, create_graph=True)
    torch.autograd.grad(gradient.sum(), x)
    assert seen == [0.5 * N]
