"""Who else holds the memory of a tensor, found by counting references.

NOTE [Memory that nobody else holds] A program reads memory through a Python object, a reference in C++ to a tensor, or
another tensor of one storage: a view, a detached alias, what autograd saved. Each counts, in the object, the tensor or
the storage. So a tensor with the counts of a new one is shared with nobody, whichever way its maker came by it. A count
that is higher than it need be, as that of a result that autograd saved (of tanh, exp), costs a copy and its memory. No
count tells of memory that torch did not allocate, such as NumPy's, whose storage can't be resized, nor of other
processes. What the counts of new tensors are is seen once, on some: versions of Python and torch count differently.
"""

from __future__ import annotations

import functools
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.grad_mode import _force_original_view_tracking

from .dispatch import suspended
from .levels import is_wrapped, unwrap_once
from .tensors import PLAIN_TYPES, has_storage

__all__ = ["is_held_elsewhere"]

Counts = tuple[int, int]


def is_held_elsewhere(values: list[Any], i: int) -> bool:
    """Whether the tensor ``values[i]``, or its memory, may be reached by another way than through this list."""
    new = _new()
    if type(values[i]) not in PLAIN_TYPES or _of_item(values, i) != new.item:
        return True
    t: Tensor = values[i]
    while is_wrapped(t):
        t = unwrap_once(t)
        if _of_item([t], 0) != new.owned:
            return True
    if type(t) not in PLAIN_TYPES or not has_storage(t) or not t.untyped_storage().resizable():
        return True
    base = t._base
    if base is None:
        return _of_storage(t) != new.storage
    return _of_storage(t) != new.storage_of_view or _of_item([base], 0) != new.owned


class _New(NamedTuple):
    """The counts of a tensor that was just made."""

    item: Counts
    """Of a tensor in a list."""
    owned: Counts
    """Of one that a tensor holds: as its base, or wrapped in it."""
    storage: Counts
    storage_of_view: Counts


def _of_item(values: list[Any], i: int) -> Counts:
    """In a list, as whether a call holds its arguments depends on how Python evaluates it: Dynamo changes that."""
    return sys.getrefcount(values[i]), values[i]._use_count()


def _of_storage(t: Tensor) -> Counts:
    storage = t.untyped_storage()
    return sys.getrefcount(storage), torch._C._storage_Use_Count(storage._cdata)


@functools.cache
def _new() -> _New:
    with suspended(keep_autocast=False), _force_original_view_tracking(False):  # a view that is tracked holds its base
        made = [torch.empty(2, device="cpu"), torch.empty(2, device="cpu")[:1]]
        storage, storage_of_view = map(_of_storage, made)
        base = made[1]._base
        assert base is not None, "a view has a base"
        return _New(_of_item(made, 0), _of_item([base], 0), storage, storage_of_view)
