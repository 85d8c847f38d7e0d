"""Control flow of torch's own, attention with a user's function, and compiled functions inside of captured ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._higher_order_ops.associative_scan import associative_scan
from torch._higher_order_ops.map import map as torch_map
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import functorch_hops as fh
from modes import captured, gradients, jitted, plain, same, while_capturing

F64 = torch.float64
W = torch.tensor([0.5, -1.5, 2.0], dtype=F64)
X = torch.tensor([[0.3, -0.2, 0.9], [1.1, 0.4, -0.6]], dtype=F64)


def in_a_loop(f):
    """A program that a capture sees in every mode: ``f`` as the step of a scan."""
    return lambda x: fh.scan(lambda c, _: (f(c), None), x, length=2)[0]


def in_a_python_loop(f):
    return lambda x: f(f(x))


def _while(x):
    i = 0
    while i < 3:
        i, x = i + 1, (x * W).sin()
    return x


def _scan(x):
    c, ys = torch.ones(3, dtype=F64), []
    for row in x.flip(0):
        ys.insert(0, c)
        c = (c * row + W).sin()
    return c + torch.stack(ys)


PROGRAMS = {
    "cond": (
        lambda x: torch.cond(x.sum() > 1, lambda y: {"y": y * W}, lambda y: {"y": y.sin() + W}, (x,))["y"],
        lambda x: x * W if x.sum() > 1 else x.sin() + W,
    ),
    "while_loop": (
        lambda x: while_loop(lambda i, c: i < 3, lambda i, c: (i + 1, (c * W).sin()), (torch.tensor(0), x))[1],
        _while,
    ),
    "scan": (
        lambda x: (lambda carry, ys: carry["c"] + ys[0])(
            *scan(
                lambda c, row: ({"c": (c["c"] * row + W).sin()}, [c["c"].clone()]),
                {"c": torch.ones(3, dtype=F64)},
                x,
                reverse=True,
            )
        ),
        _scan,
    ),
    "map": (lambda x: torch_map(lambda row, w: (row * w).cos(), x, W), lambda x: (x * W).cos()),
    "associative_scan": (
        lambda x: associative_scan(lambda a, b: a * b, x, 0, combine_mode="generic"),
        lambda x: x.cumprod(0),
    ),
    "nested_compile_region": (
        torch.compiler.nested_compile_region(lambda x: (x * W).sin()),
        lambda x: (x * W).sin(),
    ),
    "compiled as a whole": (
        torch.compile(lambda x: (x * W).sin(), backend="eager", fullgraph=True),
        lambda x: (x * W).sin(),
    ),
}


@pytest.mark.filterwarnings("ignore:torch.compile with fullgraph=True found no compiled frames")  # torch 2.12
@while_capturing
@pytest.mark.parametrize(("f", "oracle"), PROGRAMS.values(), ids=PROGRAMS)
def test_in_a_capture(run, f, oracle):
    program, expected = in_a_loop(f), in_a_python_loop(oracle)
    same(run(program, X), expected(X))
    same(gradients(run, program, X), gradients(plain, expected, X))


@pytest.mark.parametrize(("f", "oracle"), PROGRAMS.values(), ids=PROGRAMS)
def test_under_transforms(f, oracle):
    loss = lambda g: lambda x: (g(x) ** 2).sum()
    xs = torch.stack([X, 2 * X, -X])
    lanes = [torch.func.grad(loss(oracle))(x) for x in xs]
    same(jitted(fh.vmap(fh.grad(loss(f))), xs), torch.stack(lanes))
    same(fh.jvp(fh.jit(f, backend="eager"), (X,), (X,)), torch.func.jvp(oracle, (X,), (X,)))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@while_capturing
def test_attention_with_a_function_for_its_scores(run):
    q = torch.linspace(-1, 1, 64, dtype=F64).reshape(1, 2, 4, 8)
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, 4, 4, device="cpu", BLOCK_SIZE=4)
    same(
        run(in_a_loop(lambda q: flex_attention(q, q, q, block_mask=mask)), q),
        in_a_python_loop(lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True))(q),
    )


def test_a_compiled_function_is_compiled_afterwards_as_before():
    graphs = []
    f = torch.compile(
        lambda x: x * 2 + 1, backend=lambda module, _: graphs.append(module) or module.forward, fullgraph=True
    )
    same(jitted(f, X), X * 2 + 1)
    same(captured(in_a_loop(f), X), X * 4 + 3)
    assert not graphs
    same(f(X), X * 2 + 1)
    assert len(graphs) == 1
