"""A recorded graph, freed of what later transforms could not take."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ..ir.dependence import Through, depends, passes
from ..ir.memory import base_of
from ..ir.nodes import by_stride, conjugated, packed, size_at, unfilled, untracked
from ..passes.cleaning import clean

__all__ = ["normalize"]

_aten = torch.ops.aten

_PLAIN_FORMS: dict[Any, Any] = {
    _aten.view.default: _aten.reshape.default,
    _aten._unsafe_view.default: _aten.reshape.default,
    _aten.sym_size.int: size_at,
    _aten._conj.default: conjugated,
    _aten._neg_view.default: _aten.neg.default,
    _aten.empty_like.default: unfilled,
}
"""Operators that assume a layout, belong to a lane or make a lazy tensor, and what means the same without."""


_OF_NUMBERS: dict[Any, Callable[[Any], Any]] = {
    _aten._conj.default: lambda number: number.conjugate(),
    _aten._neg_view.default: operator.neg,
    _aten.alias.default: lambda number: number,
    _aten.detach.default: lambda number: number,
}
"""Some of these take a number in the place of a tensor, as a derivative of a product with one has it."""


_LAYOUT_READERS = (_aten.as_strided.default, _aten.view_as_complex.default, _aten.view.dtype)
"""Operators whose result depends on where the elements of their operand lie in memory."""


_MISREADERS: dict[Any, range] = {_aten.native_batch_norm_backward.default: range(2, 7)}
"""Operators that read some of their operands as if they were contiguous (torch 2.13), and which."""


_DETERMINANTS = (_aten._linalg_det.default, _aten._linalg_slogdet.default)
"""torch's derivative asks the matrix that it saved whether the factors are those of its transpose; a loop of torch's
stacks what it saves, which is contiguous then (torch 2.13).
"""


def normalize(module: fx.GraphModule) -> None:
    """Free the graph of layout assumptions, of lazy tensors, of what has no derivative, and of dead code."""
    for node in list(module.graph.nodes):
        if node.target in _OF_NUMBERS and not node.all_input_nodes:
            _replace_by_number(node, _OF_NUMBERS[node.target](node.args[0]))
        node.target = _PLAIN_FORMS.get(node.target, node.target)
        bound_slice(node)
    for node in list(module.graph.nodes):
        for place in _MISREADERS.get(node.target, ()):
            _make_contiguous(node, place)
        if node.target in _DETERMINANTS and not node.args[0].meta["val"].is_contiguous():
            _make_contiguous(node, 0)
    readers = [node for node in module.graph.nodes if node.target in _LAYOUT_READERS]
    for base in dict.fromkeys(base_of(node.args[0]) for node in readers):
        _fix_layout(base)
    _drop_barriers(module)
    clean(module)


def _drop_barriers(module: fx.GraphModule) -> None:
    """A whole function under no_grad marks the result of each operator; only those of the first ones have a history."""
    marked: dict[fx.Node, Any] = {}
    for node in list(module.graph.nodes):
        if node.op == "placeholder":
            marked[node] = passes(node, Through.GRADIENT)
        elif node.op != "output":
            marked[node] = depends(node, marked, Through.GRADIENT, module)
            if node.target is untracked and not marked[node.args[0]]:
                node.replace_all_uses_with(node.args[0])


def _fix_layout(base: fx.Node) -> None:
    """Let a value lie in memory as it did in the trace, where operands are contiguous and others follow from them."""
    graph, users = base.graph, list(base.users)
    with graph.inserting_after(graph.find_nodes(op="placeholder")[-1] if base.op == "placeholder" else base):
        laid_out = graph.call_function(packed, (base, by_stride(base.meta["val"])))
    laid_out.meta["val"] = base.meta["val"]
    for user in users:
        user.replace_input_with(base, laid_out)


def _make_contiguous(node: fx.Node, place: int) -> None:
    source = node.args[place]
    if isinstance(source, fx.Node):
        with node.graph.inserting_before(node):
            contiguous = node.graph.call_function(packed, (source, list(range(source.meta["val"].dim()))))
        contiguous.meta["val"] = source.meta["val"]
        node.update_arg(place, contiguous)


def _replace_by_number(node: fx.Node, number: Any) -> None:
    for user in list(node.users):
        user.args, user.kwargs = fx.map_arg(
            (user.args, user.kwargs), lambda argument: number if argument is node else argument
        )


_NO_END = 2**63 - 1
_SLICES: dict[Any, int] = {_aten.slice.Tensor: 1, _aten.slice_scatter.default: 2}


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
