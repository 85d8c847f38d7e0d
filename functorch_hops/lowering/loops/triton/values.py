"""What lanes hold, as variables or in memory, and how it is read and written in Triton."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ....ir.meta import TensorMeta
from ..lane_rows import LANE, Rows, rows_of
from ..sizes import Size, expression_of, size_of
from ..source import computed_dtype
from ..unrolled import Held

__all__ = ["Stored", "assigned", "compute_type", "copied", "rows_in", "text", "variables"]


class Stored(Held):
    """In memory that the kernel writes, at the pointer ``name``; any other ``Held`` is variables."""


def variables(held: Held) -> list[str]:
    return [f"{held.name}_{number}" for number in range(held.rows.size)]


def rows_in(meta: TensorMeta, lanes: Size) -> Rows:
    return rows_of([size_of(size) for size in meta.shape], lanes)


def compute_type(dtype: torch.dtype) -> str:
    """The type in which a lane holds values of a dtype."""
    from torch._inductor.utils import triton_type

    return triton_type(computed_dtype(dtype))


def text(size: Size) -> str:
    from torch._inductor.codegen.triton import texpr

    written = texpr(expression_of(size))
    return written if isinstance(size, int) or written.isidentifier() else f"({written})"


def copied(target: Held, source: str | Held) -> list[str]:
    """``source``: a pointer to a tensor, or what lanes hold. Lanes behind the last one hold what lanes share, too."""
    if isinstance(source, Held) and not isinstance(source, Stored):
        return [f"{new} = {old}" for new, old in zip(variables(target), variables(source))]
    pointer, kind = source.name if isinstance(source, Held) else source, compute_type(target.dtype)
    places = (_place(target.rows, number) for number in range(target.rows.size))
    mask = "xmask" if target.rows.step else "None"
    loads = [f"tl.load({pointer} + {place}, {mask}).to({kind})" for place in places]
    return [f"{new} = {load}" for new, load in zip(variables(target), loads)]


def assigned(target: Held, values: Sequence[str]) -> list[str]:
    """Numbers that lanes share are written by the first lane of each program: all write the same."""
    if not isinstance(target, Stored):
        return [f"{name} = {value}" for name, value in zip(variables(target), values)]
    mask = "xmask" if target.rows.step else "xindex == xoffset"
    places = [_place(target.rows, number) for number in range(target.rows.size)]
    return [f"tl.store({target.name} + {place}, {value}, {mask})" for place, value in zip(places, values)]


def _place(rows: Rows, number: int) -> str:
    """Where a lane finds a number, in a tensor."""
    from sympy import Symbol
    from torch._inductor.codegen.triton import texpr

    if rows.step == 0:
        return f"{number} + 0 * xindex"
    return str(texpr(rows.index(number).subs(LANE, Symbol("xindex", integer=True))))
