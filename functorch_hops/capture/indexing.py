"""Indexing by a traced integer: ``table[i]`` and ``buffer[i] = value`` without reading ``i``.

torch turns a 0-d integer tensor in an index into a Python number (``select``). A traced one has no value yet. Selecting
with it is a gather of one row followed by ``[0]``; writing with it is a write into that row, put back by
``index_copy_``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["getitem", "setitem"]

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8)


def getitem(x: Tensor, index: Any) -> Tensor:
    while (found := _first_traced_integer(x, index)) is not None:
        dim, row, index = found
        x = x.index_select(dim, row)
    return x[index]


def setitem(x: Tensor, index: Any, value: Any) -> None:
    found = _first_traced_integer(x, index)
    if found is None:
        x[index] = value
        return
    dim, row, rest = found
    part = x.index_select(dim, row)
    setitem(part, rest, value)
    x.index_copy_(dim, row, part)


def _is_traced_integer(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dim() == 0 and index.dtype in _INTEGERS


def _first_traced_integer(x: Tensor, index: Any) -> tuple[int, Tensor, Any] | None:
    """Dimension and row (a one-element index) of the first traced integer, and the index with 0 in its place."""
    items = index if isinstance(index, tuple) else (index,)
    place = next((k for k, item in enumerate(items) if _is_traced_integer(item)), None)
    if place is None:
        return None
    dim = _dims_taken(items[:place])
    if any(item is Ellipsis for item in items[:place]):
        dim += x.dim() - _dims_taken(items)
    row = items[place].to(torch.int64)
    row = torch.where(row < 0, row + x.shape[dim], row).reshape(1)
    return dim, row, (*items[:place], 0, *items[place + 1 :])


def _dims_taken(items: tuple[Any, ...]) -> int:
    """How many dimensions of the indexed tensor these index items use up."""
    taken = 0
    for item in items:
        if item is None or item is Ellipsis or isinstance(item, bool):
            continue
        is_mask = isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8)
        taken += item.dim() if is_mask else 1
    return taken
