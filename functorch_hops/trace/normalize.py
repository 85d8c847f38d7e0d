"""A recorded graph, freed of what later transforms could not take."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ..ir.nodes import conjugated, size_at
from ..passes.cleaning import clean

__all__ = ["normalize"]

_PLAIN_FORMS: dict[Any, Any] = {
    torch.ops.aten.view.default: torch.ops.aten.reshape.default,
    torch.ops.aten._unsafe_view.default: torch.ops.aten.reshape.default,
    torch.ops.aten.sym_size.int: size_at,
    torch.ops.aten._conj.default: conjugated,
    torch.ops.aten._neg_view.default: torch.ops.aten.neg.default,
}
"""Operators that assume a layout or make a lazy tensor, and what means the same without."""


_OF_NUMBERS: dict[Any, Callable[[Any], Any]] = {
    torch.ops.aten._conj.default: lambda number: number.conjugate(),
    torch.ops.aten._neg_view.default: operator.neg,
}
"""Some of these take a number in the place of a tensor, as a derivative of a product with one has it."""


def normalize(module: fx.GraphModule) -> None:
    """Free the graph of layout assumptions, of lazy tensors, of what has no derivative, and of dead code."""
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten.empty_like.default:
            replace_empty_like(node)
        if node.target in _OF_NUMBERS and not node.all_input_nodes:
            _replace_by_number(node, _OF_NUMBERS[node.target](node.args[0]))
        node.target = _PLAIN_FORMS.get(node.target, node.target)
        bound_slice(node)
    clean(module)


def _replace_by_number(node: fx.Node, number: Any) -> None:
    for user in list(node.users):
        user.args, user.kwargs = fx.map_arg(
            (user.args, user.kwargs), lambda argument: number if argument is node else argument
        )


def replace_empty_like(node: fx.Node) -> None:
    """``empty_like(x)`` takes no value of ``x``: what is drawn into it (dropout) can be the same for all lanes of x."""
    value = node.meta["val"]
    if all(isinstance(size, int) for size in value.shape):
        node.target = torch.ops.aten.empty.memory_format
        node.args, node.kwargs = (list(value.shape),), {"dtype": value.dtype, "device": value.device}


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
