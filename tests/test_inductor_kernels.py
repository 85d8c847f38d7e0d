"""What kernels do with a value under Inductor: computed twice, computed at compile time, written in place and read.

The oracle is plain eager under ``torch.func``. Without loops the faults are torch's own: ``torch.compile`` has them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import functorch_hops as fh
from modes import same
from reference import Reference

pytestmark = pytest.mark.slow

# Rounded in one way on vectors, in another on single numbers.
ROUNDED = (torch.sin, torch.float32), (torch.nn.functional.gelu, torch.float32), (torch.expm1, torch.float64)
EXTREMA: dict[str, Callable[[Tensor], Tensor]] = {
    "amax": lambda x: x.amax(-1),
    "max": lambda x: x.max() + x.T.max(0).values,
    "norm": lambda x: torch.linalg.vector_norm(x, torch.inf, -1),
    "compared": lambda x: torch.where(x >= x.amax(-1, keepdim=True), x * 2, 0).sum(-1),
    "found": lambda x: ((x == x.min(-1, keepdim=True).values) * x).sum(-1),
    "distance": lambda x: (x.amax(-1, keepdim=True) - x).sqrt().detach().sum(-1),  # not of a number below 0
}


def at_extrema(ops: Any, rounded: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Each extremum of a rounded value, alone and in each step of a loop, where reverse mode saves or recomputes."""

    def loss(x: Tensor) -> Tensor:
        total = torch.zeros(())
        for extremum in EXTREMA.values():
            step = lambda c, r, extremum=extremum: (torch.erf(c) * r, extremum(rounded(c)))
            _, ys = ops.scan(step, x, x.new_ones(2))
            total = total + ys.sum() + extremum(rounded(x)).sum()
        return total

    return loss


@pytest.mark.parametrize(("rounded", "dtype"), ROUNDED)
def test_a_maximum_is_found_again(rounded, dtype):
    x = torch.randn(7, 5, dtype=dtype, generator=torch.Generator().manual_seed(3))
    gradient = fh.jit(fh.grad(at_extrema(fh, rounded)))
    torch.testing.assert_close(gradient(x), torch.func.grad(at_extrema(Reference, rounded))(x))


def test_constants_are_rounded_as_in_kernels():
    """Unrolled, the reduction's constants are known to the compiler; in the derivative's kernel they are not."""

    def f(u):
        return (u + torch.arange(u.shape[-1]) * 0.618).amax(-1).sum()

    u = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(683))
    same(fh.jit(f)(u), f(u))
    same(fh.jit(fh.grad(f))(u), torch.func.grad(f)(u))
    same(fh.jit(fh.vmap(fh.jacrev(f)))(u[:, None]), torch.func.vmap(torch.func.jacrev(f))(u[:, None]))


@pytest.mark.parametrize("options", [{}, {"reorder_for_peak_memory": False}])
def test_what_is_written_in_place_is_read_afterwards(options):
    """The kernel that reads has the loops of others fitted to its own, and is not to go before the write for that."""

    def f(x):
        a = x.sin()
        normalised = (a - a.logsumexp(-1, keepdim=True)).exp() * x.cos()
        counts = torch.zeros_like(x).scatter_add(-1, a.cummax(-1).indices, torch.ones_like(x))
        return normalised, counts * x.cos()

    x = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    same(fh.jit(f, options=options)(x), f(x))


