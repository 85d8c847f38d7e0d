"""Which carries a loop saves when it may keep k of them and nobody knows how long it will run.

NOTE [Minimal repetition checkpointing] Each saved carry has a level. It is dispensable if one of a later step has a
higher level. The carry of each step is offered as it arises: at level 0 it takes an empty slot, or that of a
dispensable carry; where there is none, it replaces the latest one and gets a level more than that. Going backwards, the
carries up to the one from which the body runs again are fixed, and those behind it are done with: the same problem with
fewer slots, solved by the same rule. With the initial carry, which needs no slot, no step then runs more than r + 1
times, its first run and that inside its own derivative included, as long as the loop takes ::

    T <= C(k + r, r)    steps (r >= 1),

for every T at once; knowing T in advance would not lower r. (A loop of one step runs it twice, r being 0.)

Sources: Wang, Moin and Iaccarino 2009, "Minimal repetition dynamic checkpointing algorithm for unsteady adjoint
calculation" (the rule and the bound); Stumm and Walther 2010, "New algorithms for optimal online checkpointing" (fewer
runs in total as long as r <= 2); Griewank and Walther 2000, "Revolve" (the bound where T is known).

The table of the slots are two int64 vectors, ``steps`` (0: empty) and ``levels``; it is part of a loop's carry.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...capture.subgraph import TensorMeta

__all__ = ["NUMBER", "latest", "offer", "table", "written"]

NUMBER = TensorMeta((), torch.int64, torch.device("cpu"))
"""A count of steps."""

_FIXED = 1 << 40
"""A level above all others."""


def table(k: int) -> TensorMeta:
    """One column of the table."""
    return NUMBER.with_leading(k)


def offer(step: Tensor, wanted: Tensor, steps: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The slot for the carry of ``step``, whether it is to be written, and the new table. It is not if the carry is
    not ``wanted``, or if all slots are fixed.
    """
    is_later, is_higher = steps > steps.unsqueeze(1), levels > levels.unsqueeze(1)
    dispensable = (steps == 0) | (is_later & is_higher).any(1)
    place = (steps + dispensable * _FIXED).argmax()  # the latest one, of those that are dispensable if there are any
    level = torch.where(dispensable, 0, levels + 1).index_select(0, place.reshape(1)).squeeze(0)
    taken = wanted & (level <= _FIXED)
    return place, taken, *written(place, taken, [step, level], [steps, levels])


def written(place: Tensor, taken: Tensor, values: Sequence[Tensor], slots: Sequence[Tensor]) -> list[Tensor]:
    """The slots with a value at ``place``, if it is ``taken``."""
    return [_write(place.to(x.device).reshape(1), taken.to(x.device), x, s) for x, s in zip(values, slots)]


def _write(place: Tensor, taken: Tensor, value: Tensor, slots: Tensor) -> Tensor:
    row = torch.where(taken, value, slots.index_select(0, place).squeeze(0))
    return slots.index_put((place,), row.unsqueeze(0))


def latest(
    end: Tensor, steps: Tensor, slots: Sequence[Tensor], init: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """The last saved step before ``end``; the table where it and those before are fixed and the slots behind empty; its
    carry.
    """
    steps = torch.where(steps < end, steps, 0)
    step, place = steps.amax(), steps.argmax().reshape(1)
    values = [
        torch.where((step == 0).to(x.device), x, s.index_select(0, place.to(s.device)).squeeze(0))
        for x, s in zip(init, slots)
    ]
    return step, steps, torch.where(steps > 0, _FIXED, 0), values
