"""Properties of a carry that spread through a loop until they no longer change."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...ir.meta import Mask

__all__ = ["carry_after", "carry_fixpoint"]


def carry_fixpoint(initial: Sequence[bool], step: Callable[[Mask], Sequence[bool]]) -> Mask:
    """The least mask that holds ``initial`` and that ``step`` (carry in -> carry out) does not enlarge."""
    mask = tuple(initial)
    while True:
        grown = tuple(a or b for a, b in zip(mask, step(mask)))
        if grown == mask:
            return mask
        mask = grown


def carry_after(initial: Sequence[bool], step: Callable[[Mask], Sequence[bool]], trips: int) -> tuple[Mask, Mask]:
    """The carry's mask after so many steps, and what any of them finds marked."""
    mask, places = tuple(initial), dict[Mask, int]()
    while len(places) < trips and mask not in places:
        places[mask] = len(places)
        mask = tuple(step(mask))
    if len(places) < trips:  # from here on they repeat
        first = places[mask]
        mask = list(places)[first + (trips - first) % (len(places) - first)]
    return mask, tuple(map(any, zip(*places)))
