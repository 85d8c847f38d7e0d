"""Operators that change nothing, and operators that repeat.

Transforms leave many of both: aliases around each level, views to the shape that is there, the same factor once for
each term of a derivative. Each would be traced again by every later transform, and compiled.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable

import torch
from torch import Tensor, fx

from .._torch import OpOverload
from ..ir.memory import is_copy, is_view
from ..ir.nodes import frozen
from ..ir.sizes import is_closed
from ..ir.subgraph import is_pinned
from .regions import merge_writes, read_back

__all__ = ["simplify"]

aten = torch.ops.aten


def simplify(module: fx.GraphModule) -> None:
    """Replace values by equal ones that come first."""
    found: dict[Hashable, fx.Node] = {}
    for node in list(module.graph.nodes):
        if node.op == "call_function":
            _read_behind_layout(node)
            merge_writes(node)
            same = _unchanged(node) or _exchanged_back(node) or _read_back(node)
            if same is None and _is_pure(node, module):
                same = found.setdefault((node.target, frozen(node.args), frozen(node.kwargs)), node)
            if same is not None and same is not node:
                # A copy may be what keeps outputs apart.
                node.replace_all_uses_with(same, lambda user, node=node: user.op != "output" or not is_copy(node))


def _read_behind_layout(node: fx.Node) -> None:
    """Let a reshape read what its operand is a copy of: it needs no layout."""
    source = node.args[0] if node.target is aten.reshape.default else None
    copied = source.args[0] if isinstance(source, fx.Node) and source.target is aten.clone.default else None
    if isinstance(copied, fx.Node) and not _may_overlap_itself(copied):
        node.update_arg(0, copied)


def _read_back(node: fx.Node) -> fx.Node | None:
    source = read_back(node)
    return None if source is None or _may_overlap_itself(source) else source


def _exchanged_back(node: fx.Node) -> fx.Node | None:
    """The value of which a node exchanges two dimensions that were exchanged before."""
    pair = _exchanged(node)
    source = node.args[0] if pair else None
    return source.args[0] if isinstance(source, fx.Node) and _exchanged(source) == pair else None  # type: ignore[return-value]


def _exchanged(node: fx.Node) -> frozenset[int] | None:
    if node.target not in (aten.transpose.int, aten.t.default):
        return None
    n = node.meta["val"].dim()
    dims = node.args[1:] if node.target is aten.transpose.int else range(n)
    return frozenset(int(d) % max(n, 1) for d in dims)  # type: ignore[arg-type]


def _unchanged(node: fx.Node) -> fx.Node | None:
    """The argument that the node returns as it is."""
    source = node.args[0] if node.args else None
    if node.target not in _MAY_CHANGE_NOTHING or not isinstance(source, fx.Node):
        return None
    before, after = source.meta.get("val"), node.meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return None
    if (before.dtype, before.device) != (after.dtype, after.device) or not _same_sizes(before, after):
        return None
    if node.target is aten.permute.default:
        order = [int(d) % max(before.dim(), 1) for d in node.args[1]]  # type: ignore[union-attr, arg-type]
        return source if order == list(range(before.dim())) else None
    if node.kwargs.get("memory_format") is not None or _may_overlap_itself(source):
        return None
    return source


def _may_overlap_itself(node: fx.Node) -> bool:
    """Whether elements of a value may share memory, so that it is no substitute for a copy of it: functional writes
    (torch 2.13) lay out their result like their operand, unless that is expanded.
    """
    while is_view(node):
        if node.target in (aten.unfold.default, aten.as_strided.default):
            return True
        node = node.args[0]  # type: ignore[assignment]
    return False


# Layout is no part of a graph's meaning, except where a memory format asks for one.
_MAY_CHANGE_NOTHING = frozenset(
    {
        aten.alias.default,
        aten.clone.default,
        aten._to_copy.default,
        aten.reshape.default,
        aten.expand.default,
        aten.permute.default,
        aten.slice.Tensor,
    }
)


def _same_sizes(a: Tensor, b: Tensor) -> bool:
    return is_closed(a.shape) and is_closed(b.shape) and a.shape == b.shape


def _is_pure(node: fx.Node, module: fx.GraphModule) -> bool:
    """Whether a second call is sure to give what the first did. What a custom operator does is not known."""
    if node.target is operator.getitem:
        return True
    if not isinstance(node.target, OpOverload) or node.target.namespace not in ("aten", "prims"):
        return False
    return not isinstance(node.meta.get("val"), torch.types.py_sym_types) and not is_pinned(node, module)
