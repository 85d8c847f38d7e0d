"""A chosen part of the compositions under Inductor: one of each operator, each transform on both sides of jit."""

import random

import pytest
import sympy
import torch
from torch import nn
from torch._inductor.codegen import cpp
from torch.nn import functional as F
from torch.utils._sympy.functions import FloorDiv, ModularIndexing

import functorch_hops as fh
from functorch_hops.lowering.exact import strides_read

pytestmark = pytest.mark.slow

WEIGHT = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
XS = torch.linspace(-1, 1, 24).reshape(6, 4)


def recurrence(x):
    return fh.scan(lambda c, a: (torch.tanh(c @ WEIGHT + a), c.sum()), x, XS)


def newton(a):
    start = torch.full_like(a, 3.0)
    return fh.while_loop(lambda x: (x * x - a).abs() > 1e-5, lambda x: x - (x * x - a) / (2 * x), start)


CASES = {
    "cond in scan": (
        lambda x: fh.scan(lambda c, a: (fh.cond(c.sum() > 0, torch.sin, torch.cos, c) + a, c), x, XS),
        torch.ones(4),
    ),
    "scan whose body closes over the initial carry": (
        lambda x: fh.scan(lambda c, _: (torch.sin(c) * x, c), x, length=4),
        torch.linspace(0, 1, 4),
    ),
    "vmap of while": (fh.vmap(newton), torch.tensor([1.0, 4.0, 9.0])),
    "value and grad of scan": (fh.value_and_grad(lambda x: recurrence(x)[0].sum()), torch.ones(4)),
    "grad of unbounded while": (
        fh.grad(lambda x: fh.while_loop(lambda v: v.norm() < 50, lambda v: v * 1.3 + v.sin(), x).sum()),
        torch.ones(4),
    ),
    # A carry that starts as what the body closes over, and as a view of it: Inductor writes the carry in place.
    "carry that starts as a constant": (
        lambda x: fh.scan(lambda c, _: (torch.tanh(c) * x + x.view(4), None), x, None, 3)[0] + x,
        torch.ones(4),
    ),
    # The gradient of the index is a write into zeros, and its tangent one into expanded zeros.
    "jvp of grad of an indexed loop": (
        lambda x: fh.jvp(fh.grad(lambda x: fh.fori_loop(0, 2, lambda i, c: c.sin() * x[i], x).sum()), (x,), (x,)),
        torch.ones(4),
    ),
    # Branches whose outputs lie in memory in different ways.
    "branch that returns a part": (
        lambda x: fh.cond(x.sum() > 0, lambda x: torch.stack([x, x.sin()])[1, None], lambda x: x[:, None].T * 2, x),
        torch.ones(4),
    ),
    # Eager makes integers of the ends of a range before it divides it.
    "integers between numbers": (
        lambda x: fh.scan(lambda c, _: (c + torch.linspace(4.3, -3.9, 12, dtype=torch.int64), c), x, None, 2),
        torch.ones(12),
    ),
    "element taken by a number": (
        lambda x: fh.fori_loop(0, 3, lambda i, c: c + torch.take(x, i), x),
        torch.ones(4),
    ),
    "associative scan": (lambda x: fh.associative_scan(lambda a, b: a * b + a + b, x), XS),
    "map": (lambda x: fh.map(lambda a: (a * x).sin().sum(), XS), torch.ones(4)),
}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_plain_eager(name):
    function, x = CASES[name]
    compiled = fh.jit(function)
    for argument in (x, x * 0.5 + 0.1):
        torch.testing.assert_close(compiled(argument), function(argument), rtol=1e-4, atol=1e-5)
    assert compiled.cache_info().misses == 1


def test_floats_are_traced_into_loops():
    step = fh.jit(lambda x, lr: fh.fori_loop(0, 4, lambda i, v: v - lr * v * i, x))
    for lr in (0.1, 0.2):
        expected = torch.ones(3)
        for i in range(4):
            expected = expected - lr * expected * i
        torch.testing.assert_close(step(torch.ones(3), lr), expected)
    assert step.cache_info().misses == 1


def test_backward_through_a_compiled_module():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.outer(fh.scan(lambda h, a: (torch.tanh(self.inner(h) + a), None), x[0], x)[0])

    torch.manual_seed(0)
    model, x = Model(), torch.randn(5, 4)
    model(x).square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    fh.jit(model)(x).square().sum().backward()
    for p, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("transform", [lambda f: f, lambda f: fh.grad(lambda x: f(x).sum())], ids=["value", "grad"])