def test_a_gradient_that_is_written_to_a_part():
    def loss(ops):
        def f(w):
            rows = w.expand(2, *w.shape) + 0 * w.sum()
            rows[0].add_(w.sum())
            last, (repeated, _) = ops.scan(lambda c, r: (c, (c, rows[0])), rows, rows[0])
            parts = [(1.0 + 0.1 * torch.tanh(repeated)).prod(3), rows[0], last]
            return sum((p * torch.linspace(0.5, 1.5, p.numel(), dtype=p.dtype).reshape(p.shape)).sum() for p in parts)

        return f

    w = torch.randn(2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    same(fh.jit(fh.grad(loss(fh)))(w), torch.func.grad(loss(Reference))(w))


NEARLY_LINEAR = torch.expm1, torch.atanh, torch.erf, torch.nn.functional.elu, torch.nn.functional.selu


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_functions_of_small_numbers(dtype):
    """Relative to the value, which is as small as its argument; by itself, in steps, and differentiated."""
    sizes = torch.logspace(-30, -0.1, 61, dtype=dtype)
    x = torch.cat([sizes, -sizes])
    values = lambda x: [function(x) for function in NEARLY_LINEAR]
    in_steps = lambda x: fh.scan(lambda c, row: (c, values(row + c)), 0.0, x[None])[1]
    gradients = lambda x: [fh.grad(lambda x, f=f: f(x).sum())(x) for f in NEARLY_LINEAR]

    precision = {"rtol": 2e-6 if dtype == torch.float32 else 1e-12, "atol": 0.0}
    torch.testing.assert_close(fh.jit(values)(x), values(x), **precision)
    torch.testing.assert_close([y[0] for y in fh.jit(in_steps)(x)], values(x), **precision)
    torch.testing.assert_close(fh.jit(gradients)(x), gradients(x), **precision)


@pytest.mark.filterwarnings("ignore:bf16 and fp16 are mixed")
def test_what_is_cast_to_half_precision_is_rounded():
    """What rounding loses is what error feedback and quantisation are about."""

    def lost(x, dtype):
        other = torch.float16 if dtype is torch.bfloat16 else torch.bfloat16
        return x - x.to(dtype).to(x.dtype), x.to(dtype) * 3, (x * 2).to(dtype), x.to(dtype).to(other)

    for dtype in torch.float16, torch.bfloat16:
        for wide in torch.float32, torch.float64:
            x = torch.tensor([1.001, 3.14159, 1e-8, -70.07], dtype=wide)
            f = lambda x, dtype=dtype: lost(x, dtype)
            in_steps = lambda x, f=f: fh.scan(lambda c, row: (c, f(row * 1)), 0.0, x[None])[1]
            assert f(x)[0].any()
            torch.testing.assert_close(fh.jit(f)(x), f(x), rtol=0, atol=0)
            torch.testing.assert_close([y[0] for y in fh.jit(in_steps)(x)], list(f(x)), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_in_half_precision_are_rounded(dtype):
    """Those that an operator hands on: made, cast, chosen, a limit or a margin."""

    def numbers(x):
        made = torch.full((4,), 7777, dtype=dtype), torch.scalar_tensor(0.3, dtype=dtype), x.new_full((4,), 0.7)
        cast = (
            torch.full((4,), 0.1).to(dtype),
            (torch.arange(4) * 777).to(dtype),
            torch.full_like(x.float(), 0.1).to(dtype),
        )
        chosen = torch.where(x > 0, 0.1, x), x.masked_fill(x < 0, 0.7), torch.where(x > 0, torch.tensor(0.1), x)
        limited = x.clamp(min=0.1), x.clamp(max=0.3), torch.nn.functional.pad(x, (1, 1), value=0.1)
        compared = (x.new_full((4,), 0.1).float() < 0.1) + x.float()
        return [value.double() + x.sum().double() * 0 for value in (*made, *cast, *chosen, *limited, compared)]

    x = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=dtype)
    in_steps = lambda x: fh.scan(lambda c, row: (c, numbers(row * 1)), 0.0, x[None])[1]
    torch.testing.assert_close(fh.jit(numbers)(x), numbers(x), rtol=0, atol=0)
    torch.testing.assert_close([y[0] for y in fh.jit(in_steps)(x)], numbers(x), rtol=0, atol=0)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_margins_of_labels_without_a_loop(reduction):
    """Torch (2.13) has code for it above autograd, which adds up labels behind the first negative one."""
    labels = torch.tensor([[2, 0, -1, 1, 4], [-1, 1, 1, 2, 3], [0, 1, 2, 3, 4]])
    scores = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss = lambda x: torch.nn.functional.multilabel_margin_loss(x, labels, reduction=reduction)
    same(fh.jit(loss)(scores), loss(scores))
    run = fh.value_and_grad(lambda x: loss(x).square().sum())
    same(fh.jit(run)(scores), run(scores))
