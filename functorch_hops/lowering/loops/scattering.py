"""Reductions into places that are data, inside a loop (torch 2.13).

Inductor adds and overwrites; the other reductions, and sums in dtypes in which it does not add, are statements of ours,
one after the other as in torch's own. Means, and those without the values that were there before, are composed of
these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from .headers import header
from .sizes import size_of
from .source import c_type

__all__ = ["SCATTERING", "SCATTERING_STATEMENTS", "scatters"]

SCATTERING = header("scattering")

aten = torch.ops.aten


_NOT_ADDED = torch.int64, torch.bool
"""By Inductor (torch 2.13): there are GPUs that can't."""


def scatters(table: Mapping[Any, Callable[..., Any]]) -> dict[Any, Callable[..., Any]]:
    """Decompositions; that of ``table`` is for rows in other dtypes than bfloat16, which it leaves to the library."""

    def added_rows(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Any:
        if x.dtype != torch.bfloat16:
            return table[aten.index_add.default](x, dim, index, source, alpha=alpha)
        source = source if alpha == 1 else source * alpha
        if x.dim() == 0:
            return aten.scatter_add(x.reshape(1), 0, index.reshape(1), source.reshape(1)).reshape(())
        return aten.scatter_add(x, dim, _of_rows(index, dim, source), source)

    return {
        aten._unsafe_index_put.default: _put,
        aten.histc.default: _histogram,
        aten.index_add.default: added_rows,
        aten.index_put.default: _put,
        aten.index_reduce.default: _index_reduced,
        aten.scatter.reduce: _scattered_with,
        aten.scatter.value_reduce: _scattered_with,
        aten.scatter_add.default: _scatter_added,
        aten.scatter_reduce.two: _scatter_reduced,
    }


def _of_rows(index: Tensor, dim: int, source: Tensor) -> Tensor:
    """The index of each element, by that of its row."""
    return index.reshape(-1, *[1] * (source.dim() - 1 - dim % source.dim())).expand(source.shape)


def _scatter_added(x: Tensor, dim: int, index: Tensor, src: Tensor) -> Any:
    return aten.scatter_reduce.two(x, dim, index, src, "sum") if x.dtype in _NOT_ADDED else NotImplemented


def _put(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Any:
    """Sums at the places of one index."""
    (dim, index), *others = [(d, i) for d, i in enumerate(indices) if i is not None]
    if others or not accumulate or x.dtype not in _NOT_ADDED or index.dtype not in (torch.int64, torch.int32):
        return NotImplemented
    values = values.expand(*x.shape[:dim], *index.shape, *x.shape[dim + 1 :]).reshape(
        *x.shape[:dim], index.numel(), *x.shape[dim + 1 :]
    )
    index = torch.where(index < 0, index + x.shape[dim], index).long()
    return aten.scatter_add(x, dim, _of_rows(index, dim, values), values)


def _scatter_reduced(x: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True) -> Any:
    if any(size in (0,) for size in index.shape if type(size) is int):
        return x.clone()
    if reduce == "sum" and x.dtype not in _NOT_ADDED:
        return (x if include_self else x.scatter(dim, index, 0)).scatter_add(dim, index, src)
    if reduce == "mean":
        # Counted in the dtype of the numbers, as in torch: half precision can't count beyond its integers.
        total = aten.scatter_reduce.two(x, dim, index, src, "sum", include_self=include_self)
        counts = torch.full_like(x, int(include_self)).scatter_add(dim, index, torch.ones_like(src)).clamp(min=1)
        return total / counts if x.is_floating_point() else total.div(counts, rounding_mode="floor")
    if include_self:
        return NotImplemented
    neutral = torch.scatter(x, dim, index, _neutral(reduce, x.dtype))
    return aten.scatter_reduce.two(neutral, dim, index, src, reduce)


def _neutral(reduce: str, dtype: torch.dtype) -> float | int:
    if reduce in ("prod", "sum"):
        return int(reduce == "prod")
    if dtype == torch.bool:
        return reduce == "amin"
    if dtype.is_floating_point:
        return math.inf if reduce == "amin" else -math.inf
    return torch.iinfo(dtype).max if reduce == "amin" else torch.iinfo(dtype).min


def _index_reduced(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Any:
    if x.dim() == 0 or x.dtype == torch.bool:
        return NotImplemented
    return aten.scatter_reduce.two(x, dim, _of_rows(index, dim, source), source, reduce, include_self=include_self)


def _scattered_with(x: Tensor, dim: int, index: Tensor, src: Any, *, reduce: str) -> Any:
    src = src if isinstance(src, Tensor) else torch.full_like(index, src, dtype=x.dtype)
    return aten.scatter_reduce.two(x, dim, index, src, {"add": "sum", "multiply": "prod"}[reduce])


def _histogram(x: Tensor, bins: int = 100, low: float = 0, high: float = 0) -> Any:
    """Without bounds, these are numbers of the data, which torch looks at first."""
    if not low < high:
        return NotImplemented
    x = x.reshape(-1)
    first, end = (torch.full((), bound, dtype=x.dtype, device=x.device) for bound in (low, high))
    place = ((x - first) * bins / (end - first)).clamp(0, bins - 1).nan_to_num().long()
    return x.new_zeros(bins).index_add(0, place, ((x >= low) & (x <= high)).to(x.dtype))


_COMBINED = {
    "amax": "[](auto a, auto b) { return a < b ? b : a; }",
    "amin": "[](auto a, auto b) { return b < a ? b : a; }",
    "prod": "[](auto a, auto b) { return a * b; }",
    "sum": "[](auto a, auto b) { return a + b; }",
}


def _scattered(
    node: fx.Node, tensors: Sequence[Tensor], results: Sequence[Tensor], x: str, index: str, src: str, out: str
) -> str:
    given, places, values = (t if t.dim() else t.reshape(1) for t in tensors)
    axis: Any = node.args[1]
    dim, combine = axis % given.dim(), _COMBINED[str(node.args[4])]
    names = [f"i{d}" for d in range(places.dim())]
    loops = " ".join(f"for (int64_t {i} = 0; {i} < {size_of(n)}; ++{i})" for i, n in zip(names, places.shape))
    row = _offset([i if d != dim else "0" for d, i in enumerate(names)], given)
    arguments = [
        f"{out} + {row}",
        f"{index}[{_offset(names, places)}]",
        f"{dim}, {size_of(given.shape[dim])}, {math.prod(map(size_of, given.shape[dim + 1 :]))}",
        f"{src}[{_offset(names, values)}]",
        combine,
    ]
    copied = f"std::copy_n({x}, {math.prod(map(size_of, given.shape))}, {out});"
    return f"{copied} {loops} fh::scatter<{c_type(given.dtype)}>({', '.join(arguments)});"


def _offset(index: Sequence[str], x: Tensor) -> str:
    sizes = [size_of(size) for size in x.shape]
    return " + ".join(f"{i} * int64_t({math.prod(sizes[d + 1 :])})" for d, i in enumerate(index))


SCATTERING_STATEMENTS: dict[Any, Callable[..., str]] = {aten.scatter_reduce.two: _scattered}
