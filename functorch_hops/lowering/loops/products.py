"""Matrix products inside a loop.

A call of BLAS costs as much as the product of a small cell, and MKL is slow on such sizes: here it is a template of the
sizes, in tiles whose sums stay in registers; an open size is 0 among the parameters of the template, and an argument.
It wants the rows of its second factor in one piece: a factor laid out by
columns is copied, once for all steps if none of them changes it. Larger products are left to BLAS, in torch's own loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from .forms import Refused
from .headers import header
from .sizes import OpenSize, Size, hint, size_of
from .source import c_type, computed_dtype

__all__ = ["FULL_TILE", "LARGEST_PRODUCT", "PRODUCT", "PRODUCTS", "Factor", "product_body", "product_statements"]

PRODUCT = header("product")

LARGEST_PRODUCT = 1 << 23
"""Multiplications, a seventh of a millisecond, from which on BLAS, which may use more threads, is no slower."""

FULL_TILE = 8
"""Rows from which on a product is as fast as with many."""

_STRIDED = 1 << 15
"""Elements of a factor from which on it is worth a copy, once for all steps, in the order in which it is read."""

aten = torch.ops.aten

_BIASED = aten.addmm.out, aten.baddbmm.out
PRODUCTS = aten.mm.out, aten.bmm.out, *_BIASED


class Factor(NamedTuple):
    """Matrices in a buffer, ``step`` elements from one to the next."""

    buffer: str
    dtype: torch.dtype
    offset: Size
    step: Size
    shape: tuple[Size, Size]
    strides: tuple[Size, Size]

    @property
    def place(self) -> str:
        return f"{self.buffer} + {self.offset}" + (f" + batch * int64_t({self.step})" if self.step != 0 else "")

    @property
    def has_rows(self) -> bool:
        """Whether the elements of a row follow one another."""
        return self.strides[1] == 1 or self.shape[1] == 1

    def turned(self) -> Factor:
        return self._replace(shape=self.shape[::-1], strides=self.strides[::-1])


def product_statements(
    out: Any,
    inputs: Sequence[Any],
    dense: Callable[[Factor, Size, bool], Factor],
    scratch: Callable[[Size, torch.dtype], str],
    constants: Sequence[str],
) -> list[str]:
    """``out = a @ b``, or ``out = bias + a @ b``: nodes of Inductor's. ``dense`` makes a copy of so many matrices, row
    after row, or in panels, in the precision of products; ``scratch``: a place for numbers; ``constants``: the buffers
    that no step changes.
    """
    lines, result = [], _factor(out)
    count = _sizes(out.get_layout().size)[0] if len(out.get_layout().size) == 3 else 1
    is_half = result.dtype != computed_dtype(result.dtype)
    sums = result
    if is_half:
        rows, columns = result.shape
        name = scratch(count * rows * columns, computed_dtype(result.dtype))
        sums = Factor(name, computed_dtype(result.dtype), 0, rows * columns, result.shape, (columns, 1))
    if out.op_overload in _BIASED:
        if out.kwargs.get("alpha", 1) != 1 or out.kwargs.get("beta", 1) != 1:
            raise Refused("a product has factors")
        bias, *inputs = inputs
        lines.append(_filled(sums, count, bias))
    a, b, c = _factor(inputs[0]), _factor(inputs[1]), sums
    (m, k), n = a.shape, b.shape[1]
    if hint(m * n * k) > LARGEST_PRODUCT:
        raise Refused(f"BLAS computes a product of {m} x {k} and {k} x {n}")
    if 0 in (m, n, k, count):
        raise Refused("a product of empty matrices")
    adds = "true" if lines else "false"
    for matrix, vector, sums_of in (a, b, c), (b.turned(), a.turned(), c.turned()):
        if _is_read_by_rows(matrix, vector) and matrix.buffer not in constants and not is_half:
            call = f"product_with_vector<{c_type(c.dtype)}, {_known(sums_of.shape[0])}, {_known(k)}, {adds}>"
            places = f"{matrix.place}, {matrix.strides[0]}, {vector.place}, {sums_of.place}, {sums_of.strides[0]}"
            lines.append(_each(count, f"fh::{call}({places}{_open(sums_of.shape[0], k)});"))
            return lines
    is_cheaply_turned = a.turned().has_rows or a.buffer in constants
    if not c.has_rows or (n == 1 and m != 1 and is_cheaply_turned and c.turned().has_rows):
        a, b, c = b.turned(), a.turned(), c.turned()
    if not c.has_rows:
        raise Refused("the result of a product is laid out with gaps")
    in_panels = b.buffer in constants and hint(c.shape[0]) >= FULL_TILE and hint(k * c.shape[1]) >= _STRIDED
    if not b.has_rows or is_half or in_panels:
        b = dense(b, count, in_panels)
    if is_half:
        a = dense(a, count, False)
    sizes = *c.shape, k
    places = ", ".join(
        [f"{a.place}, {a.strides[0]}, {a.strides[1]}", f"{b.place}, {b.strides[0]}", f"{c.place}, {c.strides[0]}"]
    )
    call = f"product<{c_type(c.dtype)}, {', '.join(map(_known, sizes))}, {adds}, {'true' if in_panels else 'false'}>"
    lines.append(_each(count, f"fh::{call}({places}{_open(*sizes)});"))
    if is_half:
        (rows, columns), (s0, s1) = result.shape, result.strides
        lines.append(
            f"for (int64_t batch = 0; batch < {count}; ++batch) for (int64_t i = 0; i < {rows}; ++i) "
            f"for (int64_t j = 0; j < {columns}; ++j) "
            f"({result.place})[i * {s0} + j * {s1}] = ({sums.place})[i * {columns} + j];"
        )
    return lines


def _is_read_by_rows(matrix: Factor, vector: Factor) -> bool:
    """Whether a product with one vector is that of each row, as both lie."""
    one = vector.shape[1] == 1 and matrix.shape[0] != 1
    return one and matrix.strides[1] == 1 and vector.strides[0] == 1


def _known(size: Size) -> str:
    return "0" if isinstance(size, OpenSize) else str(size)


def _open(*sizes: Size) -> str:
    """Arguments for what is no parameter of the template."""
    return "".join(f", {size}" for size in sizes) if any(isinstance(size, OpenSize) for size in sizes) else ""


def _each(count: Size, statement: str) -> str:
    return f"for (int64_t batch = 0; batch < {count}; ++batch) {statement}"


def product_body(node: Any) -> tuple[Callable[[Any, Any], None], list[int], list[int]]:
    """A product as a node that reduces, and what it runs over and reduces over."""
    from torch._inductor.virtualized import ops

    if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("beta", 1) != 1:
        raise Refused("a product has factors")
    *bias, a, b = node.inputs
    out, dtype = node.get_layout(), computed_dtype(node.get_dtype())

    def read(x: Any, index: Sequence[Any]) -> Any:
        layout = x.get_layout()
        index = [0 if size == 1 else i for size, i in zip(layout.size, index[-len(layout.size) :])]
        return ops.load(x.get_name(), _place(layout, index))

    def body(index: Any, reduced: Any) -> None:
        (*batch, i, j), (k,) = index, reduced
        value = ops.reduction(dtype, dtype, "sum", ops.mul(read(a, [*batch, i, k]), read(b, [*batch, k, j])))
        for x in bias:
            value = ops.add(value, read(x, index))
        ops.store_reduction(node.get_name(), _place(out, index), value)

    return body, [int(size) for size in out.size], [int(a.get_layout().size[-1])]


def _place(layout: Any, index: Sequence[Any]) -> Any:
    return sum((i * step for i, step in zip(index, layout.stride)), layout.offset)


def _sizes(sizes: Sequence[Any]) -> list[Size]:
    from torch._inductor.virtualized import V

    return [size_of(size, V.graph.sizevars.optimization_hint(size)) for size in sizes]


def _factor(node: Any) -> Factor:
    layout = node.get_layout()
    sizes, strides = _sizes(layout.size), _sizes(layout.stride)
    step = strides[0] if len(sizes) == 3 and sizes[0] != 1 else 0
    shape, steps = (sizes[-2], sizes[-1]), (strides[-2], strides[-1])
    return Factor(node.get_name(), layout.dtype, size_of(layout.offset), step, shape, steps)


def _filled(sums: Factor, count: Size, bias: Any) -> str:
    """Fill ``sums`` with ``bias``, which is expanded to its size."""
    layout = bias.get_layout()
    given = [0 if size == 1 else step for size, step in zip(_sizes(layout.size), _sizes(layout.stride))]
    steps = [*[0] * (3 - len(given)), *given]
    source = " + ".join(f"{name} * int64_t({step})" for name, step in zip(("batch", "i", "j"), steps))
    (rows, columns), (s0, s1) = sums.shape, sums.strides
    return (
        f"for (int64_t batch = 0; batch < {count}; ++batch) for (int64_t i = 0; i < {rows}; ++i) "
        f"for (int64_t j = 0; j < {columns}; ++j) "
        f"({sums.place})[i * {s0} + j * {s1}] = {bias.get_name()}[{size_of(layout.offset)} + {source}];"
    )
