"""Operators that Inductor calls a library for, as others of which it makes C++ (torch 2.13).

In the step of a loop they are small, as a rule; attention over many places is left to the library, which does not hold
all weights at once.
"""

from __future__ import annotations

import functools
import itertools
import math
import string
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions

from .source import computed_dtype

__all__ = ["composed"]

aten = torch.ops.aten

_MANY = 1 << 13
"""With so many weights of attention, or differences of pairs, the library is as fast, and it holds less at once."""


@functools.cache
def composed() -> dict[Any, Callable[..., Any]]:
    torchs = get_decompositions(
        [
            aten.adaptive_max_pool3d.default,
            aten.upsample_bicubic2d.default,
            aten.upsample_bilinear2d.default,
            aten.upsample_trilinear3d.default,
        ]
    )
    return {**torchs, **_COMPOSED}


def _is_small(*sizes: Any) -> bool:
    return all(type(size) is int for size in sizes) and 0 < math.prod(sizes) <= _MANY


# ---------------------------------------------------------------------------------------------------------------------
# attention


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Any:
    if dropout_p or not _is_plain(query, key):
        return NotImplemented
    scores = _scores(query, key, is_causal, attn_mask, scale)
    logsumexp = scores.logsumexp(-1)
    weights = _weights(scores, logsumexp)
    out = weights @ value.to(weights.dtype)
    return out.to(query.dtype), logsumexp


