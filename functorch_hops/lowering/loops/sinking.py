"""Work before a loop, done in the loop.

NOTE [Sunk producers] What makes the rows of a loop element by element - the cotangents of a stack are mostly so, an
expanded number or ``2 * y`` - need not be stored for all steps: a step computes its row. That takes no more bytes, if
nobody else reads the rows. A producer stays outside where it reads a part of its operand for several elements: then
lanes of the loop would not be those of the row.

NOTE [Sunk products] A product that fission took out of a loop (``passes/products.py``) returns to it where a step has
rows enough to fill the tiles of a kernel: it is as fast there, and what it makes stays in the cache. So it does only
where the loop multiplies by a matrix anyway, hence is none over lanes, and where several threads would be no help.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from ..._torch import OpOverload, is_pointwise
from ...derive.rewrite import rewritten
from ...ir.meta import TensorMeta
from ...ir.nodes import meta_of
from ...ir.sizes import size_key
from ...ir.subgraph import is_pinned
from .forms import Scan
from .products import FULL_TILE, LARGEST_PRODUCT

__all__ = ["sunk", "sunk_products"]

aten = torch.ops.aten

_SAME_ELEMENTS = (aten.alias.default, aten.clone.default, aten.detach.default, aten._to_copy.default)
_OF_A_SIZE = (aten.full.default, aten.zeros.default, aten.ones.default)
_SHAPING = (*_OF_A_SIZE, aten.expand.default, aten.reshape.default)
"""These take a shape, that of a row in the loop."""


def sunk(form: Scan, loop: fx.Node, operands: Sequence[fx.Node], module: torch.nn.Module) -> tuple[Scan, list[fx.Node]]:
    """The loop with the producers of its xs in its body, and its operands. ``loop``: its node."""
    n, first_const = form.n_carry, form.n_carry + form.n_xs
    xs, consts = operands[n:first_const], operands[first_const:]
    made = _producers(form.length, loop, xs, module)
    if not made:
        return form, list(operands)
    read = [node for maker in made for node in _read(maker) if node not in made]
    rows = list(dict.fromkeys([*(x for x in xs if x not in made), *(node for node in read if not _is_number(node))]))
    numbers = list(dict.fromkeys(filter(_is_number, read)))

    shapes = {maker: _row_meta(maker).shape for maker in made}

    def run(*args: Tensor) -> Sequence[Tensor]:
        m, k = n + len(rows), n + len(rows) + len(consts)
        values = dict(zip([*rows, *numbers], [*args[n:m], *args[k:]]))
        for maker in made:
            values[maker] = _row(maker, shapes[maker], values.get)
        return form.body(*args[:n], *(values[x] for x in xs), *args[m:k])

    metas = [_row_meta(node) for node in rows]
    inputs = [*form.body.inputs[:n], *metas, *form.body.inputs[first_const:], *map(meta_of, numbers)]
    known = {size_key(size) for meta in inputs for size in meta.shape}
    if not all(type(size) is int or size_key(size) in known for shape in shapes.values() for size in shape):
        return form, list(operands)
    body = rewritten(run, inputs, "scan")
    new = replace(form, body=body, n_xs=len(rows))
    return new, [*operands[:n], *rows, *consts, *numbers]


def sunk_products(form: Scan, loop: fx.Node, operands: Sequence[fx.Node]) -> tuple[Scan, list[fx.Node]]:
    """The loop with products for all steps in its body: see NOTE [Sunk products]. ``loop``: its node."""
    n, first_const = form.n_carry, form.n_carry + form.n_xs
    xs, consts = operands[n:first_const], operands[first_const:]
    multiplies = any(node.target is aten.mm.default for node in form.body.module.graph.nodes)
    found = {x: _product_of_rows(x, loop, form.length) for x in xs} if multiplies else {}
    made = {x: factors for x, factors in found.items() if factors is not None}
    if not made:
        return form, list(operands)
    rows = list(dict.fromkeys(made[x].rows if x in made else x for x in xs))
    matrices = list(dict.fromkeys(factors.matrix for factors in made.values()))

    def run(*args: Tensor) -> Sequence[Tensor]:
        m, k = n + len(rows), n + len(rows) + len(consts)
        values = dict(zip([*rows, *matrices], [*args[n:m], *args[k:]]))
        for x, (row, matrix) in made.items():
            values[x] = aten.mm.default(values[row], values[matrix])
        return form.body(*args[:n], *(values[x] for x in xs), *args[m:k])

    inputs = [*form.body.inputs[:n], *map(_row_meta, rows), *form.body.inputs[first_const:], *map(meta_of, matrices)]
    new = replace(form, body=rewritten(run, inputs, "scan"), n_xs=len(rows))
    return new, [*operands[:n], *rows, *consts, *matrices]


class _Factors(NamedTuple):
    rows: fx.Node
    matrix: fx.Node


def _product_of_rows(x: fx.Node, loop: fx.Node, length: Any) -> _Factors | None:
    """The factors of a product for all steps that is as fast step by step, and that nobody else reads."""
    shaped, product, flat = x, *_chain(x)
    if product is None or flat is None or list(shaped.users) != [loop] or list(product.users) != [shaped]:
        return None
    rows, matrix = flat.args[0], product.args[1]
    shape, (terms, _) = rows.meta["val"].shape, matrix.meta["val"].shape  # type: ignore[union-attr]
    _, size, columns = shaped.meta["val"].shape
    if not all(type(extent) is int for extent in (length, *shape, terms, columns)):
        return None
    work = size * terms * columns
    is_row_by_row = shape == (length, size, terms) and rows.meta["val"].dtype in _EXACT  # type: ignore[union-attr]
    if not is_row_by_row or size < FULL_TILE or work > LARGEST_PRODUCT:
        return None
    if torch.get_num_threads() > 1 and length * work > _WORTH_THREADS:
        return None
    return _Factors(rows, matrix)  # type: ignore[arg-type]


def _chain(shaped: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """The product of which a node is the rows by steps, and its first factor, rows of all steps."""
    product = shaped.args[0] if shaped.target is aten.reshape.default and shaped.meta["val"].dim() == 3 else None
    if not isinstance(product, fx.Node) or product.target is not aten.mm.default:
        return None, None
    flat = product.args[0]
    is_flat = isinstance(flat, fx.Node) and flat.target is aten.reshape.default
    return product, flat if is_flat and flat.args[0].meta["val"].dim() == 3 else None  # type: ignore[return-value, union-attr]


_EXACT = torch.float32, torch.float64
_WORTH_THREADS = 1 << 26
"""Multiplications, some milliseconds."""


def _producers(length: Any, loop: fx.Node, xs: Sequence[fx.Node], module: torch.nn.Module) -> list[fx.Node]:
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


def _has_rows(node: fx.Node, length: Any, module: torch.nn.Module) -> bool:
    """Whether row t of a value can be computed from the rows t of its operands, and numbers."""
    target, value = node.target, node.meta.get("val")
    if not isinstance(target, OpOverload) or not isinstance(value, Tensor) or length in (0, 1):
        return False
    if value.dim() == 0 or size_key(value.shape[0]) != size_key(length) or is_pinned(node, module):
        return False
    if target not in _SHAPING and len(_read(node)) < len(node.all_input_nodes):
        return False
    metas = list(map(meta_of, _read(node)))
    whole = tuple(map(size_key, value.shape))
    if target in _OF_A_SIZE:
        return not any(isinstance(argument, fx.Node) for argument in node.args[1:])
    if target is aten.reshape.default:
        return size_key(metas[0].shape[0]) == size_key(length)
    if target is not aten.expand.default and target not in _SAME_ELEMENTS and not is_pointwise(target):
        return False
    if value.dim() == 1 and len({meta.dtype for meta in metas}) > 1:
        return False  # rows are numbers, which promote otherwise
    return all(not meta.shape or tuple(map(size_key, meta.shape)) == whole for meta in metas)


def _read(node: fx.Node) -> list[fx.Node]:
    """The tensors that a node reads."""
    return [x for x in node.all_input_nodes if isinstance(x.meta["val"], Tensor)]


def _is_number(node: fx.Node) -> bool:
    return bool(node.meta["val"].dim() == 0)


def _row_meta(node: fx.Node) -> TensorMeta:
    shape, dtype, device = meta_of(node)
    return TensorMeta(shape[1:], dtype, device)


def _row(node: fx.Node, shape: Sequence[Any], value_of: Callable[[fx.Node], Any]) -> Any:
    target: Any = node.target
    args, kwargs = fx.map_arg(node.args, value_of), fx.map_arg(node.kwargs, value_of)
    if target in _OF_A_SIZE:
        return target(shape, *args[1:], **kwargs)
    if target in (aten.expand.default, aten.reshape.default):
        return target(args[0], shape)
    return target(*args, **{name: value for name, value in kwargs.items() if name != "memory_format"})
