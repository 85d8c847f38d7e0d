"""Which carries a loop saves when it may keep k of them and nobody knows how long it will run.

NOTE [Minimal repetition checkpointing] Each saved carry has a level. It is dispensable once one of a later step has a
higher level. The carry of each step is offered as it arises: at level 0 it takes an empty slot, or that of a
dispensable carry; where there is none, it replaces the latest one and gets a level more than that. Going backwards, the
carries up to the one from which the body runs again are fixed, and those behind it are done with: the same problem with
fewer slots, solved by the same rule. The initial carry needs no slot. No step then runs more than r + 1 times, its
first run and that inside its own derivative included, as long as the loop takes ::

    T <= C(k + r, r)    steps,

for all T at once, and nobody needs to know T. (The last step, whose residuals are at hand, runs once.)

Sources: Wang, Moin and Iaccarino 2009, "Minimal repetition dynamic checkpointing algorithm for unsteady adjoint
calculation" (the rule and the bound); Stumm and Walther 2010, "New algorithms for optimal online checkpointing" (fewer
runs in total, while r is small); Griewank and Walther 2000, "Revolve" (the bound where T is known).

The table of the slots is two int64 vectors, ``steps`` (0: empty) and ``levels``; it travels in the carry of the loop.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...ir.meta import TensorMeta

__all__ = ["NUMBER", "empty_table", "latest", "offer", "table", "written"]

NUMBER = TensorMeta((), torch.int64, torch.device("cpu"))
"""A count of steps."""

_FIXED = 1 << 40
"""A level above all others."""

_FREE = -1
"""The level of a slot that is empty or dispensable."""


def table(k: int) -> TensorMeta:
    """One column of the table."""
    return NUMBER.with_leading(k)


def empty_table(k: int) -> list[Tensor]:
    return [table(k).zeros(), torch.full_like(table(k).zeros(), _FREE)]


def offer(step: Tensor, wanted: Tensor, steps: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The slot for the carry of ``step``, whether it is taken, and the new table. It is not taken if the carry is not
    ``wanted``, or if all slots are fixed.
    """
    place = (steps + (levels < 0) * _FIXED).argmax().reshape(1)  # the latest one, of those that are free if any is
    level = levels.index_select(0, place) + 1
    taken = wanted & (level <= _FIXED)
    is_place = (torch.arange(steps.shape[0], device=steps.device) == place) & taken
    levels = torch.where((levels < level) & taken, _FREE, levels)
    return place, taken, torch.where(is_place, step, steps), torch.where(is_place, level, levels)


def written(place: Tensor, taken: Tensor, values: Sequence[Tensor], slots: Sequence[Tensor]) -> list[Tensor]:
    """The slots with a value at ``place``, if it is ``taken``."""
    return [_write(place.to(x.device), taken.to(x.device), x, s) for x, s in zip(values, slots)]


def _write(place: Tensor, taken: Tensor, value: Tensor, slots: Tensor) -> Tensor:
    kept = slots.index_select(0, place)
    return slots.index_put((place,), torch.where(taken.reshape(-1, *(1,) * value.dim()), value, kept))


def latest(
    end: Tensor, steps: Tensor, slots: Sequence[Tensor], init: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """The last saved step before ``end``; the table where it and those before are fixed and the slots behind empty; its
    carry.
    """
    steps = torch.where(steps < end, steps, 0)
    step, place = steps.max(0)
    values = [
        torch.where((step == 0).to(x.device), x, s.index_select(0, place.reshape(1).to(s.device)).squeeze(0))
        for x, s in zip(init, slots)
    ]
    return step, steps, torch.where(steps > 0, _FIXED, _FREE), values
