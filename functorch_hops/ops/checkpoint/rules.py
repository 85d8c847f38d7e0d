"""All rules of checkpoint: its body's, except that the backward graph computes again what the policy does not save.

The call that does so is a checkpoint itself. Its ``late`` operands are the cotangents: the recomputation must not begin
before they exist, see NOTE [Recomputation stays late].
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import Tensor

from ...derive.batch import batched
from ...derive.partition import Partition, backward_operands, partition
from ...derive.tangent import with_tangents
from ...ir.dependence import Pruned, Through, dependent_outputs, needed_inputs
from ...ir.meta import Mask
from ...ir.subgraph import StaticParameters
from ...lowering.barrier import behind_barrier
from ...passes.passthrough import SimplifiedCall
from ...passes.rewiring import restricted, simplify_branches
from .op import checkpoint_op, checkpoint_static

__all__ = [
    "checkpoint_abstract_eval",
    "checkpoint_batch",
    "checkpoint_dependent_outputs",
    "checkpoint_impl",
    "checkpoint_jvp",
    "checkpoint_lower",
    "checkpoint_passthrough",
    "checkpoint_prune",
    "checkpoint_vjp_backward",
    "checkpoint_vjp_forward",
]


def _call(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return checkpoint_op(static, *operands)


def _partition(static: StaticParameters, active: Mask) -> tuple[Partition, Mask]:
    (body,) = static.bodies
    reached = dependent_outputs(body, active, Through.GRADIENT)
    return partition(body, active, reached, policy=static["policy"]), reached


def checkpoint_impl(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return static.bodies[0](*operands)


def checkpoint_abstract_eval(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return [meta.empty() for meta in static.bodies[0].outputs]


def checkpoint_dependent_outputs(static: StaticParameters, sources: Mask, through: Through) -> Mask:
    return dependent_outputs(static.bodies[0], sources, through)


def checkpoint_batch(
    static: StaticParameters, operands: Sequence[Tensor], mapped: Mask, size: int, randomness: str
) -> tuple[Sequence[Tensor], Mask]:
    body, out = batched(static.bodies[0], mapped, size, randomness)
    return _call(checkpoint_static(body, static["policy"], static["late"]), operands), out


def checkpoint_jvp(
    static: StaticParameters, primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    body, reached = with_tangents(static.bodies[0], tuple(t is not None for t in tangents))
    late = static["late"]
    late += tuple(is_late for is_late, t in zip(late, tangents) if t is not None)
    outs = _call(checkpoint_static(body, static["policy"], late), [*primals, *(t for t in tangents if t is not None)])
    n = static["n_outputs"]
    moving = iter(outs[n:])
    return outs[:n], [next(moving) if r else None for r in reached]


def checkpoint_vjp_forward(static: StaticParameters, active: Mask) -> StaticParameters:
    return checkpoint_static(_partition(static, active)[0].forward, static["policy"], static["late"])


def checkpoint_vjp_backward(
    static: StaticParameters,
    active: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    (body,) = static.bodies
    part, reached = _partition(static, active)
    operands_back = backward_operands(part, body, reached, operands, residuals, cotangents)
    late = tuple(i >= len(operands_back) - sum(reached) for i in range(len(operands_back)))
    grads = iter(_call(checkpoint_static(part.backward, static["policy"], late), operands_back))
    return [next(grads) if a else None for a in active]


def checkpoint_passthrough(static: StaticParameters, operands: Sequence[Hashable]) -> SimplifiedCall | None:
    if static["late"]:
        return None  # an operand that is late and early at once could be neither
    return simplify_branches(static.bodies, operands, 0, lambda bodies: checkpoint_static(bodies[0], static["policy"]))


def checkpoint_lower(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    """torch has no such operator for inference graphs: forward and backward dissolve into the graph around them."""
    late = static["late"] or (False,) * len(operands)
    until = [x for x, is_late in zip(operands, late) if is_late]
    early = iter(behind_barrier([x for x, is_late in zip(operands, late) if not is_late], until))
    return static.bodies[0](*(x if is_late else next(early) for x, is_late in zip(operands, late)))


def checkpoint_prune(static: StaticParameters, used: Mask) -> Pruned:
    (body,) = static.bodies
    needed = needed_inputs(body, used)
    late = tuple(is_late for is_late, n in zip(static["late"], needed) if n)
    return Pruned(checkpoint_static(restricted(body, needed, used), static["policy"], late), needed, used)
