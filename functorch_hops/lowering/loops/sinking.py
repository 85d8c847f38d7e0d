"""Pointwise work before a loop, done in the loop.

NOTE [Sunk producers] What makes the rows of a loop element by element - the cotangents of a stack are mostly so, an
expanded number or ``2 * y`` - need not be stored for all steps: a step computes its row. That takes no more bytes, if
nobody else reads the rows. A producer stays outside where it reads a part of its operand for several elements: then
lanes of the loop would not be those of the row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from ..._torch import OpOverload
from ...derive.rewrite import rewritten
from ...ir.meta import TensorMeta
from ...ir.nodes import meta_of
from ...ir.subgraph import is_pinned
from .forms import Scan

__all__ = ["sunk"]

aten = torch.ops.aten

_SAME_ELEMENTS = (aten.alias.default, aten.clone.default, aten.detach.default, aten._to_copy.default)
_OF_A_SIZE = (aten.full.default, aten.zeros.default, aten.ones.default)


def sunk(form: Scan, loop: fx.Node, operands: Sequence[fx.Node], module: torch.nn.Module) -> tuple[Scan, list[fx.Node]]:
    """The loop with the producers of its xs in its body, and its operands. ``loop``: its node."""
    n, first_const = form.n_carry, form.n_carry + form.n_xs
    xs, consts = operands[n:first_const], operands[first_const:]
    made = _producers(form.length, loop, xs, module)
    if not made:
        return form, list(operands)
    read = [node for maker in made for node in maker.all_input_nodes if node not in made]
    rows = list(dict.fromkeys([*(x for x in xs if x not in made), *(node for node in read if not _is_number(node))]))
    numbers = list(dict.fromkeys(filter(_is_number, read)))

    shapes = {maker: _row_meta(maker).shape for maker in made}

    def run(*args: Tensor) -> Sequence[Tensor]:
        m, k = n + len(rows), n + len(rows) + len(consts)
        values = dict(zip([*rows, *numbers], [*args[n:m], *args[k:]]))
        for maker in made:
            values[maker] = _row(maker, shapes[maker], values.__getitem__)
        return form.body(*args[:n], *(values[x] for x in xs), *args[m:k])

    metas = [_row_meta(node) for node in rows]
    inputs = [*form.body.inputs[:n], *metas, *form.body.inputs[first_const:], *map(meta_of, numbers)]
    body = rewritten(run, inputs, "scan")
    new = replace(form, body=body, n_xs=len(rows))
    return new, [*operands[:n], *rows, *consts, *numbers]


def _producers(length: int, loop: fx.Node, xs: Sequence[fx.Node], module: torch.nn.Module) -> list[fx.Node]:
    """What makes rows of a loop for nobody else, in the order of the graph."""
    found: dict[fx.Node, None] = {}
    todo = list(xs)
    while todo:
        node = todo.pop()
        if (
            node not in found
            and _has_rows(node, length, module)
            and all(user is loop or user in found for user in node.users)
        ):
            found[node] = None
            todo.extend(node.all_input_nodes)
    order = {node: i for i, node in enumerate(loop.graph.nodes)}
    return sorted(found, key=order.__getitem__)


def _has_rows(node: fx.Node, length: int, module: torch.nn.Module) -> bool:
    """Whether row t of a value can be computed from the rows t of its operands, and numbers."""
    target, value = node.target, node.meta.get("val")
    if not isinstance(target, OpOverload) or not isinstance(value, Tensor) or length < 2:
        return False
    if value.dim() == 0 or value.shape[0] != length or is_pinned(node, module):
        return False
    metas = list(map(meta_of, node.all_input_nodes))
    if target in _OF_A_SIZE:
        return True
    if target is aten.reshape.default:
        return metas[0].shape[:1] == (length,)
    if target is not aten.expand.default and target not in _SAME_ELEMENTS and torch.Tag.pointwise not in target.tags:
        return False
    if value.dim() == 1 and len({meta.dtype for meta in metas}) > 1:
        return False  # rows are numbers, which promote otherwise
    return all(meta.shape in ((), tuple(value.shape)) for meta in metas)


def _is_number(node: fx.Node) -> bool:
    return bool(node.meta["val"].dim() == 0)


def _row_meta(node: fx.Node) -> TensorMeta:
    shape, dtype, device = meta_of(node)
    return TensorMeta(shape[1:], dtype, device)


def _row(node: fx.Node, shape: Sequence[int], value_of: Callable[[fx.Node], Tensor]) -> Any:
    target: Any = node.target
    args, kwargs = fx.map_arg(node.args, value_of), fx.map_arg(node.kwargs, value_of)
    if target in _OF_A_SIZE:
        return target(shape, *args[1:], **kwargs)
    if target in (aten.expand.default, aten.reshape.default):
        return target(args[0], shape)
    return target(*args, **{name: value for name, value in kwargs.items() if name != "memory_format"})
