"""The autograd node of every operator.

NOTE [Residuals are outputs] The gradient rule replaces ``op(params, *operands)`` by an augmented call, whose extra
outputs are the residuals. They are real outputs of the autograd node, so a second derivative flows through
them: cotangents for them arrive at the same node, which then differentiates the augmented call instead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _torch
from ..errors import CaptureError, message
from ..ir.dependence import Through
from ..ir.meta import Mask, is_differentiable
from ..ir.origin import made_for
from ..ir.subgraph import Params
from ..passes.effects import silenced
from ..trace.capture import current_capture
from ..trace.refusals import legacy_vmap_inside
from ..trace.speculate import observed
from .anomaly import check_gradients
from .rules import Maybe, operator_of
from .written import unpacked

__all__ = [
    "PlainCall",
    "RecordedCall",
    "is_augmented",
    "is_recorded_call",
    "jvp_of",
    "over_legacy_batch",
    "pulls_for_transform",
    "unwrapped",
    "unwrapped_at",
    "vjp_forward",
    "wrapped_at",
]


class _Pulling(threading.local):
    for_transform = False


_pulling = _Pulling()


def pulls_for_transform() -> bool:
    """Whether a rule runs backward for a transform, which differentiates in such a way that its result might be
    differentiated again, asked or not.
    """
    return _pulling.for_transform


class RecordedCall(_torch.SingleLevelFunction):
    """The autograd node of every HOP, at one level of functorch or (``interpreter`` None) of plain autograd.

    ``active``: the operands with gradients. ``has_tangent``: those with tangents of plain forward mode. ``plain``: how
    the augmented call runs if nothing but autograd is active.
    """

    @staticmethod
    def forward(
        params: Params,
        augmented: Params,
        active: Mask,
        has_tangent: Mask,
        interpreter: Any,
        plain: PlainCall | None,
        *operands: Any,
    ) -> Any:
        if plain is not None:
            return _torch.writable(plain.run(operands))
        hop = operator_of(augmented)
        below = _torch.differentiable() if interpreter is None else _torch.lowered(interpreter)
        with below:
            outs = hop(augmented, *(unwrapped_at(interpreter, x) for x in operands))
        return _torch.writable(outs) if interpreter is None else tuple(wrapped_at(interpreter, o) for o in outs)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.params, ctx.augmented, ctx.active, has_tangent, interpreter, ctx.plain, *operands = inputs
        ctx.for_transform, ctx.written = interpreter is not None, {}
        ctx.set_materialize_grads(False)
        ctx.trips = ctx.params.trip_count(operands)
        ctx.differentiable = _differentiable(ctx.params, ctx.augmented, ctx.active, has_tangent, ctx.trips, output)
        if False in ctx.differentiable:
            ctx.mark_non_differentiable(*[o for o, d in zip(output, ctx.differentiable) if not d])
        ctx.numbers = {i: x for i, x in enumerate(operands) if not isinstance(x, Tensor)}
        tensors = [None if i in ctx.numbers else x for i, x in enumerate(operands)] if ctx.numbers else operands
        ctx.save_for_backward(*tensors, *output[ctx.params.n_outputs :])
        ctx.before = _torch.values_before_writes(tensors)
        if ctx.plain is None:
            ctx.save_for_forward(*tensors)

    @staticmethod
    def _compiled_autograd_key(ctx: Any) -> Any:
        """Asked by torch's compiled autograd, whose Dynamo can't trace what this node does."""
        problem = "compiled autograd can't trace the backward pass of a call that was captured by itself"
        remedy = "call it inside of what torch.compile compiles, whose graph has a backward pass that was compiled"
        raise CaptureError(message(ctx.params.public_name, problem, remedy=remedy))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """Plain forward mode over plain reverse mode: outputs and residuals have tangents, hence gradients do."""
        saved = ctx.saved_tensors[: len(ctx.active)]
        primals = [ctx.numbers[i] if t is None else forward_ad.unpack_dual(t).primal for i, t in enumerate(saved)]
        outs, out_tangents = jvp_of(ctx.augmented, primals, tangents[-len(primals) :])
        # Torch (2.13) takes None for the tangent of an output without any derivative only.
        given = zip(outs, out_tangents, ctx.differentiable)
        return tuple(torch.zeros_like(o) if t is None and d else t for o, t, d in given)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        # A pull function runs after its transform has ended: what it saved is then wrapped at a level that is gone.
        saved = [None if t is None else _torch.unwrap_if_dead(t) for t in unpacked(ctx, cotangents)]
        n_operands, n_outputs = len(ctx.active), ctx.params.n_outputs
        operands: list[Any] = [ctx.numbers.get(i, t) for i, t in enumerate(saved[:n_operands])]
        residuals: list[Any] = saved[n_operands:]

        def pull(*cotangents: Tensor | None) -> Maybe:
            if any(c is not None for c in cotangents[n_outputs:]):
                _torch.refuse_written(ctx.written)
                return _second_derivative(ctx, operands, cotangents)
            rules, outer = operator_of(ctx.params).rules, _pulling.for_transform
            _pulling.for_transform = ctx.for_transform
            try:
                with made_for(ctx.params.origin, "backward"):
                    return rules.vjp_backward(ctx.params, ctx.active, operands, residuals, cotangents[:n_outputs])
            finally:
                _pulling.for_transform = outer

        grads = None if ctx.plain is None else ctx.plain.pull(operands, residuals, cotangents)
        if grads is None:
            with observed(), _torch.dual_level_known():
                if _torch.is_legacy_batched(cotangents):
                    grads = over_legacy_batch(ctx.params.public_name, pull, cotangents)
                else:
                    grads = pull(*cotangents)
        reached = _reached_operands(ctx, [c is not None for c in cotangents])
        grads = [g if r else None for g, r in zip(grads, reached)]
        if torch.is_anomaly_enabled() and current_capture() is None:
            check_gradients(ctx.params, grads, lambda: pull(*cotangents))
        return None, None, None, None, None, None, *grads


def is_recorded_call(node: Any) -> bool:
    """Whether a node of autograd is that of an operator."""
    return isinstance(getattr(node, "augmented", None), Params)


class PlainCall:
    """An augmented call on plain operands, nothing but autograd being active."""

    def __init__(self, augmented: Params) -> None:
        self.augmented = augmented

    def run(self, operands: Sequence[Any]) -> tuple[Tensor, ...]:
        return operator_of(self.augmented).run_eagerly(self.augmented, *operands)

    def pull(self, operands: Sequence[Any], residuals: Sequence[Tensor], cotangents: Maybe) -> Maybe | None:
        """The gradients, if that can be told without the rules; cotangents are those of the augmented call."""
        return None


def vjp_forward(params: Params, active: Mask) -> Params:
    """The augmented call, see NOTE [Residuals are outputs]; its origin says what it saves."""

    def make() -> Params:
        with made_for(params.origin, "forward"):
            augmented = operator_of(params).rules.vjp_forward(params, active)
        if augmented is params or augmented.origin is None:
            return augmented
        saved = max(augmented.bytes_returned - params.bytes_returned, 0)
        with made_for(replace(augmented.origin, saved=saved)):
            return replace(augmented)

    return params.derive(("vjp forward", active), make)


def is_augmented(params: Params, active: Mask) -> bool:
    """Whether the augmented call was made before."""
    return params.has_derived(("vjp forward", active))


def jvp_of(params: Params, primals: Sequence[Any], tangents: Sequence[Tensor | None]) -> tuple[Sequence[Tensor], Maybe]:
    """The rule for forward mode, with tangents that torch may have batched."""
    hop = operator_of(params)

    def push(*tangents: Tensor | None) -> tuple[Maybe, Maybe]:
        with made_for(params.origin, "tangent"):
            return hop.rules.jvp(params, primals, tangents)

    if not _torch.is_legacy_batched(tangents):
        return push(*tangents)  # type: ignore[return-value]

    both = over_legacy_batch(params.public_name, lambda *ts: [x for part in push(*ts) for x in part], tangents)
    n = params.n_outputs
    return both[:n], both[n:]  # type: ignore[return-value]


def over_legacy_batch(operation: str, function: Callable[..., Maybe], values: Sequence[Any]) -> Maybe:
    """``function(*values)`` over the lanes of a vmap of torch.autograd's own."""
    capture = current_capture()
    if capture is not None:
        raise legacy_vmap_inside(capture.context)
    return _torch.over_legacy_batch(operation, function, values)


