"""Gradients of a compiled function that differentiates already: nothing is prepared for them.

NOTE [Gradients of gradients are late] What ``jit(value_and_grad(loss))`` returns for parameters requires gradients, as
in plain eager, and hardly anybody asks for them. A forward graph that saves what their backward pass reads would be
derived and compiled in vain, take longer, and keep what it saved as long as the results live. So where a function
differentiates by an operand that requires gradients, plain autograd remembers the operands alone. A backward pass that
comes nevertheless runs the graph once more, the one that saves; since this one is there, later calls run it at once.
An operand that was changed in place meanwhile is an error then, of autograd, if the function reads its value.

So it is where a transform differentiates a compiled function (``value_and_grad(jit(loss))``): of its forward and its
backward graph, for parameters that require gradients; and of the backward graph for the transform itself, which lets
autograd record how gradients are computed, asked or not. Transforms around it do differentiate: for them all is saved
at once. And so it is where the function calls ``torch.autograd.grad``, unless that is told to create or retain a graph.

Elsewhere a backward pass is expected: of ``jit(loss)``, also if the loss differentiates by something else; and of a
function that returns less than it differentiates by, such as the loss of an adapted model, or the norm of a gradient.

A graph that should not run twice (``may_run_again``) saves in any case; and so does one of open sizes, since what is
derived of it may assume what does not hold for a call that was made before. Random numbers are among the reasons: the
graph that saves would have to draw the same ones from the state of then, but it is not there yet when this one runs,
and under Inductor a number depends on the place of its operator in the graph that is compiled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...hop.autograd import vjp_forward
from ...hop.operator import is_plain_call
from ...hop.rules import operator_of
from ...ir.active import state
from ...ir.meta import Mask
from .op import ClosedCallParams, DeferredCallParams

__all__ = ["deferred_call_vjp_backward", "deferred_call_vjp_forward"]


def deferred_call_vjp_forward(params: ClosedCallParams, active: Mask) -> ClosedCallParams:
    assert isinstance(params, DeferredCallParams)
    return params.call()


def deferred_call_vjp_backward(
    params: ClosedCallParams,
    active: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    assert isinstance(params, DeferredCallParams)
    call = params.call()
    vjp_forward(call.saving(), active)  # from now on: see `ClosedCallParams.recorded`
    given = [*operands, *(ct for ct in cotangents if ct is not None)]
    is_of_first_order = not torch.is_grad_enabled() and not state.stops_at_nan and is_plain_call(given)
    saving = call.saving() if is_of_first_order else call  # kernels of tapes have no derivative
    augmented = vjp_forward(saving, active)
    again = operator_of(augmented)(augmented, *operands)[params.n_outputs :]
    return operator_of(saving).rules.vjp_backward(saving, active, operands, again, cotangents)
