"""Parts of tensors that are written and read back.

A write to a part, ``y[1:-1, 1:-1] += z``, is a read of the part, the sum, and two writes, of the part and of that to
the tensor, and Python's augmented assignment does both twice. The cotangent of each write is cut in two, zeros where it
wrote and the part itself, to be summed again. What remains of this after each step of a loop is masks.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import cast

import torch
from torch import Tensor, fx

from .._torch import OpOverload
from ..ir.sizes import is_closed

__all__ = ["merge_writes", "read_back"]

aten = torch.ops.aten

_READS = {aten.slice.Tensor: 1, aten.select.int: 1}
_WRITES = {aten.slice_scatter.default: 2, aten.select_scatter.default: 2}
_WRITES_TO_ZEROS = {aten.slice_backward.default: 2, aten.select_backward.default: 2}
_ARGUMENTS_BEFORE = {**_READS, **_WRITES, **_WRITES_TO_ZEROS}
"""How many arguments come before those that say which part it is."""
_SCATTERS = {
    aten.slice_backward.default: aten.slice_scatter.default,
    aten.select_backward.default: aten.select_scatter.default,
}
_ZEROS = aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default


def read_back(node: fx.Node) -> fx.Node | None:
    """The value that a node reads from where it was just written, or that it writes where it was just read."""
    if node.target in _READS:
        written, part = cast(fx.Node, node.args[0]), 1
    elif node.target in _WRITES:
        written, part = _behind_copies(cast(fx.Node, node.args[1])), 0
    else:
        return None
    others = _WRITES if node.target in _READS else _READS
    if written.target not in others or (node.target in _WRITES and written.args[0] is not node.args[0]):
        return None
    if not _are_of_one_part(node, written):
        return None
    return _like(cast(fx.Node, written.args[part]), node)


def merge_writes(node: fx.Node) -> None:
    """Write to what there was before a write of the same part, and into a sum's term that is zero there."""
    if node.target in _WRITES:
        before = cast(fx.Node, node.args[0])
        if before.target is node.target and _are_of_one_part(before, node):
            node.update_arg(0, before.args[0])
    elif node.target is aten.add.Tensor and not node.kwargs:
        for around, inside in (node.args, node.args[::-1]):
            if isinstance(around, fx.Node) and isinstance(inside, fx.Node) and _complete(around, inside, node):
                base, part = cast(fx.Node, around.args[0]), cast(fx.Node, inside.args[0])
                target = cast(OpOverload, around.target)
                node.target, node.args = target, (base, part, *around.args[2:])
                return


def _complete(around: fx.Node, inside: fx.Node, total: fx.Node) -> bool:
    """Whether one is zero exactly where the other is not."""
    return (
        inside.target in _SCATTERS
        and around.target is _SCATTERS[cast(OpOverload, inside.target)]
        and cast(fx.Node, around.args[1]).target in _ZEROS
        and _are_of_one_part(around, inside)
        and all(_like(x, total) is x for x in (around, inside))
    )


def _are_of_one_part(a: fx.Node, b: fx.Node) -> bool:
    part = _part(a)
    return part is not None and part == _part(b)


def _part(node: fx.Node) -> Hashable:
    """Which part of its tensor a node reads or writes; None if sizes are open."""
    whole = node if node.target in (*_WRITES, *_WRITES_TO_ZEROS) else cast(fx.Node, node.args[0])
    shape = whole.meta["val"].shape
    given = node.args[_ARGUMENTS_BEFORE[node.target] :]  # type: ignore[index]
    if not is_closed(shape) or node.kwargs or not all(x is None or type(x) is int for x in given):
        return None
    numbers = cast(tuple[int | None, ...], given)
    dim = (numbers[0] or 0) % len(shape) if numbers else 0
    size = int(shape[dim])
    if node.target in (aten.select.int, aten.select_scatter.default, aten.select_backward.default):
        return dim, cast(int, numbers[1]) % size
    start, stop, step = slice(*(*numbers[1:4], None, None, None)[:3]).indices(size)
    return dim, start, max(start, stop), step


def _behind_copies(node: fx.Node) -> fx.Node:
    while node.target is aten.clone.default:
        node = cast(fx.Node, node.args[0])
    return node


def _like(value: fx.Node, node: fx.Node) -> fx.Node | None:
    """A value, if it has the type of another."""
    a, b = value.meta["val"], node.meta["val"]
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or not is_closed(a.shape):
        return None
    return value if (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device) else None
