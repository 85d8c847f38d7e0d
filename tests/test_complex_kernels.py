"""Complex numbers in compiled code: as pairs of real ones, they are what they are in eager torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from torch import Tensor

import functorch_hops as fh
from functorch_hops.lowering.real_parts import as_pairs, from_pairs, in_real_parts, over_pairs
from loop_plans import plan, taken
from modes import same

INF = float("inf")
C128, F64 = torch.complex128, torch.float64


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=C128, generator=torch.Generator().manual_seed(seed))


Z, W, M, N = numbers(5), numbers(5, seed=1), numbers(3, 4), numbers(4, 3, seed=1)
AXES = torch.tensor([0, -2, 3j, 1 - 0j, -0.0 - 1j], dtype=C128)
X, B, I = Z.real.clone(), torch.tensor([True, False, True, False, False]), torch.tensor([1, 4, 1, 0, 2])  # noqa: E741

FUNCTIONS = (
    *(torch.abs, torch.angle, torch.sgn, torch.exp, torch.sin, torch.cos, torch.sinh, torch.cosh, torch.tan),
    *(torch.tanh, torch.sigmoid, torch.square, torch.neg, torch.conj_physical, torch.real, torch.imag, torch.sum),
    *(torch.mean, torch.isnan, torch.isinf, torch.isfinite, torch.sqrt, torch.expm1, torch.asin, torch.prod),
    *(torch.acos, torch.acosh, torch.asinh, torch.exp2, torch.var, torch.std),
)
WITH_POLES = (torch.log, torch.reciprocal, torch.rsqrt, torch.log10, torch.log2, torch.log1p, torch.atan, torch.atanh)
OPERATORS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    **{f.__name__: (f, (Z,)) for f in (*FUNCTIONS, *WITH_POLES)},
    **{f"{f.__name__} on the axes": (f, (AXES,)) for f in FUNCTIONS},
    "sum with a number": (lambda z, x: (z + 2, z + (1 - 2j), x + 1j, 1j - z, 2 - x * z), (Z, X)),
    "sum with alpha": (lambda z, w: (torch.add(z, w, alpha=2 - 1j), torch.sub(z, w, alpha=3)), (Z, W)),
    "sum of real and complex": (lambda z, x: (z + x, x - z), (Z, X)),
    "product": (lambda z, w: z * w, (Z, W)),
    "product with what is real": (lambda z, x, i, b: (z * x, z * i, b * z, x * 1j, i * (0.1 + 2j)), (Z, X, I, B)),
    "quotient": (lambda z, w, x: (z / w, z / x, x / z), (Z, W, X)),
    "quotient with a number": (lambda z, x: (2 / z, 1j / z, z / 3, z / (1 + 2j), x / (1 + 2j), 1j / x), (Z, X)),
    "quotient by zero": (
        lambda z, x: (z / (x.abs() * 0), z / (x * 0 + 0j), z / 0j, z / torch.complex(x * INF, x)),
        (Z, X),
    ),
    "quotient of large numbers": (lambda z, w: (z * 1e200) / (w * 1e200), (Z, W)),
    "powers": (lambda z: [z**n for n in (0, 1, 2, 3, 4, 7, -1, -2, 0.5, -0.5, 1.3, 1 + 1j)], (Z,)),
    "powers of zero": (lambda z: [z**n for n in (0, 0j, 2 + 0j, 0.5, 1.3)], (AXES,)),
    "powers that vanish or not": (
        lambda z: [torch.isfinite((z * 0) ** n) for n in (2, 0.5, 1.3, -1.3, 1j, -1, z)],
        (Z,),
    ),
    "powers of real numbers": (lambda x, i: (x ** (0.3 + 1j), i ** (0.3 + 1j), (1.5 - 1j) ** i, i / (i + 1j)), (X, I)),
    "powers with exponents": (lambda z, w, x: (z**w, z**x, x.abs() ** z, 2**z, 1j**z), (Z, W, X)),
    "products of matrices": (lambda m, n: (m @ n, m @ n[:, 0], m.mH @ m, torch.einsum("ij,jk->ki", m, n)), (M, N)),
    "products with a sum": (lambda m, n, c: torch.addmm(c, m, n, beta=2, alpha=1 - 1j), (M, N, numbers(3, 3))),
    "batches of products": (lambda m, c: torch.baddbmm(c, m, m.mH), (numbers(2, 3, 4), numbers(2, 3, 3))),
    "products of vectors": (lambda z, w: (z @ w, torch.vdot(z, w), torch.outer(z, w)), (Z, W)),
    "comparisons": (lambda z, x: (z == z + 0, z == x, z == 0, z != 3j), (AXES, X)),
    "choices": (lambda z, x, b: (torch.where(b, z, 0), torch.where(b, z, x), torch.where(b, x, 1j)), (Z, X, B)),
    "masks": (lambda z, b: (z.masked_fill(b, 1j), z.masked_fill(b, 2.0)), (Z, B)),
    "rows": (lambda z, x, i: (torch.cat([z, x]), torch.stack([z, z], 1), z[i], z.gather(0, i)), (Z, X, I)),
    "writes": (lambda z, w, i: (z.index_add(0, i, w), z.scatter_add(0, i, w), z.index_put((i,), w)), (Z, W, I)),
    "writes in place": (lambda z: (written(z), z.clone().mul_(2j).add_(1)), (Z,)),
    "views": (lambda m: (m.reshape(2, 6).T, m.flip(0).roll(1, 1), m.tril(), m.unbind(0)[1] + 1, m.cumsum(1)), (M,)),
    "padding": (lambda z: torch.nn.functional.pad(z, (1, 2), value=2.0), (Z,)),
    "dtypes": (lambda z, x: (z.to(torch.complex64), x.to(C128), x.to(torch.complex64) * 1j), (Z, X)),
    "dtypes of sums": (
        lambda z, x: (z.cumsum(0, dtype=torch.complex64), x.sum(dtype=C128), x.mean(dtype=C128)),
        (Z, X),
    ),
    "products of all": (lambda m: (m.prod(0), m.prod(1, keepdim=True), m.cumprod(0), m.cumprod(1)), (M,)),
    "small numbers": (lambda z: (torch.log1p(z * 1e-9), torch.expm1(z * 1e-9), torch.atanh(z * 1e-9)), (Z,)),
    "numbers for those that are none": (lambda z: torch.nan_to_num(z / (z.real > 0), 1.0, 2.0, 3.0), (Z,)),
    "traces": (lambda m: (m.trace(), m.new_full((2,), 1j), m.unfold(0, 2, 1)), (M,)),
    "truth": (lambda z: z.bool(), (AXES,)),
    "bfloat16": (lambda x, z: (x * z, x + z, z / x), (X.bfloat16(), Z)),
    "bfloat16 and numbers": (lambda x: (x * (0.1 + 2j), x + (0.1 + 1j), (1 + 0.3j) / x), (X.bfloat16(),)),
    "memory": (lambda m: ((m * 2).T.as_strided((2, 3), (3, 1), 1), m[:1, :1].as_strided((2,), (3,), 1) * 1j), (M,)),
    "from parts": (lambda x: (torch.complex(x, 2 * x), torch.polar(x.abs(), x)), (X,)),
    "from parts that are broadcast": (
        lambda x: (torch.complex(x[:, None], x).mT, torch.complex(x[0], x).sum(0), torch.polar(x.abs(), x[:, None]).mT),
        (X,),
    ),
    "from pairs": (lambda m: torch.view_as_complex(torch.view_as_real(m).clone()), (M,)),
    "new ones": (lambda z: (torch.full_like(z, 2 - 1j), torch.ones_like(z), z.new_zeros(3), torch.eye(5) * z), (Z,)),
    "a number": (lambda x: torch.full((5,), 1 + 2j) * x, (X,)),
    "norms": (lambda m: (m.norm(), torch.linalg.vector_norm(m, 1, dim=1, keepdim=True)), (M,)),
    "means of two": (lambda z, w: (torch.lerp(z, w, 0.3), torch.addcmul(z, w, w, value=2j)), (Z, W)),
    "a transform": (lambda z: torch.fft.fft(z) * 2, (Z,)),
    "a system": (lambda m, n: torch.linalg.solve(m @ n, m), (M, N)),
}
if torch.__version__ >= (2, 14):  # where the result is a bcomplex32, of which torch has no kernels
    del OPERATORS["bfloat16 and numbers"]


def written(z: Tensor) -> Tensor:
    z = z.clone()
    z[1] = z[0] * 3j
    z.real.mul_(2)
    return z


def over_real_parts(f: Callable[..., Any], *args: Tensor) -> list[Tensor]:
    """What compiled code computes, by torch's operators."""
    body = fh.jit(f, backend="eager").lower(*args)._body
    inner = in_real_parts(body)
    return from_pairs(over_pairs(inner)(*as_pairs(args)), inner)


