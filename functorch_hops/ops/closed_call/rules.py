"""All rules of the closed call: a transform of a compiled function is a compiled function of the transformed graph."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import Tensor

from ...derive.batch import batched
from ...derive.partition import backward_operands, partition
from ...derive.tangent import with_tangents
from ...ir.dependence import Pruned, Through, dependent_outputs, needed_inputs
from ...ir.meta import Mask
from ...ir.subgraph import StaticParameters, Subgraph
from ...lowering.backends import compiled
from ...passes.passthrough import SimplifiedCall
from ...passes.rewiring import restricted, simplify_branches
from .op import closed_call_op, closed_call_static

__all__ = [
    "closed_call_abstract_eval",
    "closed_call_batch",
    "closed_call_dependent_outputs",
    "closed_call_impl",
    "closed_call_jvp",
    "closed_call_lower",
    "closed_call_passthrough",
    "closed_call_prune",
    "closed_call_vjp_backward",
    "closed_call_vjp_forward",
]


def _call(body: Subgraph, static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return closed_call_op(closed_call_static(body, static["backend"]), *operands)


def closed_call_impl(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return compiled(static.bodies[0], static["backend"])(operands)


def closed_call_abstract_eval(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return [meta.empty() for meta in static.bodies[0].outputs]


def closed_call_dependent_outputs(static: StaticParameters, sources: Mask, through: Through) -> Mask:
    return dependent_outputs(static.bodies[0], sources, through)


def closed_call_batch(
    static: StaticParameters, operands: Sequence[Tensor], mapped: Mask, size: int, randomness: str
) -> tuple[Sequence[Tensor], Mask]:
    body, out = batched(static.bodies[0], mapped, size, randomness)
    return _call(body, static, operands), out


def closed_call_jvp(
    static: StaticParameters, primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    body, reached = with_tangents(static.bodies[0], tuple(t is not None for t in tangents))
    outs = _call(body, static, [*primals, *(t for t in tangents if t is not None)])
    n = static["n_outputs"]
    moving = iter(outs[n:])
    return outs[:n], [next(moving) if r else None for r in reached]


def closed_call_vjp_forward(static: StaticParameters, active: Mask) -> StaticParameters:
    body = static.bodies[0]
    part = partition(body, active, dependent_outputs(body, active, Through.GRADIENT))
    return closed_call_static(part.forward, static["backend"])


def closed_call_vjp_backward(
    static: StaticParameters,
    active: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    body = static.bodies[0]
    reached = dependent_outputs(body, active, Through.GRADIENT)
    part = partition(body, active, reached)
    operands_back = backward_operands(part, body, reached, operands, residuals, cotangents)
    grads = iter(_call(part.backward, static, operands_back))
    return [next(grads) if a else None for a in active]


def closed_call_passthrough(static: StaticParameters, operands: Sequence[Hashable]) -> SimplifiedCall | None:
    def make(bodies: Sequence[Subgraph]) -> StaticParameters:
        (body,) = bodies
        return closed_call_static(body, static["backend"])

    return simplify_branches(static.bodies, operands, 0, make)


def closed_call_lower(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    """Inside another graph the call dissolves: that graph is compiled as a whole."""
    return static.bodies[0](*operands)


def closed_call_prune(static: StaticParameters, used: Mask) -> Pruned:
    (body,) = static.bodies
    needed = needed_inputs(body, used)
    return Pruned(closed_call_static(restricted(body, needed, used), static["backend"]), needed, used)
