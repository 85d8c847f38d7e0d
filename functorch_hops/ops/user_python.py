"""What operators share that run Python of the user's: it runs in each lane, and in no exported program."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from .. import _torch
from ..calls.trace_cache import count_callback
from ..errors import CaptureError, message
from ..ir.meta import Mask
from ..ir.sizes import is_closed
from ..ir.subgraph import Params

__all__ = ["UserPython"]


@dataclass(frozen=True, eq=False, kw_only=True)
class UserPython(Params):
    """``lanes``: the sizes of the vmaps around it, from the outermost, None where it is left open; ``mapped``: for each
    operand, over which of them it has a dimension (at front). Over lanes whose number is open one operand is at least,
    and may be there for nothing else.
    """

    lanes: tuple[int | None, ...] = ()
    mapped: tuple[Mask, ...] = ()

    @property
    def place(self) -> tuple[str, int] | None:
        """File and line of the user's call, as far as they are known."""
        return None if self.origin is None else (self.origin.file, self.origin.line)

    def under_vmap(self, operands: Sequence[Tensor], mapped: Mask, size: int) -> tuple[Self, Sequence[Tensor]]:
        """With a vmap of ``size`` lanes around all others, over the ``mapped`` operands; and its operands."""
        known: int | None = size
        masks = self.mapped
        if not is_closed((size,)):
            known = None
            if not any(mapped):
                first, *rest = operands or [torch.zeros(())]
                operands, mapped = [first.expand(size, *first.shape), *rest], (True, *(False for _ in rest))
                masks = masks or ((False,) * len(self.lanes),)
        lanes, masks = (known, *self.lanes), tuple((m, *old) for m, old in zip(mapped, masks, strict=True))
        return replace(self, lanes=lanes, mapped=masks), operands

    def lane_sizes(self, operands: Sequence[Tensor]) -> tuple[int, ...]:
        """How many lanes each vmap around it has, in a call with these operands."""
        return tuple(size if size is not None else self._lanes_of(i, operands) for i, size in enumerate(self.lanes))

    def _lanes_of(self, i: int, operands: Sequence[Tensor]) -> int:
        return next(x.shape[sum(mapped[:i])] for x, mapped in zip(operands, self.mapped) if mapped[i])

    def each_lane(self, operands: Sequence[Tensor]) -> Iterator[tuple[int, ...]]:
        """Where it runs now."""
        count_callback()
        return itertools.product(*map(range, self.lane_sizes(operands)))

    def at_lane(self, operands: Sequence[Tensor], lane: tuple[int, ...]) -> list[Tensor]:
        """The operands' values there, which share memory with them."""
        return [x.detach()[tuple(i for i, m in zip(lane, mapped) if m)] for x, mapped in zip(operands, self.mapped)]

    def refuse_export(self, what: str, name: str) -> None:
        """Raise in an export: the program can't do ``what``, which the public ``name`` asks for."""
        if _torch.is_exporting():
            raise CaptureError(
                message(
                    "export",
                    f"a program that is exported can't {what}",
                    remedy=f"leave {name} out of what is exported",
                    at=self.place,
                )
            )
