"""Loops as Triton kernels whose lanes hold several numbers, or have loops in their steps: that each computes what eager
does, in Triton's interpreter, and that it compiles.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from torch import Tensor
from triton_plans import check, compiled, kernels, on_cuda

import functorch_hops as fh
from loop_plans import Program, normal, taken
from modes import same

N, STEPS = 40, 5


def gradient(f: Callable[..., Any], n: int = 2) -> Callable[..., Any]:
    def loss(*args: Any) -> Any:
        return sum((y.square() * (i + 1)).sum() for i, y in enumerate(optree.tree_leaves(f(*args))))

    return fh.value_and_grad(loss, argnums=tuple(range(n)))


def lorenz(c: Tensor, xs: Tensor) -> Any:
    def step(c: Tensor, x: Tensor) -> Any:
        a, b, d = c.unbind(-1)
        return c + 0.01 * torch.stack([10 * (b - a), a * (28 - d) - b + x, a * b - 8 / 3 * d], -1), c.sum(-1)

    return fh.scan(step, c, xs)


def leapfrog(q: Tensor, ps: Tensor) -> Any:
    """Chains of a sampler, each with a loop in its step."""
    energy = lambda q: 0.5 * (q * q).sum() + (q[0] * q[1]).sin()

    def chain(q: Tensor, ps: Tensor) -> Any:
        def move(_: Any, s: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            q = s[0] + 0.1 * s[1]
            return q, s[1] - 0.1 * fh.grad(energy)(q)

        def step(q: Tensor, p: Tensor) -> Any:
            q, p = fh.fori_loop(0, 3, move, (q, p))
            return q, energy(q) + p.sum()

        return fh.scan(step, q, ps)

    return fh.vmap(chain, in_dims=(0, 1))(q, ps)


def filtered(m: Tensor, p: Tensor, zs: Tensor, f: Tensor, h: Tensor) -> Any:
    """Kalman filters of two numbers."""

    def one(m: Tensor, p: Tensor, zs: Tensor) -> Any:
        def step(s: tuple[Tensor, Tensor], z: Tensor) -> Any:
            m, p = f @ s[0], f @ s[1] @ f.T + 0.01 * torch.eye(2, dtype=f.dtype, device=f.device)
            gain = p @ h / (h @ p @ h + 0.1)
            m = m + gain * (z - h @ m)
            return (m, p - torch.outer(gain, h @ p)), m

        return fh.scan(step, (m, p), zs)

    return fh.vmap(one)(m, p, zs)


def perceptron(c: Tensor, a: Tensor, b: Tensor, xs: Tensor) -> Any:
    """With weights that all lanes share."""
    return fh.scan(lambda c, x: (torch.tanh(torch.tanh(c @ a) @ b + x), c.sum(-1)), c, xs)


def nested(c: Tensor, xs: Tensor, reverse: bool = False) -> Any:
    def outer(c: Tensor, x: Tensor) -> Any:
        rows = torch.stack([x, x * 2, x.sin()])
        return fh.scan(lambda c, y: (torch.tanh(c * 0.5 + y), c * y), c, rows, reverse=reverse)

    return fh.scan(outer, c, xs)


def layers(c: Tensor, xs: Tensor) -> Any:
    """A carry for each layer, through which a loop in the step goes; the next step reads what it stacked."""

    def outer(c: Tensor, x: Tensor) -> Any:
        h, c = fh.scan(lambda h, c: ((new := torch.tanh(c * 0.5 + h)), new), x, c)
        return c, h

    return fh.scan(outer, c, xs)


def many_layers(c: Tensor, xs: Tensor) -> Any:
    """What a loop stacks is read by another, and is in memory of the kernel's own."""

    def outer(c: Tensor, x: Tensor) -> Any:
        c, ys = fh.scan(lambda c, i: ((new := torch.sin(c + i)), new), c, x)
        return fh.scan(lambda c, y: (c * 0.5 + y, None), c, ys, reverse=True)[0], ys.sum(0)

    return fh.scan(outer, c, xs)


def three_deep(c: Tensor, xs: Tensor) -> Any:
    inner = lambda x: lambda c, _: (fh.fori_loop(0, 2, lambda i, c: torch.sin(c + i * 0.1 * x), c), c)
    return fh.scan(lambda c, x: fh.scan(inner(x), c, length=3), c, xs)


def halved(c: Tensor, xs: Tensor) -> Any:
    """Each lane ends the loop in its step by itself."""
    step = lambda c, x: (fh.while_loop(lambda c: c > 0.5, lambda c: c * 0.6, c + x.abs()), c)
    return fh.vmap(lambda c, xs: fh.scan(step, c, xs), in_dims=(0, 1))(c, xs)


