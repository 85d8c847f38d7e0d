"""Indexing by a traced integer: ``table[i]``, ``table[i] = value`` and ``table.narrow(0, i, n)`` without reading ``i``.

torch turns a 0-d integer tensor in an index into a Python number (``select``). A traced one has no value yet. Selecting
with it is a gather of one row followed by ``[0]``; writing with it is a write into that row, put back by
``index_copy_``. A window of rows that begins at a traced one is read and written in the same way.

NOTE [Rows are views] Eager Python reads a view by ``table[i]``, the gather is a copy. So that no program can tell, a
write to a row (``table[i][j] = v``, ``table[i].add_(v)``) is written to its table at once, and a row whose table was
written since is gathered again before it is used, as torch's functionalization regenerates views.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from .._torch import base_tensor, is_batched, is_unbacked, storage_key, tree_leaves, without_torch_function

__all__ = ["NARROW", "Rows", "RowsOfLanes", "put_by_mask", "put_by_mask_", "set_part"]

NARROW = (Tensor.narrow, torch.narrow)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8)


class Window(NamedTuple):
    """As an item of an index: so many rows, from a traced one on."""

    start: Tensor
    length: int


class _Row(NamedTuple):
    value: Tensor
    table: Tensor
    index: Any


class Rows:
    """Indexing in one capture, and the rows that it read (see NOTE [Rows are views])."""

    def __init__(self) -> None:
        self._rows: dict[int, _Row] = {}
        self._written: list[_Row] = []
        self._stale: dict[int, _Row] = {}

    def getitem(self, table: Tensor, index: Any) -> Tensor:
        value = get_row(table, index)
        if value is not None:
            if _is_view(index):
                self._rows[_storage(value)] = _Row(value, table, index)
            return value
        return table[index]

    def narrow(self, input: Tensor, dim: int, start: Any, length: int) -> Tensor | None:
        """What torch's function of this name reads from a traced integer on; None where it begins at no such one."""
        if not _is_traced_integer(start):
            return None
        return self.getitem(input, (*[_ALL] * (dim % input.dim()), Window(start, length)))

    def setitem(self, table: Tensor, index: Any, value: Any) -> None:
        row = self._rows.get(_storage(value)) if self._rows and isinstance(value, Tensor) else None
        if row is None or row.index is not index or row.table is not table:  # else the end of `table[index] += ...`
            set_part(table, index, value)

    def note_write(self, target: Tensor) -> None:
        """An operator is about to write to ``target``."""
        if self._rows:
            key = _storage(target)
            if key in self._rows and key not in self._stale:
                self._written.append(self._rows[key])
            self._expire(key)

    def _expire(self, table: int) -> None:
        for key, row in self._rows.items():
            if key not in self._stale and _storage(row.table) == table:
                self._stale[key] = row
                self._expire(key)

    def write_through(self) -> None:
        """Write to the tables what was written to rows; a table may be a row itself."""
        while self._written:
            row = self._written.pop()
            self._write(row)
            self._stale.pop(_storage(row.value), None)

    def _write(self, row: _Row) -> None:
        set_part(row.table, row.index, row.value)

    def fresh(self, x: Tensor) -> Tensor:
        """``x``, gathered again if it is (a view of) a row of a table that was written since."""
        row = self._stale.get(_storage(x)) if self._stale else None
        if row is not None:
            self.fresh(row.table)
            with without_torch_function(), torch.enable_grad():  # no write of the user's
                row.value.copy_(get_row(row.table, row.index))  # type: ignore[arg-type]
            del self._stale[_storage(x)]
        return x

    def up_to_date(self, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What a function returns, and nobody reads before it ends."""
        return tuple(map(self.fresh, results))

    @contextlib.contextmanager
    def of_lanes(self) -> Iterator[Self]:
        """Around a function that is mapped: the rows that it reads end with its lanes."""
        known = dict(self._rows)
        try:
            yield self
        finally:
            self._rows, self._stale = known, {key: row for key, row in self._stale.items() if key in known}


class RowsOfLanes(Rows):
    """In a function that is mapped in plain eager: what a call wrote there, the versions of its operands tell."""

    def call(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if func is Tensor.__getitem__ and _differs(args[1]):
            func = self.getitem
        elif func is Tensor.__setitem__ and _differs(args[1]):
            func = self.setitem
        elif func in NARROW:
            func = self._narrowed
        if not self._rows:
            return func(*args, **kwargs)
        operands = [self.fresh(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        versions = [base_tensor(x)._version for x in operands]
        result = func(*args, **kwargs)
        for x, version in zip(operands, versions):
            if base_tensor(x)._version != version:
                self.note_write(x)
        self.write_through()
        return result

    def narrow(self, input: Tensor, dim: int, start: Any, length: int) -> Tensor | None:
        if _is_traced_integer(start) and not is_batched(start):  # a tensor for torch's vmap, which refuses it
            return input.narrow(dim, int(start), length)
        return super().narrow(input, dim, start, length)

    def _narrowed(self, *args: Any, **kwargs: Any) -> Tensor:
        part = self.narrow(*args, **kwargs)
        return torch.narrow(*args, **kwargs) if part is None else part

    def _write(self, row: _Row) -> None:
        super()._write(row)
        self.note_write(row.table)


def _differs(index: Any) -> bool:
    """Whether a traced integer in an index differs between lanes."""
    items = index if isinstance(index, tuple) else (index,)
    return any(_is_traced_integer(item) and is_batched(item) for item in items)


def _storage(x: Tensor) -> int:
    return storage_key(base_tensor(x))


def get_row(x: Tensor, index: Any) -> Tensor | None:
    """``x[index]``, or None where no item of the index is traced."""
    found = _first_traced(x, index)
    if found is None:
        return None
    while found is not None:
        dim, rows, index = found
        x = _selected(x, dim, rows)
        found = _first_traced(x, index)
    return x[index]


def _selected(x: Tensor, dim: int, rows: Tensor) -> Tensor:
    """``index_select``, which saves ``x`` in lanes of a vmap (torch 2.13), where it may be written to next."""
    return x.movedim(dim, 0)[rows].movedim(0, dim) if _is_of_lanes(x, rows) else x.index_select(dim, rows)


def _is_of_lanes(x: Tensor, rows: Tensor) -> bool:
    return is_batched(rows) or is_batched(x)


def set_part(x: Tensor, index: Any, value: Any) -> None:
    """``x[index] = value``, by a traced integer or a mask too."""
    found = _first_traced(x, index)
    if found is None:
        if not _set_by_mask(x, index, value):
            x[index] = value
        return
    dim, rows, rest = found
    part = _selected(x, dim, rows)
    set_part(part, rest, value)
    if not _is_of_lanes(x, rows):
        x.index_copy_(dim, rows, part)
        return
    x, part = x.movedim(dim, 0), part.movedim(dim, 0)
    if part.shape[0] == 1:
        x.index_put_((rows.reshape(()),), part.squeeze(0))
    else:  # torch's rule (2.13) for index_put_ takes lanes of tangents for rows, and there is none for scatter_
        x.copy_(x.scatter(0, rows.reshape(-1, *[1] * (x.dim() - 1)).expand_as(part), part))


def _set_by_mask(x: Tensor, index: Any, value: Any) -> bool:
    """``x[mask] = value`` where all masked elements get the same: a choice between two tensors, which needs to know
    neither how many they are nor (of a mask without dimensions) whether. Returns whether it is that case.
    """
    found = _masked(x, index, value)
    if found is None:
        return False
    chosen, mask, value = found
    chosen.copy_(torch.where(mask, value, chosen))
    return True


def put_by_mask(x: Tensor, indices: Any, values: Tensor, accumulate: bool = False) -> Any:
    """``index_put``, adding where it accumulates, as a choice like that of :func:`set_part`; NotImplemented where it is
    none. The operator takes no more dims of values than an indexed tensor has, which an assignment does.
    """
    found = _masked(x, tuple(_ALL if i is None else i for i in indices), values)
    if found is None or values.dtype != x.dtype:
        return NotImplemented
    chosen, mask, value = found
    n_masked = sum(i.dim() for i in indices if i is not None)
    if values.dim() > chosen.dim() - n_masked + 1 or not _is_broadcast(value.shape, chosen.shape):
        return NotImplemented
    return torch.where(mask, chosen + value if accumulate else value, chosen)


def _is_broadcast(shape: torch.Size, to: torch.Size) -> bool:
    return len(shape) <= len(to) and all(n in (1, m) for n, m in zip(reversed(shape), reversed(to)))


def put_by_mask_(x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """``index_put_``, by :func:`put_by_mask`."""
    result = put_by_mask(x, *args, **kwargs)
    return result if result is NotImplemented else x.copy_(result)


def _masked(x: Tensor, index: Any, value: Any) -> tuple[Tensor, Tensor, Any] | None:
    """The part of ``x`` that a mask in ``index`` chooses from, the mask, and the value of all that it chooses."""
    items = index if isinstance(index, tuple) else (index,)
    masks = [k for k, item in enumerate(items) if isinstance(item, Tensor)]
    if len(masks) != 1 or not _converts(value, x.dtype):
        return None
    place, mask = masks[0], items[masks[0]]
    rest = (*items[:place], *[_ALL] * mask.dim(), *items[place + 1 :])
    if mask.dtype is not torch.bool or not all(i is None or i is Ellipsis or type(i) in (int, slice) for i in rest):
        return None
    chosen = x if all(i is _ALL or i is Ellipsis for i in rest) else x[rest]
    n_after = chosen.dim() - _first_dim(x, items, place) - mask.dim()
    shape = chosen.shape[chosen.dim() - n_after - mask.dim() : chosen.dim() - n_after]
    if tuple(shape) != tuple(mask.shape):
        return None
    if isinstance(value, Tensor) and value.dim() > n_after:
        place = value.dim() - n_after - 1
        if is_unbacked(value.shape[place]) or value.shape[place] != 1:
            return None
        sizes = (*value.shape[:place], *[1] * mask.dim(), *value.shape[place + 1 :])
        value = value.reshape(sizes[max(len(sizes) - chosen.dim(), 0) :])
    return chosen, mask.reshape((*mask.shape, *[1] * n_after)), value


_ALL = slice(None)


def _converts(value: Any, dtype: torch.dtype) -> bool:
    if isinstance(value, Tensor):
        return value.dtype == dtype or (value.dim() == 0 and torch.can_cast(value.dtype, dtype))
    return isinstance(value, (bool, int, float))


def _first_dim(x: Tensor, items: tuple[Any, ...], place: int) -> int:
    """Where in the result of indexing the dimension begins that the item at ``place`` stands for."""
    before = items[:place]
    n_new = sum(item is None for item in before) - sum(type(item) is int for item in before)
    dim = _dims_taken(before) + n_new
    return dim + (x.dim() - _dims_taken(items) if any(item is Ellipsis for item in before) else 0)


def _is_view(index: Any) -> bool:
    """Whether eager Python reads a view by this index: numbers and slices only."""
    items = index if isinstance(index, tuple) else (index,)
    return all(_is_traced(i) or i is None or i is Ellipsis or isinstance(i, (int, slice)) for i in items)


def _is_traced_integer(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dim() == 0 and index.dtype in _INTEGERS


def _is_traced(item: Any) -> bool:
    return isinstance(item, Window) or _is_traced_integer(item)


def _first_traced(x: Tensor, index: Any) -> tuple[int, Tensor, Any] | None:
    """Dimension and rows (their numbers) of the first traced item, and the index with 0 in the place of an integer, all
    in that of a window. A number may be on the CPU, as in eager Python, wherever ``x`` is.
    """
    items = index if isinstance(index, tuple) else (index,)
    place = next((k for k, item in enumerate(items) if _is_traced(item)), None)
    if place is None:
        return None
    dim = _dims_taken(items[:place])
    if any(item is Ellipsis for item in items[:place]):
        dim += x.dim() - _dims_taken(items)
    start, length = items[place] if isinstance(items[place], Window) else (items[place], None)
    row = _counted(start.to(x.device, torch.int64), x.shape[dim])
    rows = row.reshape(1) if length is None else row + torch.arange(length, device=x.device)
    return dim, rows, (*items[:place], 0 if length is None else _ALL, *items[place + 1 :])


def _counted(row: Tensor, size: Any) -> Tensor:
    """A row counted from the start. What is no row stays as far below zero as it was: an operator that counts from the
    end itself, as Inductor's ``index_select`` does, must not find another row by it.
    """
    return torch.where((row < 0) & (row >= -size), row + size, row)


def _dims_taken(items: tuple[Any, ...]) -> int:
    """How many dimensions of the indexed tensor these index items use up."""
    taken = 0
    for item in items:
        if item is None or item is Ellipsis or isinstance(item, bool):
            continue
        is_mask = isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8)
        taken += item.dim() if is_mask else 1
    return taken
