"""Stacks of which only sums are asked for.

NOTE [Sums of stacks] A loss is mostly the sum or the mean of what a loop stacks. If nobody reads the stack besides, a
loop over lanes adds up its rows as it makes them: the stack of many steps would be written to memory, and read again. A
few rows are added in their own precision, and these sums in double precision; torch's sum of the stack, a cascade, is
no more precise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from ...ir.nodes import meta_of
from .forms import Scan
from .stacks import Place

__all__ = ["NO_SUMS", "Sums", "put_sums", "summed"]

aten = torch.ops.aten

_MEANS = (aten.mean.default, aten.mean.dim)
_SUMS = (aten.sum.default, aten.sum.dim_IntList, *_MEANS)

Sums = Mapping[fx.Node, Mapping[fx.Node, Sequence[int]]]
"""For stacks the nodes that sum them, and over which of their dimensions."""
NO_SUMS: Sums = {}


def summed(form: Scan, places: Mapping[fx.Node, Place]) -> tuple[Scan, Sums] | None:
    """The loop that returns sums of stacks, and which, if there are any. ``places``: where the values around a loop are
    among its results.
    """
    if type(form.length) is not int:
        return None
    taken = [place.output for place in places.values()]
    stacks = {
        place.output: node
        for node, place in places.items()
        if place.output >= form.n_carry and taken.count(place.output) == 1 and form.lead(place.output) is None
    }
    found = {i: sums for i, node in stacks.items() if (sums := _sums(node))}
    if not found:
        return None
    return replace(form, sums=frozenset(found)), {stacks[i]: sums for i, sums in found.items()}


def _sums(stack: fx.Node) -> dict[fx.Node, Sequence[int]] | None:
    """None if anything else reads the stack. Under ``vmap`` it is permuted before, which a sum need not be."""
    meta, sums = meta_of(stack), dict[fx.Node, Sequence[int]]()
    if meta.dtype not in (torch.float32, torch.float64) or any(type(size) is not int for size in meta.shape):
        return None
    for user in stack.users:
        is_permuted = user.target is aten.permute.default
        order: Any = user.args[1] if is_permuted else range(len(meta.shape))
        for reader in user.users if is_permuted else [user]:
            dims = _dims(reader, meta.dtype, len(order))
            if dims is None:
                return None
            sums[reader] = [order[dim] % len(order) for dim in dims]
            left = [dim % len(order) for dim in order if dim % len(order) not in sums[reader]]
            if 0 not in sums[reader] or left != sorted(left):
                return None
    return sums


def _dims(node: fx.Node, dtype: torch.dtype, n: int) -> Sequence[int] | None:
    """Over which dimensions a node sums, if it does and is as precise as what it sums."""
    value = node.meta.get("val")
    if node.target not in _SUMS or node.kwargs or len(node.args) > 2:
        return None
    if not isinstance(value, Tensor) or value.dtype is not dtype:
        return None
    given: Any = node.args[1] if len(node.args) == 2 else None
    return [dim % n for dim in given] if given else range(n)


def put_sums(sums: Mapping[fx.Node, Sequence[int]], stack: fx.Node, row: fx.Node) -> None:
    """Have all that sums a stack computed of ``row``, the sum over all steps."""
    graph, shape = stack.graph, meta_of(stack).shape
    for node, dims in sums.items():
        with graph.inserting_before(node):
            value = row
            if len(dims) > 1:
                value = graph.call_function(aten.sum.dim_IntList, (value, [dim - 1 for dim in dims if dim]))
                value.meta["val"] = node.meta["val"]
            if node.target in _MEANS:
                value = graph.call_function(aten.div.Scalar, (value, math.prod(shape[dim] for dim in dims)))
                value.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(value)
        graph.erase_node(node)
    for permuted in list(stack.users):
        graph.erase_node(permuted)
