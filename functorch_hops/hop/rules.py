"""The table of rules that an operator fills."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol

from torch import Tensor

from ..ir.dependence import Pruned, Through
from ..ir.meta import Mask
from ..ir.subgraph import P, Params, Subgraph
from ..lowering.loops.forms import Again, Form, NativeLoop
from ..passes.hoisting import Hoisted
from ..passes.passthrough import SimplifiedCall

__all__ = ["Maybe", "Operator", "Rules", "Tensors", "operator_of"]

Tensors = Sequence[Tensor]
Maybe = Sequence[Tensor | None]


@dataclass(frozen=True)
class Rules(Generic[P]):
    """The registration table of one operator; each rule is a function ``<operator>_<rule>`` of the parameters
    ``params`` of that operator.

    ``impl(params, operands) -> outputs``: the operation itself, on plain tensors.

    ``abstract_eval(params, operands) -> outputs``: uninitialised outputs of the right shape, dtype and device.

    ``dependent_outputs(params, sources, through, trips) -> mask``: the outputs that depend on the marked operands, see
    ``ir.dependence``; at least those that ``batch`` maps (``Through.VALUE``, ``Through.LANE``) and to which ``jvp``
    gives a tangent (``Through.TANGENT``). ``trips``: how many steps a loop takes, where that is known.

    ``batch(params, operands, mapped, size, randomness) -> (outputs, mapped outputs)``: over a batch at dimension 0 of
    the mapped operands.

    ``jvp(params, primals, tangents) -> (outputs, tangents)``: None is a tangent that is zero by structure.

    ``vjp_forward(params, active) -> params``: the call, of this or another operator, that also emits what
    ``vjp_backward`` for the active operands reads.

    ``vjp_backward(params, active, operands, residuals, cotangents) -> gradients``: one for each operand, None for none;
    a cotangent that is None is zero.

    ``prune(params, used) -> smaller parameters, kept operands and outputs``: without what only unused outputs
    need; None where nothing can be left out.

    ``passthrough(params, operands) -> smaller call``: without operands that only pass through or are there twice (equal
    ones compare equal); None where there are none.

    ``hoist(params, operands) -> smaller call``: without what its body computes from constants alone, and the graph that
    does it; None where there is nothing. ``operands`` may be of any kind, only numbers among them are looked at.

    ``products(params, operands) -> graph``: the call as a graph over its tensors, products that need not be in the loop
    taken for all steps at once; None where there are none.

    ``redraw(params) -> graph``: the call as a graph over its operands which, other than the call itself, draws the same
    random numbers when a part of it is computed again; None where what it draws can be kept.

    ``lower(params, operands) -> outputs``: the same in torch's own operators, for export and Inductor.

    ``native_loop(params) -> NativeLoop``: the loop that ``lower`` makes of it, None if it makes none.

    ``form(params, operands) -> Form``: the loop or branch as kernels are made of it (``lowering.loops``), for operands
    on fake tensors, or what it draws again; None for any other operator. Raises ``Refused`` with a reason where no
    kernel can be.
    """

    impl: Callable[[P, Tensors], Tensors]
    abstract_eval: Callable[[P, Tensors], Tensors]
    dependent_outputs: Callable[[P, Mask, Through, int | None], Mask]
    batch: Callable[[P, Tensors, Mask, int, str], tuple[Tensors, Mask]]
    jvp: Callable[[P, Tensors, Maybe], tuple[Tensors, Maybe]]
    vjp_forward: Callable[[P, Mask], Params]
    vjp_backward: Callable[[P, Mask, Tensors, Tensors, Maybe], Maybe]
    prune: Callable[[P, Mask], Pruned[P] | None]
    passthrough: Callable[[P, Sequence[Hashable]], SimplifiedCall[P] | None]
    hoist: Callable[[P, Sequence[Any]], Hoisted[P] | None]
    products: Callable[[P, Sequence[Any]], Subgraph | None]
    redraw: Callable[[P], Subgraph | None]
    lower: Callable[[P, Tensors], Tensors]
    native_loop: Callable[[P], NativeLoop | None]
    form: Callable[[P, Sequence[Any]], Form | Again | None]


class Operator(Protocol):
    """What rules and graphs know of a higher-order operator."""

    label: str
    rules: Rules[Any]

    def __call__(self, params: Params, *operands: Any) -> tuple[Tensor, ...]: ...

    def run_eagerly(self, params: Params, *operands: Any) -> tuple[Tensor, ...]:
        """On plain tensors, without dispatch."""
        ...


def operator_of(params: Params) -> Operator:
    operator: Operator = params.operator
    return operator
