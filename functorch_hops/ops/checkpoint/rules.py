"""All rules of checkpoint: its body's, except that the backward graph computes what it reads from the operands.

Random numbers are the exception: they are residuals (NOTE [Partition]), so the recomputation sees the same ones.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import Tensor, fx

from ...capture.derive import batched, with_tangents
from ...capture.liveness import Pruned, needed_inputs, restricted
from ...capture.partition import Partition, backward_operands, partition
from ...capture.passes.forwarding import Forwarded, forward_branches
from ...capture.subgraph import Mask, StaticParameters, Subgraph

__all__ = [
    "checkpoint_abstract",
    "checkpoint_augment",
    "checkpoint_batch",
    "checkpoint_forward",
    "checkpoint_jvp",
    "checkpoint_native",
    "checkpoint_prune",
    "checkpoint_pullback",
    "checkpoint_reached",
    "checkpoint_run",
    "checkpoint_static",
]


def checkpoint_static(body: Subgraph) -> StaticParameters:
    return StaticParameters("checkpoint", [body], n_outputs=len(body.outputs))


def _call(body: Subgraph, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    from . import checkpoint_op

    return checkpoint_op(checkpoint_static(body), *operands)


def _save_nothing(node: fx.Node) -> bool:
    return False


def _partition(static: StaticParameters, active: Mask) -> tuple[Partition, Mask]:
    (body,) = static.bodies
    reached = body.reached(active, by="gradient")
    return partition(body, active, reached, save=_save_nothing), reached


def checkpoint_run(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return static.bodies[0](*operands)


def checkpoint_abstract(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return [meta.empty() for meta in static.bodies[0].outputs]


def checkpoint_reached(static: StaticParameters, sources: Mask, by: str) -> Mask:
    return static.bodies[0].reached(sources, by=by)


def checkpoint_batch(
    static: StaticParameters, operands: Sequence[Tensor], mapped: Mask, size: int, randomness: str
) -> tuple[Sequence[Tensor], Mask]:
    body, out = batched(static.bodies[0], mapped, size, randomness)
    return _call(body, operands), out


def checkpoint_jvp(
    static: StaticParameters, primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    body, reached = with_tangents(static.bodies[0], tuple(t is not None for t in tangents))
    outs = _call(body, [*primals, *(t for t in tangents if t is not None)])
    n = static["n_outputs"]
    moving = iter(outs[n:])
    return outs[:n], [next(moving) if r else None for r in reached]


def checkpoint_augment(static: StaticParameters, active: Mask) -> StaticParameters:
    return checkpoint_static(_partition(static, active)[0].forward)


def checkpoint_pullback(
    static: StaticParameters,
    active: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    (body,) = static.bodies
    part, reached = _partition(static, active)
    operands_back = backward_operands(part, body, reached, operands, residuals, cotangents)
    grads = iter(_call(part.backward, operands_back))
    return [next(grads) if a else None for a in active]


def checkpoint_forward(static: StaticParameters, operands: Sequence[Hashable]) -> Forwarded | None:
    return forward_branches(static.bodies, operands, 0, lambda bodies: checkpoint_static(*bodies))


def checkpoint_native(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    """torch has no such operator for inference graphs: forward and backward dissolve into the graph around them."""
    return static.bodies[0](*operands)


def checkpoint_prune(static: StaticParameters, used: Mask) -> Pruned:
    (body,) = static.bodies
    needed = needed_inputs(body, used)
    return Pruned(checkpoint_static(restricted(body, needed, used)), needed, used)