def counted_in_while(n: Tensor, c: Tensor) -> Tensor:
    def body(s: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return s[0] + 1, fh.fori_loop(0, 3, lambda j, c: c * 0.9 + j * 0.01, s[1])

    f = lambda c: fh.while_loop(lambda s: (s[1] > 0.3) & (s[0] < 20), body, (n, c))[1]
    return fh.vmap(f)(c.abs() * 2)


def together(n: Tensor, c: Tensor) -> Any:
    """All lanes take as many steps of the loop in the body."""

    def step(c: Tensor, x: Tensor) -> Any:
        return fh.while_loop(lambda s: s[0] < 4, lambda s: (s[0] + 1, torch.cos(s[1] + x)), (n, c))[1], c

    return fh.scan(step, c, c.new_ones(3, N))


def chosen(c: Tensor, xs: Tensor) -> Any:
    """Branches in a loop in the body."""
    inner = lambda i, c: fh.cond(i > 0, torch.sin, lambda c: c * 2, c)
    return fh.scan(lambda c, x: (fh.fori_loop(0, 3, inner, c) + x, c), c, xs)


C, XS = normal(N).double(), normal(STEPS, N, seed=1).double()
SYSTEM = normal(N, 3).double()
KALMAN = (
    normal(N, 2).double(),
    torch.eye(2).double().expand(N, 2, 2).contiguous(),
    normal(N, STEPS).double(),
    torch.tensor([[1.0, 0.1], [0, 1]]).double(),
    torch.tensor([1.0, 0.0]).double(),
)
CHAINS = normal(N, 2).double(), normal(STEPS, N, 2).double()
COUNTER = torch.tensor(0)

PROGRAMS: dict[str, Program] = {
    "differential equations": (lorenz, (SYSTEM, XS)),
    "gradient of differential equations": (gradient(lorenz), (SYSTEM, XS)),
    "one differential equation": (lorenz, (SYSTEM[0], XS[:, 0])),
    "in single precision": (lorenz, (SYSTEM.float(), XS.float())),
    "softmax": (
        lambda c, xs: fh.scan(lambda c, x: (torch.softmax(c + x[:, None], -1), c.argmax(-1)), c, xs),
        (SYSTEM, XS),
    ),
    "sampler": (leapfrog, CHAINS),
    "gradient of a sampler": (gradient(leapfrog), CHAINS),
    "filter": (filtered, KALMAN),
    "gradient of a filter": (gradient(filtered, 3), KALMAN),
    "perceptron": (perceptron, (normal(N, 4).double(), normal(4, 8).double(), normal(8, 4).double(), XS[..., None])),
    "nested": (nested, (C, XS)),
    "gradient of nested": (gradient(nested), (C, XS)),
    "nested, reversed": (lambda c, xs: nested(c, xs, reverse=True), (C, XS)),
    "layers": (layers, (normal(4, N).double(), XS)),
    "gradient of layers": (gradient(layers), (normal(4, N).double(), XS)),
    "stack of a loop in the body": (many_layers, (C, normal(STEPS, 20, N).double())),
    "three deep": (three_deep, (C, XS)),
    "gradient, three deep": (gradient(three_deep), (C, XS)),
    "while in a scan": (halved, (C, XS)),
    "scan in a while": (counted_in_while, (COUNTER, C)),
    "while of shared steps in a scan": (together, (COUNTER, C)),
    "branches in a loop in the body": (chosen, (C, XS)),
    "gradient of branches in a loop in the body": (gradient(chosen), (C, XS)),
    "numbers that all lanes share": (
        lambda c, s, xs: fh.scan(lambda c, x: ((c[0] + x * c[1].sum(), c[1] * 2), c[1].amax()), (c, s), xs),
        (C, C[:5], XS),
    ),
    "half": (nested, (C.half(), XS.half())),
}


@pytest.mark.triton
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_takes_its_lanes_through_all_steps(name: str) -> None:
    import triton_libdevice

    triton_libdevice.provide()
    f, args = PROGRAMS[name]
    tolerances = {"rtol": 1e-2, "atol": 1e-2} if name == "half" else {}
    assert set(taken(check(f, *args, **tolerances))) == {"lanes"}


@pytest.mark.slow
@pytest.mark.triton
def test_each_kernel_compiles_to_a_binary_that_spills_nothing() -> None:
    nodes = [node for f, args in PROGRAMS.values() for node in kernels(on_cuda(f, *args))]
    registers, spilled = compiled(nodes)
    assert len(registers) == len(nodes)
    assert set(spilled) == {0}


NATIVE: dict[str, tuple[Callable[..., Any], tuple[Any, ...], str]] = {
    "many numbers": (
        lambda c, xs: fh.scan(lambda c, x: (c.softmax(-1) + x[:, None], x), c, xs),
        (normal(N, 200).double(), XS),
        "a lane carries many numbers",
    ),
    "a product of all lanes": (
        lambda c, w: fh.fori_loop(0, 3, lambda _, c: torch.tanh(c @ w), c),
        (normal(N, 60), normal(60, 60)),
        "a product of all lanes with one matrix",
    ),
    "a loop that reads other lanes": (
        lambda c, xs: fh.scan(lambda c, x: (fh.fori_loop(0, 3, lambda _, c: c.flip(0) + x, c), c), c, xs),
        (C, XS),
        "at another lane",
    ),
    "a while in a while": (
        fh.vmap(lambda c: fh.while_loop(lambda c: c < 9, lambda c: fh.while_loop(lambda c: c < 5, torch.exp, c), c)),
        (C,),
        "lanes that have finished must not run while_loop",
    ),
}


@pytest.mark.parametrize("name", NATIVE)
def test_other_loops_are_torch_s_own_and_say_why(name: str) -> None:
    f, args, reason = NATIVE[name]
    reports = on_cuda(f, *args).loops
    assert any(report.taken == "native" and reason in str(report.reason) for report in reports), reports


def test_a_stack_that_is_returned_is_written_in_its_place() -> None:
    """A loop in the body needs no memory of its own for what its own loop returns."""
    (node,) = kernels(on_cuda(three_deep, C, XS))
    sizes = [value.numel() for value in node.meta["val"]]
    assert sizes[:2] == [N, STEPS * 3 * N]
    assert max(sizes[2:]) < N


def test_programs_do_not_share_memory_for_what_differs_between_their_steps() -> None:
    """Rows of a loop in the body, made of a time that all lanes share: each program may be at another step."""

    def step(s: tuple[Tensor, Tensor], x: Tensor) -> Any:
        t, c = s
        return (t + 1, fh.scan(lambda c, r: (c * r + x, None), c, torch.stack([t, t * 2]))[0]), None

    (node,) = kernels(on_cuda(lambda t, c, xs: fh.scan(step, (t, c), xs), C[0], C, XS))
    (source,) = re.findall(r"own_0 = out_\d+ \+ tl.program_id\(0\).*", json.loads(node.args[1]))  # type: ignore[arg-type]
    assert source.endswith("* 2")
    assert node.meta["val"][-1].shape == (2 * 2,)


_UNARY = [
    torch.sin,
    torch.tanh,
    lambda v: v * 0.7 + 0.1,
    torch.sigmoid,
    lambda v: v.softmax(-1),
    lambda v: v - v.mean(-1, True),
]
_BINARY = [torch.add, torch.mul, torch.sub, torch.maximum, lambda a, b: torch.where(a > b, a, b * 0.5), torch.atan2]


def random_program(seed: int) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    """A loop over lanes of a few numbers, with loops in its steps."""
    draw = random.Random(seed)
    dtype = draw.choice([torch.float64, torch.float32])
    lanes, size, steps, inner = draw.choice([2, 16, 33, 70]), draw.randint(1, 4), draw.randint(1, 3), draw.randint(1, 3)
    moves = [(draw.choice(_UNARY), draw.choice(_BINARY)) for _ in range(draw.randint(1, 3))]
    depth, reverse, stacks = draw.randint(0, 2), draw.random() < 0.5, draw.random() < 0.7

    def step(level: int) -> Callable[[Tensor, Tensor], Any]:
        def run(c: Tensor, x: Tensor) -> Any:
            for unary, binary in moves:
                c = binary(unary(c), x)
            if level:
                rows = torch.stack([x * (k + 1) for k in range(inner)])
                c, ys = fh.scan(step(level - 1), c, rows, reverse=reverse)
                return c, ys if stacks else ys.sum(0)
            return c, c * x

        return run

    f = lambda c, xs: fh.scan(step(depth), c, xs)
    args = normal(lanes, size, seed=seed).to(dtype), normal(steps, lanes, size, seed=seed + 1).to(dtype)
    return draw.choice([f, gradient(f)]), args


@pytest.mark.triton
@pytest.mark.parametrize("seed", [0, 1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 12))])
def test_random_programs(seed: int) -> None:
    import triton_libdevice

    triton_libdevice.provide()
    f, args = random_program(seed)
    reports = check(f, *args, rtol=1e-4, atol=1e-4)
    assert set(taken(reports)) == {"lanes"}, reports


@pytest.mark.cuda
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_on_a_gpu(name: str) -> None:
    f, args = PROGRAMS[name]
    operands: Any = optree.tree_map(lambda x: x.cuda() if x.shape else x, args)
    expected = optree.tree_leaves(fh.jit(f, backend="eager")(*operands))
    tolerances = {"rtol": 1e-2, "atol": 1e-2} if name == "half" else {}
    same(optree.tree_leaves(fh.jit(f)(*operands)), expected, equal_nan=True, **tolerances)
    assert {loop.lowering for loop in fh.explain(f)(*operands).loops} - {"inside"} == {"lanes"}
