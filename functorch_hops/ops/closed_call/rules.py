"""All rules of the closed call: a transform of a compiled function is a compiled function of the transformed graph."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import Tensor

from ...capture.derive import batched, with_tangents
from ...capture.liveness import Pruned, needed_inputs, restricted
from ...capture.partition import backward_operands, partition
from ...capture.passes.forwarding import Forwarded, forward_branches
from ...capture.subgraph import Mask, StaticParameters, Subgraph
from ...lowering.backends import Backend, compiled

__all__ = [
    "closed_call_abstract",
    "closed_call_augment",
    "closed_call_batch",
    "closed_call_forward",
    "closed_call_jvp",
    "closed_call_native",
    "closed_call_prune",
    "closed_call_pullback",
    "closed_call_reached",
    "closed_call_run",
    "closed_call_static",
]


def closed_call_static(body: Subgraph, backend: Backend) -> StaticParameters:
    return body.derive(
        ("closed call", backend),
        lambda: StaticParameters("closed_call", [body], backend=backend, n_outputs=len(body.outputs)),
    )


def _call(body: Subgraph, static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    from . import closed_call_op

    return closed_call_op(closed_call_static(body, static["backend"]), *operands)


def closed_call_run(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return compiled(static.bodies[0], static["backend"])(operands)


def closed_call_abstract(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return [meta.empty() for meta in static.bodies[0].outputs]


def closed_call_reached(static: StaticParameters, sources: Mask, by: str) -> Mask:
    return static.bodies[0].reached(sources, by=by)


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


def closed_call_augment(static: StaticParameters, active: Mask) -> StaticParameters:
    body = static.bodies[0]
    part = partition(body, active, body.reached(active, by="gradient"))
    return closed_call_static(part.forward, static["backend"])


def closed_call_pullback(
    static: StaticParameters,
    active: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    body = static.bodies[0]
    reached = body.reached(active, by="gradient")
    part = partition(body, active, reached)
    operands_back = backward_operands(part, body, reached, operands, residuals, cotangents)
    grads = iter(_call(part.backward, static, operands_back))
    return [next(grads) if a else None for a in active]


def closed_call_forward(static: StaticParameters, operands: Sequence[Hashable]) -> Forwarded | None:
    def make(bodies: Sequence[Subgraph]) -> StaticParameters:
        (body,) = bodies
        return closed_call_static(body, static["backend"])

    return forward_branches(static.bodies, operands, 0, make)


def closed_call_native(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    """Inside another graph the call dissolves: that graph is compiled as a whole."""
    return static.bodies[0](*operands)


def closed_call_prune(static: StaticParameters, used: Mask) -> Pruned:
    (body,) = static.bodies
    needed = needed_inputs(body, used)
    return Pruned(closed_call_static(restricted(body, needed, used), static["backend"]), needed, used)
