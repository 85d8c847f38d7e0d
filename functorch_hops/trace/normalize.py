"""A recorded graph, freed of what later transforms could not take."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..ir.nodes import size_at
from ..passes.cleaning import clean

__all__ = ["normalize"]

_TO_RESHAPE = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)


def normalize(module: fx.GraphModule) -> None:
    """Free the graph of layout assumptions, of what has no derivative, and of dead code."""
    for node in list(module.graph.nodes):
        if node.target in _TO_RESHAPE:
            node.target = torch.ops.aten.reshape.default
        elif node.target is torch.ops.aten.empty_like.default:
            replace_empty_like(node)
        elif node.target is torch.ops.aten.sym_size.int:
            node.target = size_at
        bound_slice(node)
        unexpand_written(node)
    clean(module)


def replace_empty_like(node: fx.Node) -> None:
    """``empty_like(x)`` takes no value of ``x``: what is drawn into it (dropout) can be the same for all lanes of x."""
    value = node.meta["val"]
    if all(isinstance(size, int) for size in value.shape):
        node.target = torch.ops.aten.empty.memory_format
        node.args, node.kwargs = (list(value.shape),), {"dtype": value.dtype, "device": value.device}


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
    """``x[-2:]`` lies between two places of ``x``: some batching rules compute with the bounds as they are given, among
    them the largest integer.
    """
    place = _SLICES.get(node.target)
    if place is None or len(node.args) < place + 2:
        return
    source, dim, bounds = node.args[0], node.args[place], node.args[place + 1 : place + 3]
    assert isinstance(source, fx.Node)
    assert isinstance(dim, int)
    size = source.meta["val"].shape[dim]
    if isinstance(size, int) and all(b is None or isinstance(b, int) for b in bounds):
        start, end, _ = slice(*bounds, *[None] * (2 - len(bounds))).indices(size)
        node.args = (*node.args[: place + 1], start, end, *node.args[place + 3 :])
    elif not isinstance(size, int) and bounds[1:] == (_NO_END,):
        with node.graph.inserting_before(node):
            end_of_x = node.graph.call_function(size_at, (source, dim))
        end_of_x.meta["val"] = size
        node.args = (*node.args[: place + 2], end_of_x, *node.args[place + 3 :])
