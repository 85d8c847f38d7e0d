"""The table of rules that an operator fills, and where a graph finds the operator of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..ir.dependence import Pruned, Through
from ..ir.meta import Mask
from ..ir.subgraph import StaticParameters, Subgraph
from ..passes.hoisting import Hoisted
from ..passes.passthrough import SimplifiedCall

__all__ = ["Maybe", "Operator", "Rules", "Tensors", "operator_of", "operators"]

Tensors = Sequence[Tensor]
Maybe = Sequence[Tensor | None]


@dataclass(frozen=True)
class Rules:
    """The registration table of one operator; each rule is a function ``<operator>_<rule>``.

    ``impl(static, operands) -> outputs``: the operation itself, on plain tensors.

    ``abstract_eval(static, operands) -> outputs``: uninitialised outputs of the right shape, dtype and device.

    ``dependent_outputs(static, sources, through) -> mask``: the outputs that depend on the marked operands, see
    ``ir.dependence``; at least those that ``batch`` maps (``Through.VALUE``, ``Through.LANE``) and to which ``jvp``
    gives a tangent (``Through.TANGENT``).

    ``batch(static, operands, mapped, size, randomness) -> (outputs, mapped outputs)``: over a batch at dimension 0 of
    the mapped operands.

    ``jvp(static, primals, tangents) -> (outputs, tangents)``: None is a tangent that is zero by structure.

    ``vjp_forward(static, active) -> static``: the call, of this or another operator, that also emits what
    ``vjp_backward`` for the active operands reads.

    ``vjp_backward(static, active, operands, residuals, cotangents) -> gradients``: one for each operand, None for none;
    a cotangent that is None is zero.

    ``prune(static, used) -> smaller static parameters, kept operands and outputs``: without what only unused outputs
    need; None where nothing can be left out.

    ``passthrough(static, operands) -> smaller call``: without operands that only pass through or are there twice (equal
    ones compare equal); None where there are none.

    ``hoist(static, operands) -> smaller call``: without what its body computes from constants alone, and the graph that
    does it; None where there is nothing. ``operands`` may be of any kind, only numbers among them are looked at.

    ``products(static, operands) -> graph``: the call as a graph over its tensors, products that need not be in the loop
    taken for all steps at once; None where there are none.

    ``lower(static, operands) -> outputs``: the same in torch's own operators, for export and Inductor.
    """

    impl: Callable[[StaticParameters, Tensors], Tensors]
    abstract_eval: Callable[[StaticParameters, Tensors], Tensors]
    dependent_outputs: Callable[[StaticParameters, Mask, Through], Mask]
    batch: Callable[[StaticParameters, Tensors, Mask, int, str], tuple[Tensors, Mask]]
    jvp: Callable[[StaticParameters, Tensors, Maybe], tuple[Tensors, Maybe]]
    vjp_forward: Callable[[StaticParameters, Mask], StaticParameters]
    vjp_backward: Callable[[StaticParameters, Mask, Tensors, Tensors, Maybe], Maybe]
    prune: Callable[[StaticParameters, Mask], Pruned | None]
    passthrough: Callable[[StaticParameters, Sequence[Hashable]], SimplifiedCall | None]
    hoist: Callable[[StaticParameters, Sequence[Any]], Hoisted | None]
    products: Callable[[StaticParameters, Sequence[Any]], Subgraph | None]
    lower: Callable[[StaticParameters, Tensors], Tensors]


class Operator(Protocol):
    """What rules and graphs know of a higher-order operator."""

    label: str
    rules: Rules

    def __call__(self, static: StaticParameters, *operands: Any) -> tuple[Tensor, ...]: ...

    def run_eagerly(self, static: StaticParameters, *operands: Any) -> tuple[Tensor, ...]:
        """On plain tensors, without dispatch."""
        ...


operators: dict[str, Operator] = {}


def operator_of(static: StaticParameters) -> Operator:
    return operators[static.hop]
