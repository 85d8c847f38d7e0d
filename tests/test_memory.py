"""What reverse mode keeps: the default partition of loops and branches, and scan's remat."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import functorch_hops as fh
from functorch_hops.derive.partition import Partition, partition
from functorch_hops.ir.meta import TensorMeta
from functorch_hops.ir.subgraph import Subgraph
from functorch_hops.trace.speculate import speculate_subgraph

B, H = 2, 4
CPU = torch.device("cpu")


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> TensorMeta:
    return TensorMeta(shape, dtype, CPU)


def live_and_peak(function: Callable[[], Any]) -> tuple[int, int]:
    """Bytes that torch's allocator holds for a function's result when it has returned, and at most meanwhile."""
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        kept = function()
    events = sorted((e.start_ns(), e.nbytes()) for e in profile.kineto_results.events() if e.name() == "[memory]")
    del kept
    live = peak = 0
    for _, size in events:
        live += size
        peak = max(peak, live)
    return live, peak


# ---------------------------------------------------------------------------------------------------------------------
# the partition of one step


def rnn(h: Tensor, x: Tensor, w: Tensor, u: Tensor) -> list[Tensor]:
    h = torch.tanh(h @ w + x @ u)
    return [h, h.sum()]


def gru(h: Tensor, x: Tensor, w: Tensor, u: Tensor) -> list[Tensor]:
    a, b, c = (x @ u).chunk(3, -1)
    d, e, f = (h @ w).chunk(3, -1)
    reset, update = torch.sigmoid(a + d), torch.sigmoid(b + e)
    h = (1 - update) * torch.tanh(c + reset * f) + update * h
    return [h, h.sum()]


def normalised(h: Tensor, x: Tensor, w: Tensor, u: Tensor) -> list[Tensor]:
    h = torch.nn.functional.layer_norm(torch.nn.functional.gelu(h @ w + x @ u), (H,))
    return [h, h.sum()]


def pointwise(h: Tensor, x: Tensor, w: Tensor, u: Tensor) -> list[Tensor]:
    for _ in range(5):
        h = torch.sin(h * x) + torch.exp(-h * h) * w[0]
    return [h, h.sum()]


def looped(h: Tensor, x: Tensor, w: Tensor, u: Tensor) -> list[Tensor]:
    h, _ = fh.scan(lambda h, _: (torch.tanh(h @ w + x @ u), None), h, length=3)
    return [h, torch.dropout(h, 0.5, True).sum()]


STEPS = {
    "rnn": (rnn, H),
    "gru": (gru, 3 * H),
    "normalised": (normalised, H),
    "pointwise": (pointwise, H),
    "looped": (looped, H),
}


def captured(function: Any, inputs: list[TensorMeta]) -> Subgraph:
    body, lifted = speculate_subgraph(function, inputs, operation="scan", parameter="f")
    assert not lifted
    return body


def step(name: str) -> tuple[Subgraph, dict[str, Any]]:
    """A step of a scan with one carry and one x, and the masks by which a scan partitions it."""
    function, width = STEPS[name]
    body = captured(function, [meta(B, H), meta(B, H), meta(H, width), meta(H, width)])
    masks = {"free": (False, False, True, True), "carried": (True, False, False, False)}
    return body, {"active": (True,) * 4, "cotangents": (True, True), **masks}


def residual_bytes(body: Subgraph, part: Partition) -> int:
    carry = [body.inputs[0]] if part.kept[0] else []
    return sum(math.prod(m.shape) * m.dtype.itemsize for m in (*part.residuals, *carry))


def targets(body: Subgraph) -> list[str]:
    return [str(node.target) for node in body.module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize(
    ("name", "floats"),
    [
        ("rnn", 2 * B * H),  # h for the gradient of w, and tanh
        ("gru", 5 * B * H),  # h, the three sums before the gates, and the product that the reset gate multiplies
        ("normalised", 2 * B * H + 2 * B),  # h, the sum, and two statistics per row, which are reductions
        ("pointwise", B * H),  # h: everything follows from it and x
    ],
)
def test_a_step_keeps_the_least(name: str, floats: int) -> None:
    body, masks = step(name)
    assert residual_bytes(body, partition(body, **masks)) == 4 * floats


@pytest.mark.parametrize("name", STEPS)
def test_never_more_than_all_that_backward_reads(name: str) -> None:
    body, masks = step(name)
    everything = partition(body, **masks, policy=fh.checkpoint_policies.everything)
    assert residual_bytes(body, partition(body, **masks)) <= residual_bytes(body, everything)


@pytest.mark.parametrize("name", STEPS)
def test_nothing_dear_is_computed_again(name: str) -> None:
    """Products, inner operators and random numbers: none in backward beyond those of the derivative itself."""
    body, masks = step(name)
    forward_only = {"native_layer_norm", "native_dropout", "rand", "bernoulli", "sum"}
    backward = targets(partition(body, **masks).backward)
    everything = targets(partition(body, **masks, policy=fh.checkpoint_policies.everything).backward)
    for kind in ("mm", "scan", *forward_only):
        assert sum(kind in t for t in backward) == sum(kind in t for t in everything), kind


@pytest.mark.parametrize("name", STEPS)
def test_forward_and_backward_are_the_vjp(name: str) -> None:
    body, masks = step(name)
    part = partition(body, **masks)
    torch.manual_seed(3)
    inputs = [torch.randn(m.shape) for m in body.inputs]
    cts = [torch.randn(m.shape) for m in body.outputs]
    torch.manual_seed(4)
    outs = part.forward(*inputs)
    grads = part.backward(*outs[len(cts) :], *(x for x, k in zip(inputs, part.kept, strict=True) if k), *cts)
    torch.manual_seed(4)
    expected, pull = torch.func.vjp(body, *inputs)
    torch.testing.assert_close(outs[: len(cts)], expected)
    torch.testing.assert_close(tuple(grads), pull(tuple(cts)))


def test_what_no_step_changes_is_never_stacked() -> None:
    """A chain over constants only is free, be it a product or not: it is the same in each step."""
    body = captured(lambda h, w: [(h * (w @ w).exp().sin()).sin()], [meta(H, H), meta(H, H)])
    masks = {"free": (False, True), "carried": (True, False)}
    part = partition(body, (True, True), (True,), **masks)
    assert residual_bytes(body, part) == 4 * H * H
    assert part.kept[1]


def test_a_slice_is_kept_instead_of_the_whole() -> None:
    body = captured(lambda h, w: [h, (h @ w)[:, :1].sin()], [meta(B, H), meta(H, 8 * H)])
    part = partition(body, (True, False), (True, True), free=(False, True), carried=(True, False))
    assert residual_bytes(body, part) == 4 * B


def test_the_narrower_of_two_dtypes_is_kept() -> None:
    body = captured(lambda h, w: [h, (h @ w).half().float().sin()], [meta(B, H), meta(H, H)])
    part = partition(body, (True, False), (True, True), free=(False, True), carried=(True, False))
    assert residual_bytes(body, part) == 2 * B * H


# ---------------------------------------------------------------------------------------------------------------------
# remat


W = torch.tensor([[0.4, -0.3, 0.2], [0.1, 0.5, -0.6], [-0.2, 0.3, 0.7]], dtype=torch.float64)
C = torch.tensor([0.3, -0.7, 0.5], dtype=torch.float64)
XS = torch.linspace(-1, 1, 21, dtype=torch.float64).reshape(7, 3)
REMATS = ["step", "sqrt", 1, 2, 3, 20]


def loss(w: Tensor, c: Tensor, xs: Tensor | None, length: int = 7, **options: Any) -> Tensor:
    """A carry that is a tree with a number, ys with leaves that are no tensors, and xs that may be None."""

    def body(carry: dict[str, Tensor], x: Tensor | None) -> Any:
        h = torch.tanh(w @ carry["h"] + (0.1 if x is None else x))
        return {"h": h, "n": carry["n"] + 1}, (h * carry["n"], "label", None)

    carry, (ys, label, nothing) = fh.scan(body, {"h": c, "n": 0}, xs, length, **options)
    assert label == "label"
    assert nothing is None
    return (carry["h"] * C).sum() + (ys.flatten() * torch.arange(ys.numel())).sum()


def python_loss(w: Tensor, c: Tensor, xs: Tensor | None, length: int = 7, reverse: bool = False) -> Tensor:
    ys: list[Tensor] = []
    for n, t in enumerate(reversed(range(length)) if reverse else range(length)):
        c = torch.tanh(w @ c + (0.1 if xs is None else xs[t]))
        ys.append(c * n)
    stacked = torch.stack(ys[::-1] if reverse else ys).flatten()
    return (c * C).sum() + (stacked * torch.arange(stacked.numel())).sum()


@pytest.mark.parametrize("mode", [contextlib.nullcontext, fh.eager_capture])
@pytest.mark.parametrize("remat", REMATS)
@pytest.mark.parametrize("reverse", [False, True])
def test_remat_changes_no_result(remat: Any, reverse: bool, mode: Any) -> None:
    with mode():
        for xs, length, unroll in ((XS, 7, 1), (XS, 7, 2), (None, 5, 1), (XS[:1], 1, 1)):
            options = {"reverse": reverse, "unroll": unroll, "remat": remat}
            plain = torch.func.grad_and_value(python_loss, argnums=(0, 1))(W, C, xs, length, reverse)
            got = fh.value_and_grad(loss, argnums=(0, 1))(W, C, xs, length, **options)
            torch.testing.assert_close(got, (plain[1], plain[0]))
            w = W.clone().requires_grad_()
            loss(w, C, xs, length, **options).backward()
            torch.testing.assert_close(w.grad, plain[0][0])


CONTEXTS: dict[str, Callable[[Any, Any], Any]] = {
    "jvp": lambda t, f: lambda w, c: t.jvp(f, (w, c), (c.outer(c), w[0])),
    "hessian": lambda t, f: t.hessian(f, argnums=1),
    "jacrev(grad)": lambda t, f: t.jacrev(t.grad(f, argnums=0), argnums=1),
    "vmap(grad)": lambda t, f: lambda w, c: t.vmap(t.grad(f), in_dims=(None, 0))(w, torch.stack([c, -c])),
    "grad(vmap)": lambda t, f: t.grad(lambda w, c: t.vmap(f, in_dims=(0, None))(torch.stack([w, -w]), c).sum()),
}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("remat", ["step", 3])
@pytest.mark.parametrize("jit", [False, True])
def test_remat_under_transforms(context: str, remat: Any, jit: bool) -> None:
    transformed = CONTEXTS[context](fh, lambda w, c: loss(w, c, XS, remat=remat))
    if jit:
        transformed = fh.jit(transformed, backend="eager")
    expected = CONTEXTS[context](torch.func, lambda w, c: python_loss(w, c, XS))(W, C)
    torch.testing.assert_close(transformed(W, C), expected)


@pytest.mark.parametrize("remat", ["step", 3])
@pytest.mark.parametrize("jit", [False, True])
def test_double_backward_through_remat(remat: Any, jit: bool) -> None:
    results = []
    function = lambda w, c: loss(w, c, XS, remat=remat)
    for f in (fh.jit(function, backend="eager") if jit else function, lambda w, c: python_loss(w, c, XS)):
        w, c = W.clone().requires_grad_(), C.clone().requires_grad_()
        grads = torch.autograd.grad(f(w, c), (w, c), create_graph=True)
        results.append((*grads, *torch.autograd.grad(sum(g.square().sum() for g in grads), (w, c))))
    torch.testing.assert_close(*results)


def test_remat_of_no_step() -> None:
    for remat in REMATS:
        carry, ys = fh.scan(lambda c, x: (c + x, c), C, XS[:0], remat=remat)
        torch.testing.assert_close(carry, C)
        assert ys.shape == (0, 3)


@pytest.mark.parametrize(("remat", "most"), [(None, 7), ("step", 14), ("sqrt", 14), (2, 14), (20, 14)])
def test_each_step_runs_once_more_at_most(remat: Any, most: int) -> None:
    """jax-ml/jax 2139 (checkpointed scan)."""
    count = 0

    def body(c: Tensor, x: Tensor) -> tuple[Tensor, None]:
        nonlocal count
        count += 1
        return torch.tanh(c * x), None

    c = C.clone().requires_grad_()
    fh.scan(body, c, XS, remat=remat)[0].sum().backward()
    assert 7 <= count <= most


@pytest.mark.parametrize(("remat", "products"), [(None, 2), ("step", 3), (3, 6)])
def test_graphs_compute_once_more_at_most(remat: Any, products: int) -> None:
    """Forward, again, and the derivative's own product; all three twice where there is a remainder (7 = 2 * 3 + 1)."""
    f = lambda c: fh.scan(lambda c, x: (torch.tanh(W @ c) + x, None), c, XS, remat=remat)[0].sum()
    text = fh.make_graph(fh.grad(f))(C).as_text()
    assert text.count("= mv(") == products


