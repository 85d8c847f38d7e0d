"""``while_loop``: a loop whose trip count only a run knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

from ...hop.operator import Hop
from ...ir.meta import Mask
from ...ir.subgraph import Params, Subgraph

__all__ = ["T", "WhileLoopParams", "merge_flags", "split_stacks", "while_loop_op"]

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class WhileLoopParams(Params):
    """``cond: (carry..., consts...) -> bool``, ``body: (carry..., consts...) -> (carry..., stacked...)``;
    ``checkpoints``: how many carries reverse mode saves, None for what it reads of each step.

    Operands: the initial carry, the constants. If ``flags`` is empty, the outputs are the final carry. Else they are
    followed by one stack per further output of the body, and by the bool vector ``valid`` (which iterations happened)
    at each index in ``flags``. Each application of the gradient rule appends stacks and one more index.
    """

    cond: Subgraph
    body: Subgraph
    n_carry: int
    flags: tuple[int, ...] = ()
    checkpoints: int | None = None

    is_native = trains_otherwise = True

    @property
    def lost_when_exported(self) -> str | None:
        return "torch has no second derivative of a while loop" if self.flags else None

    @property
    def n_outputs(self) -> int:
        return len(self.body.outputs) + len(self.flags)

    def steady(self, operands: Sequence[Any]) -> Sequence[Any]:
        return [*[None] * self.n_carry, *operands[self.n_carry :]]

    def in_parts(self, change: Callable[[Subgraph], Subgraph], is_complex: Mask) -> Self:
        n = self.n_carry
        stacks = merge_flags(self.flags, False, [meta.dtype.is_complex for meta in self.body.outputs[n:]])
        flags = tuple(place + sum(stacks[:place]) for place in self.flags)
        return replace(self.with_bodies(change), n_carry=n + sum(is_complex[:n]), flags=flags)


while_loop_op = Hop("while_loop", WhileLoopParams, body_names=("cond", "body"))


def merge_flags(flags: tuple[int, ...], valid: T, ys: Sequence[T]) -> list[T]:
    """The stacks of a loop: ``ys`` with ``valid`` at the places in ``flags``."""
    rest = iter(ys)
    return [valid if i in flags else next(rest) for i in range(len(ys) + len(flags))]


def split_stacks(flags: tuple[int, ...], stacks: Sequence[T]) -> list[T]:
    """The stacks of a loop without its flags."""
    return [s for i, s in enumerate(stacks) if i not in flags]
