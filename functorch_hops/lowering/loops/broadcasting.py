"""Values that a step broadcasts.

NOTE [What is broadcast is computed once] Inductor computes a pointwise value where it is read. A value for each pair of
bodies, ``r ** -1.5``, that multiplies three coordinates is computed three times, or, where a vector holds the
coordinates, as one number at a time. On CPUs Inductor stores an exponential that is broadcast, and nothing else. In a
step, whose work is small and repeated, so is all that takes longer than a load. Lanes are another matter: each computes
what it needs, in registers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from ... import _torch
from ...ir.memory import is_view
from ..barrier import store
from .sizes import Size, hint, size_of

__all__ = ["store_what_is_broadcast"]

aten = torch.ops.aten

_LONG = {
    aten.acos.default,
    aten.acosh.default,
    aten.asin.default,
    aten.asinh.default,
    aten.atan.default,
    aten.atan2.default,
    aten.atanh.default,
    aten.cos.default,
    aten.cosh.default,
    aten.digamma.default,
    aten.erf.default,
    aten.erfc.default,
    aten.erfinv.default,
    aten.exp.default,
    aten.exp2.default,
    aten.expm1.default,
    aten.lgamma.default,
    aten.log.default,
    aten.log10.default,
    aten.log1p.default,
    aten.log2.default,
    aten.reciprocal.default,
    aten.rsqrt.default,
    aten.sigmoid.default,
    aten.sin.default,
    aten.sinh.default,
    aten.sqrt.default,
    aten.tan.default,
    aten.tanh.default,
    aten.div.Tensor,
    aten.pow.Scalar,
    aten.pow.Tensor_Scalar,
    aten.pow.Tensor_Tensor,
}
"""Operators that take longer than a load, with numbers of a vector or alone."""


def store_what_is_broadcast(graph: fx.Graph) -> bool:
    """Whether there was something to store."""
    is_long = dict[fx.Node, bool]()
    found = dict[fx.Node, None]()
    for node in graph.nodes:
        if not _is_pointwise(node):
            continue
        sources = [_shown(operand) for operand in node.all_input_nodes]
        for source in sources:
            if is_long.get(source) and 1 < _numel(source) <= _numel(node) // 2:
                found[source] = None
                is_long[source] = False
        is_long[node] = node.target in _LONG or any(is_long.get(source) for source in sources)
    store(graph, found)
    return bool(found)


def _is_pointwise(node: fx.Node) -> bool:
    return _torch.is_pointwise(node.target) and isinstance(node.meta.get("val"), torch.Tensor)


def _shown(node: fx.Node) -> fx.Node:
    """The value that is looked at in another shape."""
    while is_view(node) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _numel(node: fx.Node) -> int:
    shape: Any = node.meta["val"].shape
    count: Size = math.prod(map(size_of, shape))
    return hint(count)
