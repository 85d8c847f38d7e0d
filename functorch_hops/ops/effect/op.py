"""``effect``: one operator for all that a user does in a graph besides computing (``fh.debug``).

NOTE [Effects and lanes] An effect has no outputs. It happens once for each lane of the vmaps around it, whether its
operands differ between lanes or not; so vmap reaches it in every loop and branch (``Params.holds_effects``). In a lane
that does not take a branch, or has finished a loop, it does not happen: the batched branch begins with an effect of
ours, which notes the lanes that take it under the number of a ``scope``, and all effects in the branch ask for it.
Vmaps further out add dimensions to both at the front: the mask of a scope is over the first lanes of an effect in it.

NOTE [Effects and steps] In the same way a captured loop is preceded by an effect that sets its count of steps to 0, and
each of its steps ends with one that adds 1. An effect in the loop names it. The steps of a loop that runs as Python are
read off the stack.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from ...hop.operator import Hop
from ...ir.meta import Mask
from ...ir.subgraph import Subgraph
from ...lowering.loops.happening import When
from ..user_python import UserPython

__all__ = ["Action", "EffectParams", "Loop", "effect_op"]


class Loop(NamedTuple):
    """A captured loop, for its count of steps: two that are at work at once differ in where they are, or in depth."""

    operation: str
    file: str
    line: int
    depth: int

    @property
    def number(self) -> int:
        return _loops.setdefault(self, next(_numbers))


_loops: dict[Loop, int] = {}
_numbers = itertools.count(1)


class Action:
    """What happens. Equal actions are one in captured graphs."""

    happens_in_each_lane: ClassVar[bool] = True
    asks_for_lanes: ClassVar[bool] = True
    """Whether vmaps around it matter to it at all."""
    when: ClassVar[When] = When.NOW

    @property
    def about(self) -> int:
        """What it is a note about, if it is one that is told later."""
        return 0

    def __call__(self, params: EffectParams, values: Sequence[Tensor], lane: tuple[int, ...]) -> None:
        """In one lane, given the values of the operands there; if not ``happens_in_each_lane``, with all lanes."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class EffectParams(UserPython):
    """What happens, and where. Operands: the values that it needs. No outputs.

    ``scopes``, ``loops``: those that it is in, from the outermost. ``complex_values``: in a graph in real parts, which
    values are complex: each of these has two operands there.
    """

    is_effect: ClassVar[bool] = True

    action: Action
    scopes: tuple[int, ...] = ()
    loops: tuple[Loop, ...] = ()
    complex_values: Mask = ()

    def in_parts(self, change: Callable[[Subgraph], Subgraph], is_complex: Mask) -> Self:
        return replace(self, complex_values=is_complex)

    def values(self, operands: Sequence[Tensor]) -> Sequence[Tensor]:
        """The values that it needs, the complex ones put together from their parts."""
        if not self.complex_values:
            return operands
        rest = iter(operands)
        return [torch.complex(next(rest), next(rest)) if pair else next(rest) for pair in self.complex_values]

    @property
    def n_outputs(self) -> int:
        return 0

    @property
    def has_effects(self) -> bool:
        return True


effect_op = Hop("effect", EffectParams)
