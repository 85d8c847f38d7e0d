"""Properties of a carry that spread through a loop until they no longer change."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...ir.meta import Mask

__all__ = ["carry_fixpoint"]


def carry_fixpoint(initial: Sequence[bool], step: Callable[[Mask], Sequence[bool]]) -> Mask:
    """The least mask that holds ``initial`` and that ``step`` (carry in -> carry out) does not enlarge."""
    mask = tuple(initial)
    while True:
        grown = tuple(a or b for a, b in zip(mask, step(mask)))
        if grown == mask:
            return mask
        mask = grown