@pytest.mark.parametrize("name", OPERATORS)
def test_parts_are_those_of_the_result(name: str) -> None:
    f, args = OPERATORS[name]
    as_list = lambda *args: [x.clone() for x in optree.tree_leaves(f(*args))]
    same(over_real_parts(as_list, *args), as_list(*args), equal_nan=True)


NOT_SMOOTH = (
    "axes",
    "zero",
    "truth",
    "vanish or not",
    "that are none",
    "isnan",
    "isinf",
    "isfinite",
    "comparisons",
    "a number",
)
DIFFERENTIABLE = [name for name in OPERATORS if not name.endswith(NOT_SMOOTH)]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients(name: str) -> None:
    f, args = OPERATORS[name]

    def loss(*args: Tensor) -> Tensor:
        out = [x for x in optree.tree_leaves(f(*args)) if x.is_floating_point() or x.is_complex()]
        return sum(((x * (0.3 - 1j)).real * torch.arange(x.numel()).view(x.shape)).sum().double() for x in out)

    same(over_real_parts(fh.grad(loss), *args), [torch.func.grad(loss)(*args)])


# ---------------------------------------------------------------------------------------------------------------------
# loops

DECAY = torch.polar(torch.full((4,), 0.9, dtype=F64), torch.linspace(0, 3, 4, dtype=F64))
XS = numbers(6, 4)