def test_a_checkpoint_leaves_its_inputs_alone(transform):
    """The barrier before a recomputation is another name for an input, whose memory is not Inductor's to write to."""
    f = transform(lambda x: fh.checkpoint(lambda v: torch.sin(torch.tanh(WEIGHT @ v)) + v)(x))
    x, compiled = torch.ones(4), fh.jit(f)
    for _ in range(3):
        torch.testing.assert_close(compiled(x), f(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(x, torch.ones(4))


@pytest.mark.parametrize("dynamic", [False, True])
def test_scan_of_complex_tensors(dynamic):
    """Inductor does not find such a scan by itself, and took the rows of odd length for aligned memory."""
    w = torch.complex(torch.linspace(-1, 1, 51).reshape(3, 17), torch.full((3, 17), 0.5))

    def loss(w):
        step = lambda c, row: (0.5 * c.conj() * row + w[0], (c.real, c))
        carry, (real, ys) = fh.scan(step, w[1].conj(), w, reverse=True)
        return torch.view_as_real((carry + ys).resolve_conj()).sum() + real.square().sum()

    compiled, gradient = fh.jit(fh.grad(loss), dynamic=dynamic), fh.grad(loss)
    for argument in (w, w * 0.5):
        torch.testing.assert_close(compiled(argument), gradient(argument), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("where", ["top", "loop"])
def test_an_index_out_of_bounds_is_an_index_error(where):
    x, rows = torch.arange(6.0).reshape(3, 2), torch.tensor([0, 2])
    pick = lambda x, i: fh.scan(lambda c, i: (c, c[i]), x, i)[1] if where == "loop" else x[i]
    f = fh.jit(pick)
    torch.testing.assert_close(f(x, rows), x[rows])
    with pytest.raises(
        IndexError, match=r"out of bounds\n  expected: an index from 0 to 3 .*\n  help: .*\n  at .*test_ind"
    ):
        f(x, rows + 1)
    torch.testing.assert_close(f(x, rows), x[rows])


@pytest.mark.parametrize("where", ["top", "loop"])
@pytest.mark.parametrize("operator", ["index_add", "index_copy"])
def test_a_negative_number_of_a_row_is_an_index_error(operator, where):
    """Inductor counts from the end."""
    x, rows = torch.arange(6.0).reshape(3, 2), torch.tensor([[0, 2], [1, 2]])
    change = lambda i: getattr(x, operator)(0, i, torch.ones(2, 2))
    run = (lambda rows: fh.map(change, rows)) if where == "loop" else (lambda rows: change(rows[0]))
    f = fh.jit(run)
    torch.testing.assert_close(f(rows), run(rows))
    with pytest.raises(IndexError, match="out of bounds"):
        f(rows - 1)


def of_rows(f):
    return lambda x, rows: fh.grad(lambda x: f(x, rows).square().sum())(x)


UNCHECKED = {
    "gradient of embedding": of_rows(lambda x, rows: F.embedding(rows, x)),
    "gradient of nll_loss": of_rows(lambda x, rows: F.nll_loss(x, rows)),
    "gradient of cross_entropy": of_rows(lambda x, rows: F.cross_entropy(x[None], rows[None])),
    "a number written to places": lambda x, rows: x.new_zeros(3, 3).scatter(1, rows.unsqueeze(1), 2.0),
    "max_unpool": lambda x, rows: F.max_unpool1d(x, rows.expand(3, 3), 1),
}
"""Inductor's own code, or torch's decomposition, looks at no place."""


@pytest.mark.parametrize("where", ["top", "loop"])
@pytest.mark.parametrize("name", UNCHECKED)
def test_a_place_that_is_none_is_an_index_error_in_gradients_too(name, where):
    x, rows = torch.arange(9.0).reshape(3, 3), torch.tensor([[0, 2, 1], [1, 2, 0]])
    f = UNCHECKED[name]
    run = (lambda x, rows: fh.map(lambda i: f(x, i), rows)) if where == "loop" else (lambda x, rows: f(x, rows[0]))
    jitted = fh.jit(run)
    torch.testing.assert_close(jitted(x, rows), run(x, rows))
    for moved in (rows + 1, rows - 1):
        with pytest.raises(IndexError, match="out of bounds"):
            jitted(x, moved)


def test_likelihoods_have_the_gradients_of_eager():
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(5, generator=generator)
    shapes = [(5,), (4, 5), (2, 5, 3)]
    xs = [torch.randn(shape, generator=generator) for shape in shapes]
    targets = [torch.randint(5, shape[:1] * (len(shape) > 1) + shape[2:], generator=generator) for shape in shapes]

    def f(*xs):
        losses = (
            F.cross_entropy(x, target, weight, reduction=reduction, ignore_index=2).square().sum()
            for x, target in zip(xs, targets)
            for reduction, weight in (("mean", weights), ("none", None))
        )
        return sum(losses)

    gradient = fh.grad(f, argnums=(0, 1, 2))
    torch.testing.assert_close(fh.jit(gradient)(*xs), gradient(*xs))


def test_rows_to_fill_are_counted_from_the_end():
    fill = lambda x, rows: x.index_fill(0, rows, 7.0)
    x, rows = torch.arange(6.0).reshape(3, 2), torch.tensor([-1, 0])
    torch.testing.assert_close(fh.jit(fill)(x, rows), fill(x, rows))
    with pytest.raises(IndexError, match="out of bounds"):
        fh.jit(fill)(x, rows - 3)


def test_a_value_written_by_index_and_read_by_rows():
    """torch's own compiler fails (2.13 to 2.15, pytorch/pytorch#196570): see ``_writes_not_local``."""

    def f(x):
        table, places = x.clone(), torch.arange(8)
        table[places.unsqueeze(0), places.unsqueeze(1)] = 0
        return torch.softmax(x + table, -1)

    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fh.jit(f)(x), torch.softmax(x, -1))


def test_strides_are_those_that_sympy_finds():
    numbers = random.Random(0)
    variables = [sympy.Symbol(f"x{i}", integer=True, nonnegative=True) for i in range(4)]
    size, (x, y, *_) = sympy.Symbol("s0", integer=True, positive=True), variables
    indices = [sum(numbers.choice((0, 1, 64, numbers.randrange(99))) * v for v in variables) for _ in range(40)]
    indices += [size * x + y, FloorDiv(x, 16) * 3 + y, 2 * ModularIndexing(x, 1, 16) + y, x * y, 2 * (x + y)]
    indices = [sympy.sympify(index) + numbers.randrange(3) for index in indices]
    found = cpp.stride_at_vec_range
    expected = [found(index, v, 16) for index in indices for v in variables]
    with strides_read():
        assert cpp.stride_at_vec_range is not found
        assert [cpp.stride_at_vec_range(index, v, 16) for index in indices for v in variables] == expected
