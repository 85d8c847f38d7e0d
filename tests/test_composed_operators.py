"""Operators of a library in the steps of compiled loops: composed of others they are the same, in kernels."""

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
from functorch_hops.lowering.loops.composed import composed
from functorch_hops.lowering.loops.convolution import convolutions
from functorch_hops.lowering.loops.separable import separable
from functorch_hops.lowering.nearest import which_nearest
from loop_plans import check, normal, plan, taken
from modes import same

aten = torch.ops.aten
FLASH = aten._scaled_dot_product_flash_attention_for_cpu.default
FLASH_BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def as_library(operator: Any, *args: Any, **kwargs: Any) -> None:
    expected = operator(*args, **kwargs)
    got = composed()[operator](*args, **kwargs)
    assert [x.dtype for x in as_tuple(got)] == [x.dtype for x in as_tuple(expected)]
    same(got, expected, equal_nan=True)


def as_tuple(x: Any) -> tuple[Tensor, ...]:
    return (x,) if isinstance(x, Tensor) else tuple(x)


def masks(rows: int, columns: int) -> list[Tensor | None]:
    hiding = torch.zeros(rows, columns)
    hiding[0, :-1] = hiding[-1, 0] = -math.inf
    return [None, normal(2, 1, rows, columns, seed=3), hiding]


