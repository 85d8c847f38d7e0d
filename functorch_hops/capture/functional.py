"""In-place work on a body's own intermediates: what is left to do around torch's functionalization."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from .._torch import OpOverload
from .sizes import size_at

__all__ = [
    "bound_slice",
    "has_writes",
    "laid_out_zeros",
    "replace_copy",
    "replace_empty_like",
    "running_statistics",
    "symbol_as_tensor",
    "unexpand_written",
    "unwrite_views",
    "without_statistics",
]


def has_writes(graph: fx.Graph) -> bool:
    return any(isinstance(node.target, OpOverload) and node.target._schema.is_mutable for node in graph.nodes)


def replace_copy(node: fx.Node) -> None:
    """``aten.copy(dst, src)`` has no derivative; it is ``src`` in the shape and dtype of ``dst``."""
    dst, src = node.args[0], node.args[1]
    assert isinstance(dst, fx.Node) and isinstance(src, fx.Node)
    value = dst.meta["val"]
    graph = node.graph
    with graph.inserting_before(node):
        sizes = [_size(graph, dst, dim) for dim in range(value.dim())]
        expanded = graph.call_function(torch.ops.aten.expand.default, (src, sizes))
        cast = graph.call_function(
            torch.ops.aten._to_copy.default, (expanded,), {"dtype": value.dtype, "device": value.device}
        )
    for new in (expanded, cast):
        new.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(cast)
    graph.erase_node(node)


def _size(graph: fx.Graph, x: fx.Node, dim: int) -> Any:
    """A size of a value, as an argument of a node."""
    size = x.meta["val"].shape[dim]
    if isinstance(size, int):
        return size
    node = graph.call_function(size_at, (x, dim))
    node.meta["val"] = size
    return node


def replace_empty_like(node: fx.Node) -> None:
    """``empty_like(x)`` takes no value of ``x``: what is drawn into it (dropout) can be the same for all lanes of x."""
    value = node.meta["val"]
    if all(isinstance(size, int) for size in value.shape):
        node.target = torch.ops.aten.empty.memory_format
        node.args, node.kwargs = (list(value.shape),), {"dtype": value.dtype, "device": value.device}


def unwrite_views(graph: fx.Graph) -> None:
    """``squeeze_`` and its like change no data, and later users read their result: the pure twin means the same.

    torch uses them on its own intermediates (a matrix-vector product), so this saves most bodies a second trace.
    """
    for node in graph.nodes:
        target = node.target
        if isinstance(target, OpOverload) and torch.Tag.inplace_view in target.tags:
            twin = getattr(torch.ops.aten, target._schema.name.removeprefix("aten::").removesuffix("_"), None)
            if twin is not None and target._overloadname in twin.overloads():
                node.target = getattr(twin, target._overloadname)


_INDEXED_WRITES = (
    torch.ops.aten.index_add.default,
    torch.ops.aten.index_copy.default,
    torch.ops.aten.index_put.default,
)


def unexpand_written(node: fx.Node) -> None:
    """An indexed write goes into memory of its own: Inductor (torch 2.13) does it in place, and where the value is
    expanded, so that its elements share memory, all of them change.
    """
    if node.target not in _INDEXED_WRITES:
        return
    source = node.args[0]
    assert isinstance(source, fx.Node)
    value = source.meta["val"]
    if any(stride == 0 and size != 1 for size, stride in zip(value.shape, value.stride())):
        with node.graph.inserting_before(node):
            clone = node.graph.call_function(
                torch.ops.aten.clone.default, (source,), {"memory_format": torch.contiguous_format}
            )
        clone.meta["val"] = value
        node.args = (clone, *node.args[1:])


_NO_END = 2**63 - 1
_SLICES: dict[Any, int] = {torch.ops.aten.slice.Tensor: 1, torch.ops.aten.slice_scatter.default: 2}


def bound_slice(node: fx.Node) -> None:
    """``x[1:]`` ends at the size of ``x``, not at the largest integer, with which some batching rules compute."""
    place = _SLICES.get(node.target)
    if place is None or len(node.args) < place + 3:
        return
    source, dim, end = node.args[0], node.args[place], node.args[place + 2]
    assert isinstance(source, fx.Node)
    assert isinstance(dim, int)
    size = source.meta["val"].shape[dim]
    if isinstance(end, int) and (end > size if isinstance(size, int) else end == _NO_END):
        with node.graph.inserting_before(node):
            size = _size(node.graph, source, dim)
        node.args = (*node.args[: place + 2], size, *node.args[place + 3 :])


_aten = torch.ops.aten
_BATCH_NORMS = {
    _aten.native_batch_norm.default: _aten.native_batch_norm.default,
    _aten._native_batch_norm_legit.default: _aten.native_batch_norm.default,
    _aten.cudnn_batch_norm.default: _aten.cudnn_batch_norm.default,
    _aten.miopen_batch_norm.default: _aten.miopen_batch_norm.default,
}
"""Operators that update running statistics, which not all of their schemas admit, with one that can do without."""


def symbol_as_tensor(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """A number of an open size as a tensor, if that is what this call converts: vmap gives a number beside a 0-d lane
    the dtype of the result so, and torch's kernel (2.13) knows no symbols.
    """
    if func is not _aten._to_copy.default or not isinstance(args[0], (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return None
    made: Tensor = _aten.scalar_tensor.default(args[0], dtype=kwargs.get("dtype"), device=kwargs.get("device"))
    return made


def laid_out_zeros(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Zeros laid out like another tensor, to which torch copies a tangent whose layout is not that of its primal, if
    that is what this call makes: torch's kernel (2.13) reads a concrete offset.
    """
    if func is not _aten._new_zeros_with_same_feature_meta.default or not args[1].is_contiguous():
        return None
    x, other = args
    shape = [*x.shape[: kwargs.get("self_num_batch_dims", 0)], *other.shape]
    zeros: Tensor = _aten.zeros.default(shape, dtype=x.dtype, device=x.device)
    return zeros


def without_statistics(func: Any, args: tuple[Any, ...]) -> Any:
    """What computes the same as this batch normalisation if it updates running statistics, else None."""
    return _BATCH_NORMS.get(func) if func in _BATCH_NORMS and isinstance(args[3], Tensor) and args[5] else None


def running_statistics(
    x: Tensor, batch_mean: Tensor, invstd: Tensor, mean: Tensor, var: Tensor, momentum: float, eps: float
) -> tuple[Tensor, Tensor]:
    """The new running statistics, from what batch normalisation saves: ``invstd = (batch_var + eps) ** -0.5``.

    The batch's variance there is the biased one, and the running one is unbiased.
    """
    n = x.numel() // x.shape[1]
    batch_var = (invstd.square().reciprocal() - eps) * (n / (n - 1))
    return mean + momentum * (batch_mean - mean), var + momentum * (batch_var - var)