@pytest.mark.parametrize("mode", [contextlib.nullcontext, fh.eager_capture])
@pytest.mark.parametrize("remat", [None, "step", "sqrt"])
def test_remat_sees_the_same_random_numbers(remat: Any, mode: Any) -> None:
    def f(c: Tensor) -> Tensor:
        return fh.scan(lambda c, x: (torch.dropout(c, 0.3, True) * torch.rand_like(c), None), c, XS, remat=remat)[
            0
        ].sum()

    with mode():
        value, grad = fh.value_and_grad(f)(C)
        torch.testing.assert_close(value, grad @ C)
        c = C.clone().requires_grad_()
        value = f(c)
        value.backward()
        assert c.grad is not None
        torch.testing.assert_close(value.detach(), c.grad @ C)


@pytest.mark.parametrize("remat", ["step", "sqrt", 3])
def test_random_bodies_keep_their_carries_and_numbers(remat: Any) -> None:
    f = lambda c: fh.scan(lambda c, x: ((c * torch.rand(3) + x).sin().exp().cos(), None), c, XS, remat=remat)[0].sum()
    c = C.clone().requires_grad_()
    compiled = fh.jit(f, backend="eager")
    compiled(c)
    assert live_and_peak(lambda: compiled(c))[0] <= 7 * (C.nbytes + 4 * 3) + 8, "carries, float32 numbers, the result"


