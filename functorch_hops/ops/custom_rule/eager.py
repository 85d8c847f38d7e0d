"""A call of a custom rule as plain Python, under plain autograd.

The first derivative costs one run of the rule, whose residuals are stored. Where a second one is prepared for
(``create_graph``), the rule runs again as ordinary code on the inputs, with the same random numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import _torch
from ...errors import user_place
from ...ir.generator import RandomState
from ..missing_derivative.op import closed_over, missing
from ..mode import is_stepwise
from .deciding import apart, is_transposed, transposed_call
from .flat_rule import FlatRule, differentiable_inputs

__all__ = ["call_in_python", "rule_of"]

Tensors = Sequence[Tensor]


def call_in_python(rule: FlatRule, inputs: Tensors) -> Tensors:
    if is_transposed(rule.identity, inputs):
        return rule.primal(*inputs)
    with apart():
        return _outputs(rule, inputs)


def _outputs(rule: FlatRule, inputs: Tensors) -> Tensors:
    differentiable = differentiable_inputs(inputs)
    needed = tuple(m and x.requires_grad for m, x in zip(differentiable, inputs))
    if not (torch.is_grad_enabled() and any(needed)):
        return _guarded(rule, rule.primal(*inputs))
    call = _PythonCall(rule, differentiable, needed)
    outs, residuals = call.run([x.detach() for x in inputs])
    guards = [o for o in _guarded(rule, outs) if o.requires_grad]
    return _Attached.apply(call, [o.detach() for o in outs], residuals, *inputs, *guards)


class _PythonCall:
    """One run of a rule; ``pull`` takes residuals and cotangents to gradients."""

    def __init__(self, rule: FlatRule, differentiable: Sequence[bool], needed: Sequence[bool]) -> None:
        self.rule, self.differentiable_inputs, self.needed = rule, differentiable, needed
        self.pull: Callable[[Tensors, Tensors], Sequence[Tensor | None]]
        self.place = user_place() if is_stepwise() else None
        """Of the call, which is looked for only where somebody asks for it."""

    def run(self, inputs: Tensors) -> tuple[Tensors, Tensors]:
        rule = self.rule
        self.random = RandomState(inputs)
        if rule.has_backward:
            outs, residuals = rule.forward(*inputs)
            self.pull = rule.backward
        elif rule.has_tangent and rule.transposes_tangent:
            outs, residuals = self.linear(inputs), []
        else:
            outs, residuals = rule.primal(*inputs), []
            self.pull = self.missing
        self.differentiable = [rule.is_differentiable(i, o.dtype) for i, o in enumerate(outs)]
        self.random.note_use()
        return outs, residuals

    def linear(self, inputs: Tensors) -> Tensors:
        """The rule's tangents are linear in the given ones: their gradient at zero is that everywhere, unless they
        decide something (NOTE [Only what is linear is transposed]).
        """
        with torch.enable_grad():
            zeros = [
                torch.zeros_like(x, requires_grad=n)
                for x, m, n in zip(inputs, self.differentiable_inputs, self.needed)
                if m
            ]
            with transposed_call(self.rule.identity, zeros) as run:
                outs, tangents = self.rule.tangent(inputs, zeros)

        def pull(_: Tensors, cotangents: Tensors) -> Sequence[Tensor | None]:
            if run.decides or run.decides_in_graphs(tangents):
                raise missing(self.rule.name, *self.rule.untransposable).exception()
            pairs = [(t, ct) for t, ct in zip(tangents, cotangents) if t.requires_grad]
            sources = [z for z in zeros if z.requires_grad]
            grads = iter(_products(pairs, sources))
            return [next(grads) if z.requires_grad else None for z in zeros]

        self.pull = pull
        return outs

    def missing(self, _: Tensors, __: Tensors) -> Sequence[Tensor | None]:
        raise missing(self.rule.name, "it has no reverse-mode derivative", self.rule.reverse_remedy).exception()

    def gradients(self, inputs: Tensors, residuals: Tensors, cotangents: Tensors) -> list[Tensor | None]:
        cts = [ct for ct, d in zip(cotangents, self.differentiable) if d]
        if not torch.is_grad_enabled():
            grads = self.pull(residuals, cts)
        else:
            again = _PythonCall(self.rule, self.differentiable_inputs, self.needed)
            with self.random.replayed():
                _, residuals = again.run(inputs)
            grads = again.pull(residuals, cts)
        given = iter(grads)
        return [next(given) if m else None for m in self.differentiable_inputs]


def _products(pairs: Sequence[tuple[Tensor, Tensor]], sources: Tensors) -> Sequence[Tensor | None]:
    if not pairs:
        return [None] * len(sources)
    tangents, cotangents = zip(*pairs)
    higher = torch.is_grad_enabled()
    return torch.autograd.grad(tangents, sources, cotangents, retain_graph=True, create_graph=higher, allow_unused=True)


class _Attached(torch.autograd.Function):
    """The outputs of a call, with its derivative. ``guards`` are outputs that depend on closed-over tensors; asking for
    those gradients raises.
    """

    @staticmethod
    def forward(ctx: Any, call: _PythonCall, outs: Tensors, residuals: Tensors, *tensors: Tensor) -> Tensors:
        inputs, guards = tensors[: len(call.differentiable_inputs)], tensors[len(call.differentiable_inputs) :]
        ctx.call, ctx.written = call, {}
        ctx.guards = [torch.zeros_like(g) for g in guards]
        ctx.save_for_backward(*inputs, *residuals)
        ctx.mark_non_differentiable(*(o for o, d in zip(outs, call.differentiable) if not d))
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        call: _PythonCall = ctx.call
        n = len(call.differentiable_inputs)
        # Read once: a checkpoint around the call hands each out once.
        saved: list[Any] = _torch.saved_despite_writes(ctx, n, ctx.written)
        inputs, residuals = saved[:n], saved[n:]
        if torch.is_grad_enabled():  # then the rule runs again
            _torch.refuse_written(ctx.written)
        if _torch.is_legacy_batched(cotangents):
            pull = functools.partial(call.gradients, inputs, residuals)
            grads = _torch.over_legacy_batch(call.rule.name, lambda *cts: pull(cts), cotangents)
        else:
            grads = tuple(call.gradients(inputs, residuals, cotangents))
        return (None, None, None, *grads, *ctx.guards)


def _guarded(rule: FlatRule, outs: Tensors) -> Tensors:
    """The outputs; where one depends on a closed-over value with a gradient, asking for that gradient is an error."""
    if rule.constant_closure:
        return [o.detach() if o.requires_grad else o for o in outs]
    return [_Guard.apply(o, rule.name) if o.requires_grad else o for o in outs]


class _Guard(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
        ctx.name = name
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, ct: Tensor) -> Any:
        raise closed_over(ctx.name, "tensor that requires gradients").exception()


def rule_of(node: Any) -> tuple[str, tuple[str, int, str] | None] | None:
    """Of a node of autograd that runs a rule, the name of that and the place of the call."""
    call = getattr(node, "call", None)
    return (call.rule.name, call.place) if isinstance(call, _PythonCall) else None