def recurrence(decay: Tensor, xs: Tensor) -> Any:
    return fh.scan(lambda h, x: (decay * h + x, (decay * h).real + x.abs()), torch.zeros(4, dtype=C128), xs)


def prefixes(decay: Tensor, xs: Tensor) -> Any:
    combine = lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1])
    return fh.associative_scan(combine, (decay.expand(xs.shape), xs))


def escape(c: Tensor, _: Tensor) -> Any:
    step = lambda s, c: (s[0] * s[0] + c, s[1] + 1)
    lane = lambda c: fh.while_loop(lambda s: (s[0].abs() < 2) & (s[1] < 30), lambda s: step(s, c), (c * 0, 0))
    return fh.vmap(lane)(c)


def branches(decay: Tensor, xs: Tensor) -> Any:
    def step(h: Tensor, x: Tensor) -> Any:
        inner = lambda i, h: fh.cond(h.real.sum() > 0, lambda h: h * decay, lambda h: h + x * 1j, h)
        return fh.fori_loop(0, 3, inner, h), (h.exp(), h.real)

    return fh.scan(step, XS[0], xs, reverse=True)


def orbit(decay: Tensor, xs: Tensor) -> Any:
    return fh.scan(lambda p, x: ((xs[:4] @ p) / p.norm(), p), decay, xs)


LOOPS = {
    "recurrence": (recurrence, ["lanes"]),
    "prefixes": (prefixes, ["lanes"]),
    "escape": (escape, ["lanes"]),
    "branches": (branches, ["steps"]),
    "orbit": (orbit, ["steps"]),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_are_kernels(name: str) -> None:
    f, kinds = LOOPS[name]
    assert taken([loop for loop in plan(f, DECAY, XS).loops if loop.depth == 0]) == kinds


@pytest.mark.slow
@pytest.mark.parametrize("name", ["recurrence", "escape", "branches"])
def test_values_and_gradients_of_kernels(name: str) -> None:
    f, _ = LOOPS[name]

    def loss(decay: Tensor) -> Any:
        out = f(decay, XS)
        return sum(((x * (0.3 - 1j)).real).sum() for x in optree.tree_leaves(out) if x.dtype != torch.int64), out

    compiled = fh.jit(fh.grad(loss, has_aux=True))
    for decay in (DECAY, DECAY.conj(), DECAY.repeat_interleave(2)[::2]):
        same(compiled(decay), torch.func.grad(loss, has_aux=True)(decay))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex operators")
def test_what_has_no_rule_takes_and_returns_complex_tensors() -> None:
    f = lambda xs: fh.scan(lambda h, x: (torch.fft.ifft(torch.fft.fft(h) * x), h.abs()), xs[0], xs)
    same(fh.jit(f)(XS), f(XS))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex operators")
def test_pseudoinverses() -> None:
    """In and outside of a loop: torch.compile loses conjugates in its own (torch 2.13)."""
    f = lambda xs: (torch.linalg.pinv(xs), fh.map(lambda x: torch.linalg.pinv(x[:2]), xs))
    xs = torch.randn(4, 3, 3, dtype=C128, generator=torch.Generator().manual_seed(0))
    same(fh.jit(f)(xs), f(xs))
    same(fh.jit(f, dynamic=True)(xs), f(xs))


@pytest.mark.slow
def test_backward_of_a_jitted_call() -> None:
    decay = DECAY.clone().requires_grad_()
    loss = lambda f: sum(x.real.sum() for x in optree.tree_leaves(f(decay, XS)))
    same(*(torch.autograd.grad(loss(f), decay) for f in (fh.jit(recurrence), recurrence)))
