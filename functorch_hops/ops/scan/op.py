"""``scan``: one operator for every loop whose trip count is known when it starts, ``fori_loop`` and ``map`` too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

from ...hop.operator import Hop
from ...ir.meta import Mask
from ...ir.subgraph import Params, Subgraph

__all__ = ["Operands", "ScanParams", "scan_op", "split_operands"]


@dataclass(frozen=True, eq=False)
class ScanParams(Params):
    """``body: (carry..., x..., consts...) -> (carry..., y...)``.

    Operands: the length, the initial carry, the xs with time at dimension 0, and the constants. Outputs: the final
    carry, the stacked ys.
    """

    body: Subgraph
    n_carry: int
    n_xs: int
    reverse: bool

    is_native = True

    @property
    def n_outputs(self) -> int:
        return len(self.body.outputs)

    def steady(self, operands: Sequence[Any]) -> Sequence[Any]:
        return [*[None] * self.n_carry, *operands[1 + self.n_carry :]]

    def in_parts(self, change: Callable[[Subgraph], Subgraph], is_complex: Mask) -> Self:
        _, init, xs, _ = split_operands(self, is_complex)
        changed = self.with_bodies(change)
        return replace(changed, n_carry=self.n_carry + sum(init), n_xs=self.n_xs + sum(xs))

    def trip_count(self, operands: Sequence[Any]) -> int | None:
        return operands[0] if type(operands[0]) is int else None


scan_op = Hop("scan", ScanParams)


class Operands(NamedTuple):
    length: Any
    init: Sequence[Any]
    xs: Sequence[Any]
    consts: Sequence[Any]


def split_operands(params: ScanParams, operands: Sequence[Any]) -> Operands:
    """Operands (or a mask of them) by their part."""
    n, m = params.n_carry, params.n_xs
    length, *rest = operands
    return Operands(length, rest[:n], rest[n : n + m], rest[n + m :])
