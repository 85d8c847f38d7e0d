"""Values that a step broadcasts.

NOTE [What is broadcast is computed once] Inductor computes a pointwise value where it is read. A value for each pair of
bodies, ``r ** -1.5``, that multiplies three coordinates is computed three times, or, where a vector holds the
coordinates, as one number at a time; and each place is computed anew for all others, from operands whose rows fill no
vector. On CPUs Inductor stores an exponential that is broadcast, and nothing else. In a step so is what is worth it.
Lanes are another matter: each computes what it needs, in registers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from ... import _torch
from ...ir.memory import is_view
from ..barrier import store
from .sizes import hint, size_of

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
"""Operators that take as long as ``_LENGTH`` others, with numbers of a vector or alone."""
_LENGTH = 8
_VECTOR = 8
_ENOUGH = 16
"""Operations for each number that is read, from which on it is stored."""


def store_what_is_broadcast(graph: fx.Graph) -> bool:
    """Whether there was something to store."""
    work = dict[fx.Node, int]()
    found = dict[fx.Node, None]()
    given = set[fx.Node]()
    for node in graph.nodes:
        if node.op == "placeholder" or not given.isdisjoint(node.all_input_nodes):
            given.add(node)  # masks of places, which are made of nothing, are known where code is made
        if node not in given or not _is_pointwise(node):
            continue
        sources = dict.fromkeys(_shown(operand) for operand in node.all_input_nodes)
        for source in sources:
            size, times = _numel(source), _numel(node) // max(_numel(source), 1)
            if size > 1 and times > 1 and work.get(source, 0) * times >= _ENOUGH:
                found[source] = None
                work[source] = 0
        work[node] = sum(work.get(source, 0) for source in sources) + _own_work(node)
    store(graph, found)
    return bool(found)


def _own_work(node: fx.Node) -> int:
    """What computing it once more costs besides reading its operands, which whole vectors are read of as fast."""
    shape = node.meta["val"].shape
    is_narrow = bool(shape) and 1 < hint(size_of(shape[-1])) < _VECTOR
    return _LENGTH if node.target in _LONG else int(is_narrow)


def _is_pointwise(node: fx.Node) -> bool:
    return _torch.is_pointwise(node.target) and isinstance(node.meta.get("val"), torch.Tensor)


def _shown(node: fx.Node) -> fx.Node:
    """The value that is looked at in another shape."""
    while is_view(node) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _numel(node: fx.Node) -> int:
    value: Any = node.meta.get("val")
    return hint(math.prod(map(size_of, value.shape))) if isinstance(value, torch.Tensor) else 0