@pytest.mark.parametrize("sizes", [(5, 5), (1, 7), (6, 3)], ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
def test_attention(sizes: tuple[int, int], is_causal: bool) -> None:
    rows, columns = sizes
    query, key, value = normal(2, 3, rows, 8), normal(2, 3, columns, 8, seed=1), normal(2, 3, columns, 8, seed=2)
    for mask in masks(rows, columns)[: 1 if is_causal else 3]:
        settings = {"attn_mask": mask, "scale": 0.3}
        as_library(FLASH, query, key, value, 0.0, is_causal, **settings)
        out, logsumexp = FLASH(query, key, value, 0.0, is_causal, **settings)
        given = normal(*out.shape, seed=4)
        as_library(FLASH_BACKWARD, given, query, key, value, out, logsumexp, 0.0, is_causal, **settings)


def test_what_attends_to_nothing() -> None:
    query = normal(1, 1, 3, 4)
    mask = torch.tensor([[0.0, 0.0, 0.0], [-math.inf] * 3, [0.0, -math.inf, 0.0]])
    same(composed()[FLASH](query, query, query, attn_mask=mask)[0], FLASH(query, query, query, attn_mask=mask)[0])


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_distances(p: float) -> None:
    for x, y in ((normal(4, 5), normal(3, 5, seed=1)), (normal(2, 4, 5), normal(2, 3, 5, seed=1)), (normal(4, 5),) * 2):
        as_library(aten._cdist_forward.default, x, y, p, None)
        distances = aten._cdist_forward(x, y, p, None)
        as_library(aten._cdist_backward.default, normal(*distances.shape, seed=2), x, y, p, distances)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_order(dim: int) -> None:
    x, gaps = normal(4, 7), normal(4, 7)
    gaps[1, 3], gaps[2], gaps[3, 0] = math.nan, math.nan, math.inf
    for keepdim in (False, True):
        as_library(aten.kthvalue.default, x, 2, dim, keepdim)
        for values in (x, gaps):
            as_library(aten.median.dim, values, dim, keepdim)
        as_library(aten.nanmedian.dim, torch.where(gaps.isnan().all(1, True), x, gaps), dim, keepdim)
    as_library(aten.median.default, gaps if dim else x)
    as_library(aten.nanmedian.default, gaps)


def test_inverses_of_factors() -> None:
    factor = torch.linalg.cholesky(torch.eye(4) * 5 + 1)
    as_library(aten.cholesky_inverse.default, factor)
    as_library(aten.cholesky_inverse.default, factor.mT.contiguous(), True)


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("sizes", [(4, 7), (7, 3), (5, 5), (3, 6), (6, 1)], ids=str)
def test_gradients_of_interpolation(sizes: tuple[int, int], align: bool) -> None:
    """Along each dimension another size; with a scale of the user's, and without."""
    n, m = sizes
    # Of equal sizes with a scale torch takes the cotangent of a cubic interpolation for its gradient.
    for scale in (None, m / n + 0.1) if n != m else (None,):
        for dims, operators in LINEAR.items():
            sides, given = (n, m, n)[:dims], normal(2, 3, *(m, n + 1, m)[:dims])
            scales = (scale, None, scale)[:dims]
            for operator in operators:
                has_corners = any("align_corners" in argument.name for argument in operator._schema.arguments)
                corners = (align,) if has_corners else ()
                args = given, given.shape[2:], (2, 3, *sides), *corners, *scales
                expected, got = operator(*args), separable()[operator](*args)
                same(got, expected, rtol=1e-4, atol=1e-5)


LINEAR = {
    1: (
        aten._upsample_nearest_exact1d_backward.default,
        aten.upsample_linear1d_backward.default,
        aten.upsample_nearest1d_backward.default,
    ),
    2: (
        aten._upsample_nearest_exact2d_backward.default,
        aten.upsample_bicubic2d_backward.default,
        aten.upsample_bilinear2d_backward.default,
    ),
    3: (
        aten._upsample_nearest_exact3d_backward.default,
        aten.upsample_nearest3d_backward.default,
        aten.upsample_trilinear3d_backward.default,
    ),
}


@pytest.mark.parametrize(("n", "m", "scale"), [(5, 8, 1.7), (26, 22, None), (2, 12, None)])
def test_gradients_of_the_nearest_interpolation(n: int, m: int, scale: float | None) -> None:
    """By a scale, of places that are rounded, of large windows: Inductor counts by the sizes."""
    operator = aten.upsample_nearest2d_backward.default
    args = normal(2, 3, m, 15), (m, 15), (2, 3, n, 3), scale, None
    same(decompositions()[operator](*args), operator(*args))


@pytest.mark.parametrize("is_exact", [False, True])
def test_which_element_is_the_nearest(is_exact: bool) -> None:
    operator = aten._upsample_nearest_exact1d_backward if is_exact else aten.upsample_nearest1d_backward
    for n in range(1, 41):
        for m in range(1, 41):
            for scale in (None, (m + 0.5) / n):
                rows = operator(torch.eye(m)[:, None], [m], [m, 1, n], scale)[:, 0].argmax(-1)
                assert torch.equal(which_nearest(n, m, scale, is_exact=is_exact), rows), (n, m, scale)


@pytest.mark.slow
def test_gradients_of_the_nearest_interpolation_by_a_scale() -> None:
    f = fh.grad(lambda x: (F.interpolate(x, scale_factor=1.7) ** 3).sum())
    x = normal(1, 2, 5, 5)
    same(fh.jit(f)(x), f(x))


def test_adaptive_pooling() -> None:
    for shape, out in (((2, 3, 5, 6), (3, 4)), ((2, 3, 4, 6), (6, 2)), ((3, 5, 6), (1, 5))):
        x, given = normal(*shape), normal(*shape[:-2], *out, seed=1)
        as_separable(aten._adaptive_avg_pool2d_backward.default, given, x)
        places = aten.adaptive_max_pool2d(x, out)[1]
        as_library(aten.adaptive_max_pool2d_backward.default, given, x, places)
    x, given = normal(2, 3, 5, 6, 4), normal(2, 3, 3, 2, 5, seed=1)
    as_separable(aten._adaptive_avg_pool3d.default, x, (3, 2, 5))
    as_separable(aten._adaptive_avg_pool3d_backward.default, given, x)
    as_library(aten.adaptive_max_pool3d_backward.default, given, x, aten.adaptive_max_pool3d(x, (3, 2, 5))[1])


def as_separable(operator: Any, *args: Any) -> None:
    same(separable()[operator](*args), operator(*args))


def test_large_interpolation_is_left_to_the_library() -> None:
    operator = aten.upsample_bilinear2d_backward.default
    assert separable()[operator](normal(1, 1, 64, 64), (64, 64), (1, 1, 32, 32), False) is NotImplemented


def test_products_with_factors() -> None:
    x, a, b = normal(4), normal(2, 3, 5), normal(2, 5, 4, seed=1)
    for factors in ({"alpha": 2}, {"beta": 0.5}, {"alpha": 0, "beta": 2}, {"beta": 0}, {"alpha": 2.7, "beta": -1.9}):
        as_library(aten.addmm.default, x / (factors.get("beta", 1) != 0), a[0], b[0], **factors)
        as_library(aten.baddbmm.default, x, a, b, **factors)
        as_library(aten.addbmm.default, x, a, b, **factors)
        whole = [(t * 9).long() for t in (x, a, b)]
        as_library(aten.baddbmm.default, *whole, **factors)
        as_library(aten.addbmm.default, *whole, **factors)
    as_library(aten.addbmm.default, x, a, b)
    as_library(aten._trilinear.default, x, normal(3, 4), normal(5, 4), [0, 1], [1], [0], [2])
    as_library(aten._trilinear.default, x, normal(3, 4), normal(5, 4), [0, 1], [1], [0], [])


def attending(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], is_causal=True)[:, 0]


def convolved_back_and_forth(x: Tensor) -> Tensor:
    weight = torch.linspace(-1, 1, 18).reshape(3, 2, 3)
    return F.conv_transpose1d(F.conv1d(x, weight, stride=2), weight, stride=2)


