"""``associative_scan``: all prefix reductions with an associative function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

from ...hop.operator import Hop
from ...ir.meta import Mask
from ...ir.subgraph import Params, Subgraph

__all__ = ["AssociativeScanParams", "associative_scan_op"]


@dataclass(frozen=True, eq=False)
class AssociativeScanParams(Params):
    """``body: (a..., b..., consts...) -> c...`` on one element, which has ``n_leaves`` tensors.

    Operands: the elements at dimension 0, the constants. Outputs: the prefixes, like the elements, as often as
    ``copies`` says: reverse mode saves one.
    """

    body: Subgraph
    n_leaves: int
    copies: int = 1

    is_native = True

    @property
    def n_outputs(self) -> int:
        return self.copies * self.n_leaves

    def in_parts(self, change: Callable[[Subgraph], Subgraph], is_complex: Mask) -> Self:
        return replace(self.with_bodies(change), n_leaves=self.n_leaves + sum(is_complex[: self.n_leaves]))

    @property
    def bytes_returned(self) -> int:
        return self.copies * sum(meta.nbytes for meta in self.body.outputs)

    @property
    def is_half(self) -> bool:
        """Whether a leaf is of half precision. One after the other, its prefixes would be rounded once a step, and what
        is added to a large one would be lost: a tree has O(log n) roundings.
        """
        return any(meta.dtype.is_floating_point and meta.dtype.itemsize < 4 for meta in self.body.outputs)

    @property
    def run_bodies(self) -> tuple[Subgraph, ...]:
        """None: where it is no kernel, the body is vmapped, and runs on many pairs at once."""
        return ()


associative_scan_op = Hop("associative_scan", AssociativeScanParams)
