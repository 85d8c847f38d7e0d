"""In-place work on a body's own intermediates: what is left to do around torch's functionalization."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from .._torch import OpOverload

__all__ = ["bound_slice", "has_writes", "replace_copy", "replace_empty_like", "unwrite_views"]


def has_writes(graph: fx.Graph) -> bool:
    return any(isinstance(node.target, OpOverload) and node.target._schema.is_mutable for node in graph.nodes)


def replace_copy(node: fx.Node) -> None:
    """``aten.copy(dst, src)`` has no derivative; it is ``src`` in the shape and dtype of ``dst``."""
    dst, src = node.args[0], node.args[1]
    assert isinstance(dst, fx.Node) and isinstance(src, fx.Node)
    value = dst.meta["val"]
    graph = node.graph
    with graph.inserting_before(node):
        expanded = graph.call_function(torch.ops.aten.expand.default, (src, list(value.shape)))
        cast = graph.call_function(
            torch.ops.aten._to_copy.default, (expanded,), {"dtype": value.dtype, "device": value.device}
        )
    for new in (expanded, cast):
        new.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(cast)
    graph.erase_node(node)


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
    if isinstance(end, int) and isinstance(size, int) and end > size:
        node.args = (*node.args[: place + 2], size, *node.args[place + 3 :])