# ---------------------------------------------------------------------------------------------------------------------
# memory


LONG, WIDE = 256, 8192


def recurrence(remat: Any, loop: Callable[..., Any] = fh.scan) -> Callable[[Tensor, Tensor], Tensor]:
    """A recurrence whose parameters are small against its carry."""

    def f(c: Tensor, xs: Tensor) -> Tensor:
        return loop(lambda c, x: (torch.sigmoid(torch.tanh(c * x) + torch.sin(c)), None), c, xs, remat=remat)[0].sum()

    return f


def python_scan(f: Any, c: Tensor, xs: Tensor, remat: None) -> tuple[Tensor, None]:
    for x in xs:
        c, _ = f(c, x)
    return c, None


@pytest.mark.parametrize("mode", ["plain", "in jit"])
def test_residual_memory(mode: str) -> None:
    """jax-ml/jax 3186 (memory of the gradient of a scan): residuals grow with sqrt(T), and not at all with the body."""
    c, xs = torch.rand(WIDE, requires_grad=True), torch.rand(LONG, 1)
    compiled = {} if mode == "plain" else {"backend": "eager"}

    def residuals(remat: Any, loop: Callable[..., Any] = fh.scan) -> int:
        f = recurrence(remat, loop)
        f = f if mode == "plain" else fh.jit(f, **compiled)
        f(c, xs)
        return live_and_peak(lambda: f(c, xs))[0]

    python = live_and_peak(lambda: recurrence(None, python_scan)(c, xs))[0]
    carry = 4 * WIDE
    assert python >= 2 * LONG * carry
    assert residuals("sqrt") < 1.5 * math.sqrt(LONG) * carry
    assert residuals("sqrt") <= python / 8
    assert residuals("step") < 1.5 * LONG * carry
    if mode == "in jit":
        assert residuals(None) < 1.5 * LONG * carry, "all follows from the carry and x"