def _attention_backward(
    cotangent: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    dropout_p: float,
    is_causal: bool,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Any:
    """With weights ``p`` of scores ``s``: ``bar s = p (bar p - sum(bar p p))``; the sum is that of ``bar o o``."""
    if dropout_p or not _is_plain(query, key):
        return NotImplemented
    scores = _scores(query, key, is_causal, attn_mask, scale)
    weights = _weights(scores, logsumexp.to(scores.dtype))
    dtype = weights.dtype
    given = cotangent.to(dtype)
    of_weights = given @ value.to(dtype).mT
    of_scores = weights * (of_weights - (given * out.to(dtype)).sum(-1, keepdim=True)) * _scale(query, scale)
    grads = of_scores @ key.to(dtype), of_scores.mT @ query.to(dtype), weights.mT @ given
    return tuple(grad.to(query.dtype) for grad in grads)


def _is_plain(query: Tensor, key: Tensor) -> bool:
    """Whether each head of queries has keys of its own, and not too many."""
    return query.shape[1] == key.shape[1] and _is_small(*query.shape[:3], key.shape[2])


def _scale(query: Tensor, scale: float | None) -> float:
    return 1 / math.sqrt(query.shape[-1]) if scale is None else scale


def _scores(query: Tensor, key: Tensor, is_causal: bool, mask: Tensor | None, scale: float | None) -> Tensor:
    dtype = computed_dtype(query.dtype)
    scores = (query.to(dtype) @ key.to(dtype).mT) * _scale(query, scale)
    if is_causal:
        rows, columns = (torch.arange(size, device=query.device) for size in scores.shape[-2:])
        scores = torch.where(rows[:, None] >= columns, scores, -math.inf)
    if mask is None:
        return scores
    return torch.where(mask, scores, -math.inf) if mask.dtype == torch.bool else scores + mask.to(dtype)


def _weights(scores: Tensor, logsumexp: Tensor) -> Tensor:
    """Zero where nothing is attended to."""
    total = logsumexp.unsqueeze(-1)
    return torch.where(total == -math.inf, 0, (scores - total).exp())


# ---------------------------------------------------------------------------------------------------------------------
# distances


def _distances(x: Tensor, y: Tensor, p: float, mode: int | None) -> Any:
    if p not in (1, 2) or not _is_small(*x.shape, y.shape[-2]):
        return NotImplemented
    away = x.unsqueeze(-2) - y.unsqueeze(-3)
    return away.abs().sum(-1) if p == 1 else away.square().sum(-1).sqrt()


def _distances_backward(cotangent: Tensor, x: Tensor, y: Tensor, p: float, distances: Tensor) -> Any:
    if p not in (1, 2) or not _is_small(*x.shape, y.shape[-2]):
        return NotImplemented
    away = x.unsqueeze(-2) - y.unsqueeze(-3)
    if p == 1:
        return (cotangent.unsqueeze(-1) * away.sign()).sum(-2)
    by_distance = torch.where(distances == 0, 0, cotangent / distances)
    return (by_distance.unsqueeze(-1) * away).sum(-2)


# ---------------------------------------------------------------------------------------------------------------------
# order and systems


def _kth(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    if x.dim() == 0:
        return NotImplemented
    found = (part.select(dim, k - 1) for part in x.sort(dim))
    return tuple(part.unsqueeze(dim) if keepdim else part for part in found)


def _median(x: Tensor, dim: int, keepdim: bool = False) -> Any:
    """The lower one; NaN, which comes last, if there is one."""
    return _middle(x, dim, keepdim, lambda numbers, size: torch.where(numbers < size, numbers, (size - 1) // 2))


def _median_of_numbers(x: Tensor, dim: int, keepdim: bool = False) -> Any:
    """The lower one of what is no NaN."""
    return _middle(x, dim, keepdim, lambda numbers, _: (numbers - 1).clamp(min=0) // 2)


def _middle(x: Tensor, dim: int, keepdim: bool, place: Callable[[Tensor, int], Tensor]) -> Any:
    """``place(how many are no NaN, how many there are)`` in order."""
    if x.dim() == 0 or x.shape[dim] == 0:
        return NotImplemented
    places = place((x == x).sum(dim, keepdim=True), x.shape[dim])
    found = (part.gather(dim, places) for part in x.sort(dim))
    return tuple(part if keepdim else part.squeeze(dim) for part in found)


def _of_all(median: Callable[..., Any]) -> Callable[[Tensor], Any]:
    return lambda x: median(x.reshape(-1), 0)[0] if x.numel() else NotImplemented


def _inverse_of_factor(factor: Tensor, upper: bool = False) -> Tensor:
    ones = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device).expand(factor.shape)
    return torch.cholesky_solve(ones, factor, upper)


# ---------------------------------------------------------------------------------------------------------------------
# products and maxima


def _added(multiplied: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    """A product with factors, which are integers where the numbers are; with a factor of 0, what would be added is not
    read.
    """

    def added(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
        if not a.is_floating_point():
            beta, alpha = int(beta), int(alpha)
        if beta == 1 and alpha == 1 and multiplied is not _sum_of_products:
            return NotImplemented
        product = multiplied(a, b)
        product = product if alpha == 1 else product * alpha
        return product if beta == 0 else product + (x if beta == 1 else x * beta)

    return added


def _sum_of_products(a: Tensor, b: Tensor) -> Tensor:
    """As one product, which rounds once."""
    return torch.mm(a.transpose(0, 1).flatten(1), b.flatten(0, 1))


def _trilinear(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    expand1: Sequence[int],
    expand2: Sequence[int],
    expand3: Sequence[int],
    sumdim: Sequence[int],
    unroll_dim: int = 1,
) -> Tensor:
    """As two products, the smaller one first."""
    n = x.dim() + len(expand1)
    factors = [(v, {*range(n)} - {*dims}) for v, dims in ((x, expand1), (y, expand2), (z, expand3))]
    sizes = {d: size for v, dims in factors for d, size in zip(sorted(dims), v.shape)}
    first, second, third = min(
        itertools.permutations(factors), key=lambda order: math.prod(sizes[d] for d in order[0][1] | order[1][1])
    )
    out = {*range(n)} - {*sumdim}
    both = (first[1] | second[1]) & (third[1] | out)
    text = lambda dims: "".join(string.ascii_letters[d] for d in sorted(dims))
    pair = torch.einsum(f"{text(first[1])},{text(second[1])}->{text(both)}", first[0], second[0])
    return torch.einsum(f"{text(both)},{text(third[1])}->{text(out)}", pair, third[0])


def _maxima_backward(n: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """``places``: of the maxima, in the last ``n`` dimensions taken as one."""

    def backward(cotangent: Tensor, x: Tensor, places: Tensor) -> Tensor:
        flat = x.new_zeros(x.shape).flatten(-n)
        return flat.scatter_add(-1, places.flatten(-n), cotangent.flatten(-n)).reshape(x.shape)

    return backward


def _unpacked(factors: Tensor, pivots: Tensor, unpack_data: bool = True, unpack_pivots: bool = True) -> Any:
    """All of it, though a part is not asked for."""
    if unpack_data and unpack_pivots:
        return NotImplemented
    p, lower, upper = torch.lu_unpack(factors, pivots)
    none = factors.new_empty(0)
    return (p, none, none) if unpack_pivots else (none, lower, upper)


def _factors(a: Tensor, *, pivot: bool = True) -> Any:
    return torch.lu_unpack(*torch.linalg.lu_factor_ex(a)[:2]) if pivot else NotImplemented


def _triangle(a: Tensor, mode: str = "reduced") -> Any:
    """Where the rotations are not asked for."""
    return (a.new_empty(0), torch.linalg.qr(a)[1]) if mode == "r" else NotImplemented


_COMPOSED: dict[Any, Callable[..., Any]] = {
    aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _attention_backward,
    aten._cdist_forward.default: _distances,
    aten._cdist_backward.default: _distances_backward,
    aten._trilinear.default: _trilinear,
    aten.adaptive_max_pool2d_backward.default: _maxima_backward(2),
    aten.adaptive_max_pool3d_backward.default: _maxima_backward(3),
    aten.addbmm.default: _added(_sum_of_products),
    aten.addmm.default: _added(torch.mm),
    aten.baddbmm.default: _added(torch.bmm),
    aten.cholesky_inverse.default: _inverse_of_factor,
    aten.kthvalue.default: _kth,
    aten.linalg_lu.default: _factors,
    aten.linalg_qr.default: _triangle,
    aten.lu_unpack.default: _unpacked,
    aten.median.default: _of_all(_median),
    aten.median.dim: _median,
    aten.nanmedian.default: _of_all(_median_of_numbers),
    aten.nanmedian.dim: _median_of_numbers,
}
