"""Operators that Inductor makes no C++ of, and prefixes, in the kernels of loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import functorch_hops as fh
from functorch_hops.lowering.decompositions import decompositions
from functorch_hops.lowering.loops.scattering import scatters
from loop_plans import Program, check, normal, plan, taken
from modes import same

linalg = torch.linalg


def each(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *rows: fh.map(lambda row: f(*row), rows)


def gradient(f: Callable[..., Tensor], *argnums: int) -> Callable[..., Any]:
    return lambda *args: fh.grad(lambda *args: each(f)(*args).square().sum(), argnums=argnums)(*args)


A, B = normal(5, 3, 3).double() + 2 * torch.eye(3).double(), normal(5, 3, 2, seed=1).double()
POSITIVE = A @ A.mT
MANY_A, MANY_B = normal(5, 4, 3, 3).double() + 2 * torch.eye(3).double(), normal(5, 4, 3, 2).double()


def triangles(a: Tensor, b: Tensor) -> list[Tensor]:
    return [
        linalg.solve_triangular(a, b if left else b.mT, upper=upper, left=left, unitriangular=unit)
        for upper in (False, True)
        for left in (False, True)
        for unit in (False, True)
    ]


def factors(a: Tensor, b: Tensor) -> Any:
    lu, pivots, info = linalg.lu_factor_ex(a)
    solved = [linalg.lu_solve(lu, pivots, b, adjoint=adjoint) for adjoint in (False, True)]
    right = [linalg.lu_solve(lu, pivots, b.mT, left=False, adjoint=adjoint) for adjoint in (False, True)]
    return lu, pivots, info, torch.lu_unpack(lu, pivots), solved, right, linalg.lu(a), linalg.lu_factor(a)


def rotations(a: Tensor, b: Tensor) -> list[Any]:
    """By reflections: of tall, wide and square matrices, of a triangle, of one without numbers, of columns."""
    given = a, b, b.mT, a.triu(), 0 * a, a[:, :1]
    return [linalg.qr(x, mode) for x in given for mode in ("reduced", "complete", "r")]


def spectra(a: Tensor, b: Tensor) -> list[Any]:
    """Of square, tall and wide matrices, and of one without numbers."""
    given = a, b, b.mT, 0 * a, a.float()
    return [(linalg.svd(x), linalg.svd(x, full_matrices=False), linalg.svdvals(x)) for x in given]


LINEAR: dict[str, Program] = {
    "solve": (each(lambda a, b: (linalg.solve(a, b), linalg.solve(a.mT, b), linalg.solve(a, b[:, 0]))), (A, B)),
    "from the right": (
        each(lambda a, b: (linalg.solve(a, b.mT, left=False), linalg.solve(a.mT, b.mT, left=False))),
        (A, B),
    ),
    "one matrix twice": (each(lambda a: linalg.solve(a, a)), (A,)),
    "inverse": (each(lambda a: (linalg.inv(a), linalg.inv(a.mT))), (A,)),
    "single precision": (each(linalg.inv), (A.float(),)),
    "determinant": (each(lambda a: (linalg.det(a), linalg.slogdet(a), linalg.slogdet(-a))), (A,)),
    "singular determinant": (each(lambda a: (linalg.det(a), linalg.slogdet(a))), (A * 0,)),
    "cholesky": (each(lambda a: (linalg.cholesky(a), linalg.cholesky(a, upper=True))), (POSITIVE,)),
    "cholesky_solve": (
        each(
            lambda a, b: (
                torch.cholesky_solve(b, linalg.cholesky(a)),
                torch.cholesky_solve(b, linalg.cholesky(a, upper=True), upper=True),
            )
        ),
        (POSITIVE, B),
    ),
    "triangles": (each(triangles), (A, B)),
    "factors": (each(factors), (A, B)),
    "factors of many": (
        each(lambda a, b: (linalg.lu(a), linalg.lu_solve(*linalg.lu_factor(a), b, adjoint=True))),
        (MANY_A, MANY_B),
    ),
    "rotations": (each(rotations), (A, B)),
    "exponential": (
        each(lambda a: [linalg.matrix_exp(a * scale) for scale in (0, 1e-3, 0.2, 1, 5)]),
        (torch.cat([A, MANY_A[0]]),),
    ),
    "batch": (
        each(lambda a, b: (linalg.solve(a, b), linalg.inv(a), linalg.det(a), linalg.cholesky(a @ a.mT))),
        (MANY_A, MANY_B),
    ),
    "one triangle for all": (
        lambda a, b: fh.vmap(lambda b: each(lambda a, b: linalg.solve_triangular(a, b, upper=True))(a, b), in_dims=1)(
            b
        ),
        (A, MANY_B),
    ),
    "more rows": (each(linalg.solve), (normal(2, 9, 9).double(), normal(2, 9, 4).double())),
    "gradient of solve": (gradient(linalg.solve, 0, 1), (A, B)),
    "gradient of slogdet": (gradient(lambda a: linalg.slogdet(a)[1], 0), (A,)),
    "gradient of cholesky": (gradient(linalg.cholesky, 0), (POSITIVE,)),
    "gradient of qr": (gradient(lambda a, b: linalg.qr(b)[1] + linalg.qr(b)[0].mT @ a @ b, 0, 1), (A, B)),
    "gradient of lu": (gradient(lambda a, b: linalg.lu_solve(*linalg.lu_factor_ex(a)[:2], b), 0, 1), (A, B)),
    "gradient of matrix_exp": (gradient(linalg.matrix_exp, 0), (A,)),
    "eigenvalues": (
        each(
            lambda a: (linalg.eigh(a), linalg.eigh(a.triu(), UPLO="U"), linalg.eigvalsh(a), linalg.eigvalsh(a.float()))
        ),
        (A + A.mT,),
    ),
    "eigenvalues of many": (each(linalg.eigh), (MANY_A + MANY_A.mT,)),
    "singular values": (each(spectra), (A, B)),
    "singular values of many": (each(linalg.svd), (MANY_A,)),
    "pseudoinverses": (
        each(
            lambda a, b: (
                *(linalg.pinv(x) for x in (a, b, b.mT, b @ b.mT, 0 * b)),
                linalg.pinv(a + a.mT, hermitian=True),
                linalg.pinv(a, atol=b[0, 0].abs()),
                linalg.pinv(a, atol=0.1, rtol=0.5),
                linalg.matrix_rank(b @ b.mT),
            )
        ),
        (A, B),
    ),
    "gradient of eigh": (gradient(lambda a: linalg.eigh(a @ a.mT)[1] ** 2, 0), (A,)),
    "gradient of singular values": (gradient(linalg.svdvals, 0), (A,)),
    "gradient of pinv": (gradient(linalg.pinv, 0), (B,)),
    "gradient of det": (gradient(linalg.det, 0), (A,)),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch._prims_common.check. is deprecated")  # which Inductor calls for diagonals
@pytest.mark.parametrize("name", LINEAR)
def test_small_matrices(name: str) -> None:
    f, args = LINEAR[name]
    tolerances = {} if args[0].dtype is torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    assert set(taken(check(f, *args, **tolerances))) == {"steps"}


@pytest.mark.parametrize(
    ("f", "args"),
    [
        (linalg.inv, (torch.eye(40).expand(2, 40, 40),)),
        (linalg.solve, (torch.eye(8).expand(2, 8, 8), normal(2, 8, 600))),
        (lambda a, b: linalg.solve_triangular(a, b, upper=True), (torch.eye(8).expand(2, 8, 8), normal(2, 8, 600))),
    ],
    ids=["rows", "sides", "sides of a triangle"],
)
def test_large_matrices_are_left_to_lapack(f: Callable[..., Any], args: tuple[Tensor, ...]) -> None:
    (report,) = plan(each(f), *args).loops
    assert report.taken == "native" and "LAPACK" in str(report.reason)


SINGULAR = torch.cat([POSITIVE[:2], A[:1] * 0, POSITIVE[3:]])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("f", "a"),
    [
        (lambda a: linalg.solve(a, a), SINGULAR),
        (linalg.cholesky, SINGULAR),
        (linalg.lu_factor, SINGULAR),
        (linalg.inv, torch.stack([A, SINGULAR], 1)),
    ],
    ids=["solve", "cholesky", "lu_factor", "inverse of one of a batch"],
)
def test_a_matrix_without_inverse_raises_what_eager_does(f: Callable[..., Any], a: Tensor) -> None:
    assert taken(list(plan(each(f), a).loops)) == ["steps"]
    with pytest.raises(RuntimeError) as expected:
        f(a[2])
    with pytest.raises(type(expected.value)) as raised:
        fh.jit(each(f))(a)
    assert str(raised.value) == str(expected.value)


UNKNOWN = A.clone()
UNKNOWN[2] = torch.nan


@pytest.mark.slow
@pytest.mark.parametrize("f", [linalg.eigh, linalg.svd, linalg.eigvalsh, linalg.svdvals])
@pytest.mark.parametrize("rows", [UNKNOWN, UNKNOWN[None]], ids=["one", "many"])
def test_a_matrix_with_nan_raises_what_eager_does(f: Callable[..., Any], rows: Tensor) -> None:
    with pytest.raises(linalg.LinAlgError) as expected:
        f(rows[2] if rows is UNKNOWN else rows[0])
    with pytest.raises(linalg.LinAlgError) as raised:
        fh.jit(each(f))(rows)
    assert str(raised.value).split(" (error code")[0] == str(expected.value).split(" (error code")[0]


def test_a_driver_that_no_cpu_has_is_left_to_torch_which_refuses_it() -> None:
    (report,) = plan(each(lambda a: linalg.svdvals(a, driver="gesvd")), A).loops
    assert report.taken == "native" and "drivers" in str(report.reason)


@pytest.mark.parametrize("f", [linalg.inv_ex, linalg.cholesky_ex, linalg.lu_factor_ex], ids=["inv", "cholesky", "lu"])
def test_a_factorization_that_checks_itself_is_left_to_torch(f: Callable[..., Any]) -> None:
    (report,) = plan(each(lambda a: f(a, check_errors=True)), POSITIVE).loops
    assert report.taken == "native" and "checks its result" in str(report.reason)


@pytest.mark.slow
@pytest.mark.parametrize("pivot", [0, 4, -(2**31)])
def test_pivots_that_are_no_rows_raise_what_eager_does(pivot: int) -> None:
    f, pivots = each(torch.lu_unpack), torch.tensor([1, 2, pivot], dtype=torch.int32).expand(5, 3)
    with pytest.raises(RuntimeError, match="pivots passed to lu_unpack") as expected:
        f(A, pivots)
    with pytest.raises(RuntimeError) as raised:
        fh.jit(f)(A, pivots)
    assert str(raised.value) == str(expected.value)


@pytest.mark.slow
def test_a_check_stays_where_nobody_reads_the_results() -> None:
    with pytest.raises(linalg.LinAlgError):
        fh.jit(lambda a: (each(linalg.inv)(a), a + 1)[1])(SINGULAR)


NUMBERS = normal(3, 4, 9)
NUMBERS[1, 2, 3] = NUMBERS[1, 2, 5] = torch.nan
NUMBERS[0, 0, :4] = 1
NUMBERS[2, 1] = torch.inf


def ordered(a: Tensor) -> Any:
    sums = a.cumsum(-1), a.cumsum(0), a.cumprod(1), a.cummax(-1), a.cummin(0)
    sorts = a.sort(-1), a.sort(0, descending=True), a.argsort(1)
    return sums, sorts, a.topk(3), a.topk(2, 0), a.topk(4, largest=False), a.topk(9)


def particles(w: Tensor, u: Tensor) -> Any:
    """Resampling by the inverse of a distribution function."""

    def step(c: Tensor, u: Tensor) -> Any:
        p = torch.softmax(c, 0)
        return c[torch.searchsorted(p.cumsum(0), u).clamp(max=8)] + u, p.sum()

    return fh.scan(step, w, u)


def places(a: Tensor) -> Any:
    """Of ties the first, of NaNs the first before all; lanes, rows, windows of vectors, and parts that lie apart."""
    along = [f(a, dim) for f in (torch.argmax, torch.argmin) for dim in (0, 1, None)]
    apart = a.reshape(3, 11, 20).permute(2, 0, 1)
    return along, a.max(0), a.min(1), apart.reshape(20, -1).argmax(1), apart.argmin()


TIES = normal(7, 33, 20).round()
TIES[1].view(-1)[::3] = torch.nan
TIES[2].view(-1)[::2] = -torch.inf
TIES[3], TIES[4], TIES[5] = torch.inf, -torch.inf, torch.nan


PLACES = torch.randint(0, 4, (3, 5, 9), generator=torch.Generator().manual_seed(0))


def scattered(a: Tensor, src: Tensor, index: Tensor) -> list[Any]:
    """Reductions into places that are data."""
    found = [
        a.scatter_reduce(0, index, src, reduce, include_self=included)
        for reduce in ("sum", "mean", "prod", "amax", "amin")
        for included in (True, False)
    ]
    rows = [
        a.index_reduce(0, index[:, 0], src, reduce, include_self=included)
        for reduce in ("mean", "prod", "amax", "amin")
        for included in (True, False)
    ]
    return [*found, *rows, torch.scatter(a, 0, index[:4], 2.0, reduce="multiply"), a[:, 0].histc(5, -1, 2)]


def counted(a: Tensor, src: Tensor, index: Tensor) -> list[Any]:
    """Sums in dtypes in which Inductor adds to no place that is data."""
    sums = [a.scatter_add(0, index, src), a.scatter_reduce(0, index, src, "mean", include_self=False)]
    sums += [a.index_add(0, index[:, 0], src), a.index_put((index[:, :2] - 4,), src[0], accumulate=True)]
    return [*sums, a.index_add(1, index[0] + 5, src[:4], alpha=-2), a.bool().index_add(0, index[:, 0], src > 3)]


REDUCTIONS = ("sum", "mean", "amax", "amin")


def scattered_lightly(a: Tensor, src: Tensor, index: Tensor) -> Tensor:
    found = [a.scatter_reduce(0, index, src, reduce, include_self=i % 2 > 0) for i, reduce in enumerate(REDUCTIONS)]
    return torch.stack(found) * torch.arange(1, 5).reshape(-1, 1, 1)


ORDERING: dict[str, Program] = {
    "scatters": (each(scattered), (NUMBERS.double(), normal(3, 5, 9, seed=1).double(), PLACES)),
    "scattered integers": (
        each(
            lambda a, src, index: [
                a.scatter_reduce(0, index, src, reduce, include_self=False)
                for reduce in ("sum", "mean", "prod", "amax", "amin")
            ]
        ),
        ((normal(3, 4, 9) * 9).int(), (normal(3, 5, 9, seed=1) * 9).int(), PLACES),
    ),
    "counts": (each(counted), ((normal(3, 4, 9) * 9).long(), (normal(3, 5, 9, seed=1) * 9).long(), PLACES)),
    "rows of bfloat16": (
        each(lambda a, src, index: a.index_add(0, index[:, 0], src, alpha=2)),
        ((normal(3, 4, 9) * 9).round().bfloat16(), (normal(3, 5, 9, seed=1) * 9).round().bfloat16(), PLACES),
    ),
    "gradient of scatters": (
        gradient(lambda a, src, index: scattered_lightly(a, src, index), 0, 1),
        (normal(3, 4, 9).double(), normal(3, 5, 9, seed=1).double(), PLACES),
    ),
    "logarithms of sums": (
        each(
            lambda a: (a.logcumsumexp(0), a.logcumsumexp(-1), torch.cat([a, -math.inf * a[:1].abs()]).logcumsumexp(0))
        ),
        (NUMBERS.double(),),
    ),
    "gradient of logarithms of sums": (
        gradient(lambda a: a.logcumsumexp(-1), 0),
        (normal(3, 4, 9).double(),),
    ),
    "places": (each(places), (TIES,)),
    "float": (each(ordered), (NUMBERS,)),
    "double": (each(ordered), (NUMBERS.double(),)),
    "integers": (each(ordered), ((NUMBERS.nan_to_num() * 3).clamp(-50, 50).long(),)),
    "other dtypes": (
        each(lambda a: (a.int().cumsum(0), a.int().cumsum(0, dtype=torch.float32), (a > 0).cumsum(0), (a > 0).sort(1))),
        (NUMBERS.nan_to_num(),),
    ),
    "many": (each(lambda a: (a.topk(3), a.sort(-1))), (normal(3, 300),)),
    "scalars": (each(lambda a: (a.cumsum(0), a.sort(0))), (normal(5),)),
    "searches": (
        each(
            lambda a, b: (
                torch.searchsorted(a[0].cumsum(0), b),
                torch.searchsorted(a.cumsum(1), b, right=True),
                torch.bucketize(b, a[1].cumsum(0), right=True),
            )
        ),
        (normal(3, 4, 9).abs(), normal(3, 4, 5).abs() * 5),
    ),
    "particles": (particles, (normal(9), normal(5, 9).abs() / 4)),
}


def _attracted(points: Tensor) -> Tensor:
    away = points[None] - points[:, None]
    weights = (away.square().sum(-1) + 0.5) ** -1.5
    return points + 0.01 * (weights[..., None] * away.sin()).sum(1) / weights.sum(1, keepdim=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_pairs_of_points_whose_coordinates_lie_side_by_side(dtype: torch.dtype) -> None:
    """Kernels of vectors that are read with gaps, and weights of pairs, which are broadcast to coordinates."""
    points = tuple(normal(n, d).to(dtype) for n, d in ((8, 3), (5, 3), (1, 3), (17, 2), (3, 5), (9, 1), (33, 3)))
    f = lambda *points: fh.fori_loop(0, 4, lambda _, points: tuple(map(_attracted, points)), points)
    (report,) = check(f, *points, **({"rtol": 5e-2, "atol": 5e-2} if dtype is torch.bfloat16 else {}))
    assert report.taken == "steps"


def test_what_is_broadcast_stays_in_its_lane() -> None:
    step = lambda c, x: (c * torch.exp(-x.tanh()) + x.sqrt(), None)
    (report,) = check(lambda c, xs: fh.scan(step, c, xs)[0], normal(5, 7), normal(4, 1, 1, seed=1).abs())
    assert report.taken == "lanes"


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.int64], ids=str)
def test_rows_are_reduced_within_vectors(dtype: torch.dtype) -> None:
    rows = (normal(3, 5, 19) * 9).to(dtype)
    reduced = lambda a: [a.sum(1), a.amax(1), a.amin(1), (a[:, :16] % 3).prod(1), a[:, :1].sum(1)]
    assert taken(check(each(reduced), rows)) == ["steps"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_integers_divided_by_numbers(dtype: torch.dtype) -> None:
    most, least = torch.iinfo(dtype).max, torch.iinfo(dtype).min
    divisors = [c for c in (1, 2, 7, 64, 1000, 2**31 - 1, 10**12 + 39, 2**62) if c <= most] + [most]
    ends = torch.tensor([least, least + 1, least // 2, 0, 1, most // 2, most - 1, most], dtype=dtype)
    xs = torch.stack([torch.cat([ends, ends[:3]]).roll(i) for i in range(4)])
    divided = lambda x: [(x // c, x % c, torch.div(x, c, rounding_mode="trunc"), torch.fmod(x, c)) for c in divisors]
    run = fh.jit(lambda xs: fh.scan(lambda c, x: (c ^ x, divided(x)), xs[0], xs)[1])
    same(run(xs), divided(xs))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rounded_quotients(dtype: torch.dtype) -> None:
    """As torch computes them, digit by digit, in a loop and outside of one: Inductor's own are others."""
    ends = [0.0, 1.0, 7.0, 0.1, 2.5, 3.3, 1e-5, 3e9, math.inf, math.nan]
    numbers = torch.tensor([*ends, *(-v for v in ends)], dtype=dtype)
    x, y = torch.cartesian_prod(numbers, numbers).unbind(1)
    n = torch.arange(1, len(x) + 1, dtype=torch.int32)

    def divided(x: Tensor, y: Tensor) -> list[Tensor]:
        return [x // y, x % y, x // 0.1, x % 0.1, 7.0 // y, 7 % y, x // 3, x % n, n // y, x.floor_divide(-2.5)]

    got = fh.jit(lambda x, y: (fh.map(lambda row: divided(*row), (x[None], y[None])), divided(x, y)))(x, y)
    expected = divided(x, y)
    for values in ([v[0] for v in got[0]], got[1]):
        same(values, expected, rtol=0, atol=0, equal_nan=True)
        same(*([v.nan_to_num(1.0).signbit() for v in each] for each in (values, expected)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:index_reduce.. is in beta")
@pytest.mark.parametrize("name", ORDERING)
def test_sorts_sums_and_searches(name: str) -> None:
    f, args = ORDERING[name]
    assert set(taken(check(f, *args))) == {"steps"}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.bool, torch.int64], ids=str)
def test_comparisons_of_short_integers(dtype: torch.dtype) -> None:
    """Whose masks have more lanes than the kernel: what lies behind their stack, another one, is not written to."""
    xs, ys = torch.ones(3, 3, 19, dtype=dtype), torch.arange(171).reshape(3, 3, 19)
    f = fh.vmap(lambda xs, ys: fh.scan(lambda c, r: (c, (r[0] > 0, r[1] & 3, r[1].amin())), 0, (xs, ys))[1])
    same(fh.jit(f)(xs, ys), (xs > 0, ys & 3, ys.amin(-1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32, torch.int64], ids=str)
def test_parts_of_vectors(dtype: torch.dtype) -> None:
    """Rows of all lengths, written from the last to the first: what lies behind a row is not written to."""
    rows = [normal(3, n, seed=n).mul(9).round().to(dtype) for n in (1, 2, 3, 5, 6, 7, 9, 12, 15, 17)]

    def step(carry: list[Tensor], xs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return [c * 2 - x for c, x in zip(carry, xs)], [c + x * 3 - c.amax() for c, x in zip(carry, xs)]

    def f(*rows: Tensor) -> Any:
        return fh.scan(step, [row[0] for row in rows], list(rows), reverse=True)

    assert taken(check(f, *rows)) == ["steps"]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_divisions_by_parts_of_vectors(dtype: torch.dtype) -> None:
    """Behind the last number nothing is divided by zero."""
    rows = [torch.arange(1, 3 * n + 1, dtype=dtype).reshape(3, n) for n in (1, 3, 5, 7, 9, 17)]

    def step(carry: list[Tensor], xs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return [c + 17 % x for c, x in zip(carry, xs)], [c.amax() % x - 9 // x for c, x in zip(carry, xs)]

    assert taken(check(lambda *rows: fh.scan(step, [row[0] for row in rows], list(rows)), *rows)) == ["steps"]


@pytest.mark.slow
def test_reductions_of_short_integers() -> None:
    """Of which Inductor's vectors are not full."""

    def reduced(x: Tensor) -> list[Tensor]:
        sums = [(x + 1).sum(dtype=x.dtype), (x | 1).prod(dtype=x.dtype)]
        return [*sums, x.min(), (x + 1).min(), x.max(), x.argmin(), x.argmax(), x.reshape(5, -1).amin(0)]

    tensors = [(normal(3, 125).clamp(-3, 3) + first).to(dtype) for first, dtype in ((9, torch.uint8), (-9, torch.int8))]
    f = lambda *xs: [(fh.map(reduced, x), reduced(x[1])) for x in xs]
    same(fh.jit(f)(*tensors), f(*tensors))


@pytest.mark.slow
def test_exponents_of_doubles_are_numbers_of_32_bits() -> None:
    x = normal(3, 5, 11).double()
    check(each(lambda a: (torch.frexp(a).mantissa, torch.frexp(a).exponent.sin(), torch.frexp(a).exponent * a)), x)


@pytest.mark.slow
def test_a_scatter_out_of_range_raises_what_eager_does() -> None:
    index = PLACES.clone()
    index[1, 2, 3] = 4
    f = each(lambda a, src, index: a.scatter_reduce(0, index, src, "amax"))
    args = normal(3, 4, 9), normal(3, 5, 9), index
    with pytest.raises(RuntimeError) as expected:
        f(*args)
    with pytest.raises(RuntimeError, match="index 4 is out of bounds for dimension 0 with size 4") as raised:
        fh.jit(f)(*args)
    assert str(raised.value) in str(expected.value)


def test_a_histogram_has_what_lies_on_an_edge_where_torch_has_it() -> None:
    x = torch.cat([torch.linspace(0.1, 0.7, 8), torch.linspace(-0.5, 2, 301)])
    same(scatters(decompositions())[torch.ops.aten.histc.default](x, 7, 0.1, 0.7), x.histc(7, 0.1, 0.7))


def recurrence(a: Any, b: Any) -> Any:
    return a[0] * b[0], b[0] * a[1] + b[1]


DECAY, X = normal(9, 40).sigmoid(), normal(9, 40, seed=1)

PREFIXES: dict[str, tuple[str, Callable[..., Any], tuple[Tensor, ...]]] = {
    "recurrence": ("lanes", lambda *e: fh.associative_scan(recurrence, e), (DECAY, X)),
    "reverse": ("lanes", lambda *e: fh.associative_scan(recurrence, e, reverse=True), (DECAY, X)),
    "dim": ("lanes", lambda *e: fh.associative_scan(recurrence, e, dim=1), (DECAY, X)),
    "one element": ("lanes", lambda *e: fh.associative_scan(recurrence, e), (DECAY[:1], X[:1])),
    "scalars": ("lanes", lambda x: fh.associative_scan(torch.maximum, x[:, 0]), (X,)),
    "closed over": ("lanes", lambda x, w: fh.associative_scan(lambda a, b: a + b + w - w, x), (X, X[0])),
    "matrices": ("steps", lambda x: fh.associative_scan(torch.matmul, x), (normal(9, 4, 4) / 2,)),
    "masks": (
        "lanes",
        lambda m, x: fh.associative_scan(lambda a, b: (a[0] & b[0], torch.where(b[0], a[1] + b[1], b[1])), (m, x)),
        (X > 0, X),
    ),
    "vmap": ("lanes", lambda *e: fh.vmap(lambda *e: fh.associative_scan(recurrence, e))(*e), (DECAY, X)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PREFIXES)
def test_prefixes_in_one_pass(name: str) -> None:
    lowering, f, args = PREFIXES[name]
    assert taken(check(f, *args, rtol=1e-4, atol=1e-5)) == [lowering]


def test_a_loop_in_a_combination_that_is_no_kernel_stays_a_loop() -> None:
    """The combination is vmapped there, and a kernel has no rule for that."""

    def combine(a: Tensor, b: Tensor) -> Tensor:
        same_a = torch.where(torch.linalg.ldl_factor(a.outer(a))[0].isnan().any(), b, a)
        return fh.fori_loop(0, 3, lambda _, c: torch.maximum(c, b), same_a)

    f = lambda x: fh.associative_scan(combine, x)
    made = plan(f, X)
    assert taken(list(made.loops)) == ["native"]
    same(made.body(X)[0], X.cummax(0)[0])


@torch.library.custom_op("functorch_hops_tests::sine_and_cosine", mutates_args=())
def _sine_and_cosine(x: Tensor) -> list[Tensor]:
    return [x.sin(), x.cos()]


@_sine_and_cosine.register_fake
def _(x: Tensor) -> list[Tensor]:
    return [torch.empty_like(x), torch.empty_like(x)]


def test_an_operator_of_the_users_is_left_to_torch() -> None:
    def step(c: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        sine, cosine = _sine_and_cosine(c * x)
        return sine + cosine, sine

    (report,) = check(lambda x: fh.scan(step, x[0], x), normal(3, 4))
    assert report.reason == "Inductor makes no C++ of functorch_hops_tests.sine_and_cosine.default"


def test_a_number_of_elements_that_values_decide_is_left_to_torch() -> None:
    f = lambda x: fh.fori_loop(0, 3, lambda i, c: c + torch.bincount(x, minlength=9), torch.zeros(9, dtype=torch.int64))
    (report,) = check(f, torch.arange(9))
    assert report.reason == "the size of what aten.bincount.default gives depends on values"


def _of_scan(step: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    """A scan's final carry with weights, and the derivatives of their sum."""

    def total(c: Tensor, xs: Tensor) -> Tensor:
        end = fh.scan(lambda c, x: (step(c, x), None), c, xs)[0]
        return (end * torch.linspace(0.5, 1.5, end.numel(), dtype=end.dtype).reshape(end.shape)).sum()

    return fh.grad(total, argnums=(0, 1))


def _stencil(c: Tensor, x: Tensor) -> Tensor:
    """Of what flows over no edge."""
    padded = F.pad(c[None], (1, 2, 2, 1), mode="replicate")[0]
    return c + 0.1 * (padded[:, 2:-1, 1:-2].sin() - padded[:, :-3, 1:-2] + padded[:, 2:-1, 3:]) + x


def _warped(images: Tensor, mode: str, is_aligned: bool) -> Callable[[Tensor], Tensor]:
    return lambda places: F.grid_sample(images[None], places[None], mode=mode, align_corners=is_aligned)[0]


def _mapped_loss(loss: Callable[..., Tensor], **options: Any) -> Callable[..., Any]:
    """Of several scores with the same targets: the sum of squares, and its derivative."""
    total = lambda scores, targets: fh.map(lambda x: loss(x, targets, **options), scores).square().sum()
    return fh.value_and_grad(total)


LABELS = torch.tensor([[2, 0, -1, 1, 4], [-1, 1, 1, 2, 3], [4, 3, 3, 1, 0], [0, 1, 2, 3, 4]])
SCORES = normal(3, 4, 5).double()
"""Labels end at the first that is negative; torch's own code for Inductor (2.13) adds up all of them."""

IMAGES, SAMPLED = normal(3, 5, 7).double(), normal(4, 6, 7, 2, seed=1).double()
COMPOSED: dict[str, Program] = {
    "soft threshold": (_of_scan(lambda c, x: F.softshrink(c + x, 0.3)), (IMAGES[0], normal(4, 5, 7).double())),
    "hard threshold": (_of_scan(lambda c, x: F.hardshrink(c + x, 0.3)), (IMAGES[0], normal(4, 5, 7).double())),
    **{
        f"margins of {what}, {reduction}": (_mapped_loss(loss, reduction=reduction, **options), (SCORES, targets))
        for reduction in ("none", "mean", "sum")
        for what, loss, options, targets in (
            ("classes", F.multi_margin_loss, {"p": 2, "margin": 0.7}, LABELS[:, 0].abs()),
            ("labels", F.multilabel_margin_loss, {}, LABELS),
        )
    },
    "lines padded by their ends": (
        _of_scan(lambda c, x: F.pad(c, (2, 1), mode="replicate")[:, :-3] * x),
        (IMAGES[0], normal(4, 5, 7).double()),
    ),
    "images padded by their edges": (_of_scan(_stencil), (IMAGES, normal(4, 3, 5, 7).double())),
    "volumes padded by their faces": (
        _of_scan(lambda c, x: F.pad(c[None], (1, 0, 2, 1, 0, 1), mode="replicate")[0, :, 1:, 1:-2, :-1] * x),
        (normal(2, 3, 4, 5).double(), normal(4, 2, 3, 4, 5).double()),
    ),
    **{
        f"{mode} samples, corners {'aligned' if is_aligned else 'apart'}": (
            lambda images, places, mode=mode, is_aligned=is_aligned: fh.grad(
                lambda images, places: fh.map(_warped(images, mode, is_aligned), places).square().sum(), argnums=(0, 1)
            )(images, places),
            (IMAGES, 1.3 * SAMPLED),
        )
        for mode in ("bilinear", "nearest")
        for is_aligned in (True, False)
    },
}
"""Gradients that Inductor makes no C++ of."""


@pytest.mark.parametrize("name", COMPOSED)
def test_gradients_that_are_composed_of_others(name: str) -> None:
    f, args = COMPOSED[name]
    assert "native" not in taken(check(f, *args))


def test_places_on_the_elements_of_an_image_have_the_slopes_of_eager() -> None:
    """There the derivative jumps."""
    places = F.affine_grid(torch.eye(2, 3)[None], [1, 3, 5, 7], align_corners=True)
    f = fh.grad(lambda places, images: fh.map(_warped(images, "bilinear", True), places).square().sum())
    assert "native" not in taken(check(f, torch.cat([places, 1.5 * places, places * math.nan]), IMAGES.float()))


def test_what_is_infinite_has_no_part_in_gradients_of_samples_outside() -> None:
    images, places = IMAGES[:1].index_fill(1, torch.tensor([0]), math.inf), 1.5 * SAMPLED
    f = fh.grad(lambda places, images: fh.map(_warped(images, "bilinear", True), places)[:, :, 1:].sum())
    assert "native" not in taken(check(f, places, images))
