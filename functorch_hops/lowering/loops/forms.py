"""What a compiler has to know of the loops in a graph."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...ir.build import copy_of
from ...ir.generator import STATE
from ...ir.meta import TensorMeta
from ...ir.subgraph import Params, Subgraph

__all__ = [
    "TAPE_META",
    "Again",
    "Branches",
    "Form",
    "NativeLoop",
    "Prefixes",
    "Refused",
    "Scan",
    "Shift",
    "While",
    "is_whole",
    "no_form",
    "no_native_loop",
]


class NativeLoop(enum.Enum):
    """A loop among torch's own operators."""

    PLAIN = "returns its final carries, and stacks what is no carry"
    STACKED_CARRIES = "stacks all its carries"


def no_native_loop(params: Params) -> None:
    """Of an operator that is lowered without a loop."""


class Refused(Exception):
    """No kernel can be made; the message completes "it has no kernel: ..."."""


class Shift(NamedTuple):
    """Step t reads row ``t + by`` of its x, and input ``head`` where there is no such row."""

    head: int
    by: int


@dataclass(frozen=True)
class Scan:
    """``body: (carry..., x..., consts...) -> (carry..., y...)``, once for each of ``length`` rows of the xs.

    Inputs: the initial carry, the xs, the constants. Outputs: the final carry, the stacked ys. See NOTE [One stack]:
    ``leads`` holds for each y the carry whose initial value is one row more of its stack, before that of the first step
    taken; ``shifts`` for each x how far apart it is read. Empty ones hold None for all. ``sums``: the outputs that are
    sums of ys over the steps, no stacks: NOTE [Sums of stacks].
    """

    body: Subgraph
    n_carry: int
    n_xs: int
    reverse: bool
    length: Any
    leads: tuple[int | None, ...] = ()
    shifts: tuple[Shift | None, ...] = ()
    sums: frozenset[int] = frozenset()
    label: str = "scan"

    def lead(self, output: int) -> int | None:
        return self.leads[output - self.n_carry] if self.leads and output >= self.n_carry else None

    @property
    def inputs(self) -> list[TensorMeta]:
        first, metas = self.n_carry + self.n_xs, self.body.inputs
        xs = (meta.with_leading(self.length) for meta in metas[self.n_carry : first])
        return [*metas[: self.n_carry], *xs, *metas[first:]]

    @property
    def outputs(self) -> list[TensorMeta]:
        n, metas = self.n_carry, self.body.outputs
        rows = [None if i in self.sums else self.length + int(self.lead(i) is not None) for i in range(len(metas))]
        stacks = zip(metas[n:], rows[n:])
        return [*metas[:n], *(meta if size is None else meta.with_leading(size) for meta, size in stacks)]


@dataclass(frozen=True)
class While:
    """``cond: (carry..., consts...) -> bool``, ``body: (carry..., consts...) -> (carry..., stacked...)``.

    Inputs: the initial carry, the constants. Outputs: the final carry; then, if there are ``flags``, the stacks, with
    flags of the steps that happened at these places.
    """

    cond: Subgraph
    body: Subgraph
    n_carry: int
    flags: tuple[int, ...] = ()
    label: str = "while_loop"

    @property
    def inputs(self) -> list[TensorMeta]:
        return list(self.body.inputs)

    @property
    def outputs(self) -> list[TensorMeta]:
        return list(self.body.outputs[: self.n_carry])


@dataclass(frozen=True)
class Prefixes:
    """``body: (a..., b..., consts...) -> c...``, which combines the elements up to one with the one after it.

    Inputs: the ``length`` elements, the constants. Outputs: what the elements up to each combine to.
    """

    body: Subgraph
    n_leaves: int
    length: Any
    label: str = "associative_scan"

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


@dataclass(frozen=True)
class Again:
    """``body`` as a function of the state of the generator. Inputs: the state, then its. Outputs: the state after it,
    then its.
    """

    body: Subgraph

    @property
    def inputs(self) -> list[TensorMeta]:
        return [STATE, *self.body.inputs]

    @property
    def outputs(self) -> list[TensorMeta]:
        return [STATE, *self.body.outputs]


Form = Scan | While | Prefixes | Branches


TAPE_META = TensorMeta((2,), torch.int64, torch.device("cpu"))
"""What a graph knows of a tape, where it lies, and its bytes: see NOTE [Tapes]."""


def is_whole(tape: Tensor) -> bool:
    """Whether a tape is itself, and no copy: neither of its two numbers nor of its whole storage."""
    return tape.untyped_storage().nbytes() > tape.nbytes and tape.tolist()[0] == tape.data_ptr()


def no_form(params: Params, operands: Sequence[Any]) -> None:
    """Of an operator that is no loop and no branch."""