def upsampled_and_pooled(x: Tensor) -> Tensor:
    wide = F.interpolate(x, size=(9, 4), mode="bilinear") + F.interpolate(x, size=(9, 4), mode="nearest")
    return F.adaptive_avg_pool2d(wide, (6, 6)) + F.adaptive_max_pool2d(wide, (6, 6))


@pytest.mark.parametrize("sizes", [(9, 6, 3, 2), (5, 2, 4, 1), (7, 3, 2, 0)], ids=str)
def test_means_over_windows_that_end_behind_the_padding(sizes: tuple[int, int, int, int]) -> None:
    """Inductor divides by the elements of a whole window."""
    n, kernel, step, pad = sizes
    for dims, pool, operator in (
        (2, aten.avg_pool2d, aten.avg_pool2d_backward.default),
        (3, aten.avg_pool3d, aten.avg_pool3d_backward.default),
    ):
        x = normal(2, 3, *range(n, n + dims))
        settings = [kernel] * dims, [step] * dims, [pad] * dims, True, True, None
        args = normal(*pool(x, *settings).shape, seed=1), x, *settings
        same(decompositions()[operator](*args), operator(*args))
        settings = [kernel], [step], [pad], True, True, None  # each number for all dimensions
        same(decompositions()[operator](*args[:2], *settings), operator(*args))


@pytest.mark.filterwarnings("ignore:var_mean.*degrees of freedom")
def test_the_mean_of_nothing_is_no_number() -> None:
    operator = aten.var_mean.correction
    for x, dim in ((normal(0, 3), None), (normal(0, 3), [0]), (normal(2, 0, 3), [1])):
        same(decompositions()[operator](x, dim), operator(x, dim), equal_nan=True)


CONVOLUTIONS = {
    "steps of two": ((2, 4, 7), (6, 4, 3), ([2], [1], [1], False, [0], 1)),
    "what no tap reads": ((2, 4, 8, 8), (6, 2, 3, 2), ([3, 2], [0, 1], [2, 1], False, [0, 0], 2)),
    "transposed": ((2, 4, 5), (4, 3, 3), ([1], [0], [1], True, [0], 1)),
    "transposed in groups": ((2, 4, 5, 3), (4, 3, 3, 2), ([2, 3], [1, 0], [1, 2], True, [1, 2], 2)),
    "transposed, only padding": ((1, 2, 1), (2, 3, 2), ([3], [2], [3], True, [2], 1)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str) -> None:
    of_x, of_weight, settings = CONVOLUTIONS[name]
    x, weight = normal(*of_x).double(), normal(*of_weight, seed=1).double()
    channels = of_weight[1] * settings[-1] if settings[3] else of_weight[0]
    bias = normal(channels, seed=2).double()
    table, operator, backward = convolutions(), aten.convolution.default, aten.convolution_backward.default
    expected = operator(x, weight, bias, *settings)
    same(table[operator](x, weight, bias, *settings), expected)
    args = normal(*expected.shape, seed=3).double(), x, weight, [channels], *settings, [True, True, True]
    same(table[backward](*args), backward(*args))


OF_PAIRS = normal(5, 5, 5)
BODIES: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "attention": (attending, normal(2, 5, 8)),
    "distances": (lambda x: torch.cdist(x, x) + x, normal(4, 4)),
    "factors": (lambda x: torch.addmm(x, x, x, alpha=0.5, beta=2), normal(4, 4)),
    "up and down": (upsampled_and_pooled, normal(1, 2, 6, 6)),
    "wide steps": (convolved_back_and_forth, normal(1, 2, 7)),
    "bilinear": (lambda x: F.bilinear(x, x.sin(), OF_PAIRS), normal(60, 5)),
    "median": (lambda x: x - x.median(-1, keepdim=True)[0] * 0.5, normal(3, 5)),
    "interpolation": (lambda x: F.interpolate(x, size=(6, 6), mode="bilinear") * 0.9, normal(1, 2, 6, 6)),
}


def looped(name: str) -> tuple[Callable[[Tensor], Any], Tensor]:
    body, x = BODIES[name]
    return lambda x: fh.scan(lambda c, _: (0.5 * body(c), c.sum()), x, None, length=3), x


@pytest.mark.parametrize("name", BODIES)
def test_loops_are_kernels(name: str) -> None:
    assert taken(list(plan(*looped(name)).loops)) == ["steps"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["attention", "distances", "up and down", "wide steps"])
def test_their_gradients_are_kernels(name: str) -> None:
    f, x = looped(name)
    assert set(taken(check(fh.grad(lambda x: f(x)[1].sum()), x))) == {"steps"}
