"""Reductions into places that are data, inside a loop (torch 2.13).

Inductor adds and overwrites; the other reductions are statements of ours, one after the other as in torch's own. Means,
and those without the values that were there before, are composed of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from .headers import header
from .sizes import size_of
from .source import c_type

__all__ = ["SCATTERING", "SCATTERING_STATEMENTS", "scatters"]

SCATTERING = header("scattering")

aten = torch.ops.aten


def scatters() -> dict[Any, Callable[..., Any]]:
    """Decompositions."""
    return {
        aten.histc.default: _histogram,
        aten.index_reduce.default: _index_reduced,
        aten.scatter.reduce: _scattered_with,
        aten.scatter.value_reduce: _scattered_with,
        aten.scatter_reduce.two: _scatter_reduced,
    }


def _scatter_reduced(x: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True) -> Any:
    if any(size in (0,) for size in index.shape if type(size) is int):
        return x.clone()
    if reduce == "sum":
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
    if reduce == "prod":
        return 1
    if dtype.is_floating_point:
        return math.inf if reduce == "amin" else -math.inf
    return torch.iinfo(dtype).max if reduce == "amin" else torch.iinfo(dtype).min


def _index_reduced(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Any:
    if x.dim() == 0 or x.dtype == torch.bool:
        return NotImplemented
    index = index.reshape(-1, *[1] * (x.dim() - 1 - dim % x.dim())).expand(source.shape)
    return aten.scatter_reduce.two(x, dim, index, source, reduce, include_self=include_self)


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
