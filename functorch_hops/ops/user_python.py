"""What operators share that run Python of the user's: it runs in each lane, and in no exported program."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor

from .. import _torch
from ..calls.trace_cache import note_callback
from ..errors import CaptureError, message
from ..ir.meta import Mask
from ..ir.subgraph import Params

__all__ = ["UserPython"]


@dataclass(frozen=True, eq=False, kw_only=True)
class UserPython(Params):
    """``lanes``: the sizes of the vmaps around it, from the outermost; ``mapped``: for each operand, over which of them
    it has a dimension (at front).
    """

    lanes: tuple[Any, ...] = ()
    mapped: tuple[Mask, ...] = ()

    @property
    def place(self) -> tuple[str, int] | None:
        """File and line of the user's call, as far as they are known."""
        return None if self.origin is None else (self.origin.file, self.origin.line)

    def under_vmap(self, mapped: Mask, size: int) -> Self:
        """With a vmap of ``size`` lanes around all others, over the ``mapped`` operands."""
        return replace(self, lanes=(size, *self.lanes), mapped=tuple((m, *old) for m, old in zip(mapped, self.mapped)))

    def each_lane(self) -> Iterator[tuple[int, ...]]:
        """Where it runs now."""
        note_callback()
        return itertools.product(*map(range, self.lanes))

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
