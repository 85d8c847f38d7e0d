"""What a compiler has to know of the loops in a graph."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...ir.build import copy_of
from ...ir.meta import TensorMeta
from ...ir.subgraph import Params, Subgraph

__all__ = ["Branches", "Form", "NativeLoop", "Prefixes", "Refused", "Scan", "While", "no_form", "no_native_loop"]


class NativeLoop(enum.Enum):
    """A loop among torch's own operators."""

    PLAIN = "returns its final carries, and stacks what is no carry"
    STACKED_CARRIES = "stacks all its carries"


def no_native_loop(params: Params) -> None:
    """Of an operator that is lowered without a loop."""


class Refused(Exception):
    """No kernel can be made; the message completes "it has no kernel: ..."."""


@dataclass(frozen=True)
class Scan:
    """``body: (carry..., x..., consts...) -> (carry..., y...)``, once for each of ``length`` rows of the xs.

    Inputs: the initial carry, the xs, the constants. Outputs: the final carry, the stacked ys.
    """

    body: Subgraph
    n_carry: int
    n_xs: int
    reverse: bool
    length: int

    @property
    def inputs(self) -> list[TensorMeta]:
        first, metas = self.n_carry + self.n_xs, self.body.inputs
        xs = (meta.with_leading(self.length) for meta in metas[self.n_carry : first])
        return [*metas[: self.n_carry], *xs, *metas[first:]]

    @property
    def outputs(self) -> list[TensorMeta]:
        metas = self.body.outputs
        return [*metas[: self.n_carry], *(meta.with_leading(self.length) for meta in metas[self.n_carry :])]


@dataclass(frozen=True)
class While:
    """``cond: (carry..., consts...) -> bool``, ``body: (carry..., consts...) -> carry``.

    Inputs: the initial carry, the constants. Outputs: the final carry.
    """

    cond: Subgraph
    body: Subgraph
    n_carry: int

    @property
    def inputs(self) -> list[TensorMeta]:
        return list(self.body.inputs)

    @property
    def outputs(self) -> list[TensorMeta]:
        return list(self.body.outputs)


@dataclass(frozen=True)
class Prefixes:
    """``body: (a..., b..., consts...) -> c...``, which combines the elements up to one with the one after it.

    Inputs: the ``length`` elements, the constants. Outputs: what the elements up to each combine to.
    """

    body: Subgraph
    n_leaves: int
    length: int

    @property
    def inputs(self) -> list[TensorMeta]:
        k, metas = self.n_leaves, self.body.inputs
        return [*(meta.with_leading(self.length) for meta in metas[:k]), *metas[2 * k :]]

    @property
    def outputs(self) -> list[TensorMeta]:
        return [meta.with_leading(self.length) for meta in self.body.outputs]

    @property
    def scan(self) -> Scan:
        """The loop over the elements but the first, which carries and stacks what they combine to."""
        module = copy_of(self.body)
        output = module.graph.output_node()
        nodes: Any = output.args[0]
        output.args = ((*nodes, *nodes),)
        body = Subgraph.intern(module, self.body.inputs, self.body.outputs * 2)
        return Scan(body, self.n_leaves, self.n_leaves, False, self.length - 1)


@dataclass(frozen=True)
class Branches:
    """One of ``branches``, all of one signature. Inputs: the number of the branch (False is 0), then theirs."""

    branches: tuple[Subgraph, ...]
    selector: TensorMeta

    @property
    def inputs(self) -> list[TensorMeta]:
        return [self.selector, *self.branches[0].inputs]

    @property
    def outputs(self) -> list[TensorMeta]:
        return list(self.branches[0].outputs)


Form = Scan | While | Prefixes | Branches


def no_form(params: Params, operands: Sequence[Any]) -> None:
    """Of an operator that is no loop and no branch."""