@pytest.mark.parametrize("reverse", [False, True])
def test_a_carry_is_kept_once(reverse: bool) -> None:
    """The derivative of ``tanh(w @ h)`` reads h before and after the step: the same stack, one step apart."""
    c, w, xs = torch.rand(WIDE // 64), torch.rand(WIDE // 64, WIDE // 64, requires_grad=True), torch.rand(LONG, 1)
    f = lambda: fh.scan(lambda h, x: (torch.tanh(w @ h), None), c, xs, reverse=reverse)[0].sum()
    compiled = fh.jit(f, backend="eager")
    compiled()
    assert live_and_peak(compiled)[0] < 1.1 * LONG * c.nbytes
    torch.testing.assert_close(torch.autograd.grad(compiled(), w), torch.autograd.grad(f(), w))


@pytest.mark.parametrize("remat", ["step", "sqrt"])
def test_peak_memory_of_a_compiled_gradient(remat: Any) -> None:
    c, xs = torch.rand(WIDE), torch.rand(LONG, 1)
    peaks = {}
    for choice in (None, remat):
        gradient = fh.jit(fh.grad(recurrence(choice)), backend="eager")
        gradient(c, xs)
        peaks[choice] = live_and_peak(lambda: gradient(c, xs))[1]
    most = {"step": 1.1, "sqrt": 0.25}[remat]
    assert peaks[remat] < most * peaks[None]
