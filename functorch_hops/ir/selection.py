"""What is selected from a tensor, and then found again among its elements.

NOTE [What a maximum is taken of is computed once] The derivative of ``amax`` finds the places of the maximum by ``x ==
amax(x)``, and users do so too. Both sides need the same ``x`` to the last bit. Where ``x`` is computed for either, that
bit may differ: compiled kernels round ``sin`` in one way on vectors and in another on numbers. Then no element equals
the maximum, and the derivative is 0, or 0 / 0. So reverse mode saves the result of such a comparison instead of
computing ``x`` again, and a compiler gets a graph in which ``x``, if others read it, is stored before it is read.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from .memory import is_view

__all__ = ["finds_selected", "shared_sources"]

aten = torch.ops.aten

_SELECTIONS = (
    aten.amax.default,
    aten.amin.default,
    aten.aminmax.default,
    aten.max.default,
    aten.max.dim,
    aten.min.default,
    aten.min.dim,
    aten.cummax.default,
    aten.cummin.default,
    aten.linalg_vector_norm.default,
    aten.norm.Scalar,
    aten.norm.ScalarOpt_dim,
    aten.sort.default,
    aten.sort.stable,
    aten.topk.default,
    aten.kthvalue.default,
    aten.median.default,
    aten.median.dim,
    aten.nanmedian.default,
    aten.nanmedian.dim,
    aten.mode.default,
)
"""What returns elements of a tensor, or (the norm of order infinity) their absolute values."""

_EXACT = (
    operator.getitem,
    aten.abs.default,
    aten.neg.default,
    aten.clone.default,
    aten._to_copy.default,
    torch.ops.prims.convert_element_type.default,
)
"""What gives the same bits for the same bits, besides views."""

_COMPARISONS = (
    aten.eq.Tensor,
    aten.ne.Tensor,
    aten.ge.Tensor,
    aten.le.Tensor,
    aten.gt.Tensor,
    aten.lt.Tensor,
)


def finds_selected(node: fx.Node) -> bool:
    """Whether a node compares elements with what was selected from some."""
    if node.target not in _COMPARISONS or not any(_is_floating(n) for n in node.all_input_nodes):
        return False
    return any(step.target in _SELECTIONS for operand in node.all_input_nodes for step in _way_back(operand))


def shared_sources(graph: fx.Graph) -> list[fx.Node]:
    """The values that are computed, that something is selected from, and that others read too."""
    found: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if node.target in _SELECTIONS:
            way = _way_back(node.args[0])
            if way[-1].op == "call_function" and _is_floating(way[-1]) and any(len(step.users) > 1 for step in way):
                found[way[-1]] = None
    return list(found)


def _way_back(node: fx.Node) -> list[fx.Node]:
    """From a value to the one that its bits come from: through views, exact operators and selections."""
    way = [node]
    while way[-1].args and (is_view(way[-1]) or way[-1].target in (*_EXACT, *_SELECTIONS)):
        source = way[-1].args[0]
        if not isinstance(source, fx.Node):
            break
        way.append(source)
    return way


def _is_floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()