def _differentiable(
    params: Params, augmented: Params, active: Mask, has_tangent: Mask, trips: int | None, output: Sequence[Tensor]
) -> Mask:
    """The outputs of the augmented call that have derivatives. The residuals among them have those that they have."""

    def differentiable() -> Mask:
        own, emitted = (_have_derivatives(p, active, has_tangent, trips) for p in (params, augmented))
        have = (*own, *emitted[len(own) :])
        return tuple(h and is_differentiable(o.dtype) for o, h in zip(output, have))

    return params.derive(("differentiable", active, has_tangent, trips), differentiable)


def _have_derivatives(params: Params, active: Mask, has_tangent: Mask, trips: int | None) -> Mask:
    """The outputs that have gradients, or tangents: torch knows no output with the one and without the other. That no
    gradient leads to another is for autograd to say, as it does in plain eager: a backward rule would give zeros.
    """
    reached = operator_of(params).rules.dependent_outputs

    def derivatives() -> Mask:
        gradients = reached(params, active, Through.GRADIENT, trips)
        tangents = reached(params, has_tangent, Through.TANGENT, trips)
        return tuple(g or t for g, t in zip(gradients, tangents))

    return params.derive(("have derivatives", active, has_tangent, trips), derivatives)


def _reached_operands(ctx: Any, given: list[bool]) -> Mask:
    """The active operands to which a gradient leads from the outputs with cotangents. The rules give zeros for others,
    which autograd knows as None: an optimizer leaves a parameter alone that has no gradient, and not one of zero.
    """
    n, active, outputs = ctx.params.n_outputs, ctx.active, tuple(given)
    params, outputs = (ctx.augmented, outputs) if True in outputs[n:] else (ctx.params, outputs[:n])
    dependent = operator_of(params).rules.dependent_outputs

    def is_reached(place: int) -> bool:
        alone = tuple(i == place for i in range(len(active)))
        return any(g and d for g, d in zip(outputs, dependent(params, alone, Through.COTANGENT, ctx.trips)))

    def reached() -> Mask:
        return tuple(a and is_reached(i) for i, a in enumerate(active))

    return params.derive(("reached operands", active, outputs, ctx.trips), reached)


def _second_derivative(ctx: Any, operands: Sequence[Any], cotangents: Maybe) -> Maybe:
    """Residuals have cotangents: differentiate the augmented call (see NOTE [Residuals are outputs])."""
    params = silenced(ctx.augmented)  # see NOTE [Effects happen once]
    again = vjp_forward(params, ctx.active)
    outs = operator_of(again)(again, *operands)
    with made_for(params.origin, "backward"):
        return operator_of(params).rules.vjp_backward(
            params, ctx.active, operands, outs[params.n_outputs :], cotangents
        )


def unwrapped(x: Any, level: int) -> Any:
    return _torch.unwrap_for_grad(x, level) if isinstance(x, Tensor) else x


def unwrapped_at(interpreter: Any, x: Any) -> Any:
    return x if interpreter is None else unwrapped(x, interpreter.level())


def wrapped_at(interpreter: Any, x: Tensor) -> Tensor:
    return x if interpreter is None else _torch.wrap_for_grad(x, interpreter.level())
