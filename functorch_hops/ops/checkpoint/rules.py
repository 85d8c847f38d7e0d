"""All rules of checkpoint: its body's, except that the backward graph computes again what the policy does not save.

The call that does so is a checkpoint itself. Its operands ``after_cotangents`` are those: the recomputation must not
begin before they exist, see NOTE [Recomputation stays late].
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

from torch import Tensor

from ...derive.batch import batched
from ...derive.partition import Partition, partition
from ...derive.tangent import with_tangents
from ...ir.dependence import Pruned, Through, dependent_outputs, needed_inputs
from ...ir.meta import Mask
from ...ir.subgraph import Subgraph
from ...lowering.barrier import behind_barrier
from ...passes.passthrough import SimplifiedCall
from ...passes.rewiring import restricted, simplify_branches
from .op import CheckpointParams, checkpoint_op

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


def _call(params: CheckpointParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return checkpoint_op(params, *operands)


def _partition(params: CheckpointParams, active: Mask) -> Partition:
    body = params.body
    reached = dependent_outputs(body, active, Through.GRADIENT)
    return partition(body, active, reached, policy=params.policy)


def checkpoint_impl(params: CheckpointParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return params.body(*operands)


def checkpoint_abstract_eval(params: CheckpointParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return [meta.empty() for meta in params.body.outputs]


def checkpoint_dependent_outputs(
    params: CheckpointParams, sources: Mask, through: Through, trips: int | None = None
) -> Mask:
    return dependent_outputs(params.body, sources, through)


def checkpoint_batch(
    params: CheckpointParams, operands: Sequence[Tensor], mapped: Mask, size: int, randomness: str
) -> tuple[Sequence[Tensor], Mask]:
    body, out = batched(params.body, mapped, size, randomness)
    return _call(replace(params, body=body), operands), out


def checkpoint_jvp(
    params: CheckpointParams, primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    body, reached = with_tangents(params.body, tuple(t is not None for t in tangents))
    after = params.after_cotangents
    after += tuple(a for a, t in zip(after, tangents) if t is not None)
    outs = _call(
        replace(params, body=body, after_cotangents=after), [*primals, *(t for t in tangents if t is not None)]
    )
    n = params.n_outputs
    found = iter(outs[n:])
    return outs[:n], [next(found) if r else None for r in reached]


def checkpoint_vjp_forward(params: CheckpointParams, active: Mask) -> CheckpointParams:
    return replace(params, body=_partition(params, active).forward)


def checkpoint_vjp_backward(
    params: CheckpointParams,
    active: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    part = _partition(params, active)

    def run(backward: Subgraph, given: list[Tensor]) -> Sequence[Tensor]:
        after = tuple(i >= len(given) - sum(part.cotangents) for i in range(len(given)))
        return _call(replace(params, body=backward, after_cotangents=after), given)

    return part.pull(run, operands, residuals, cotangents)


def checkpoint_passthrough(
    params: CheckpointParams, operands: Sequence[Hashable]
) -> SimplifiedCall[CheckpointParams] | None:
    if params.after_cotangents:
        return None  # an operand that both waits and is waited for could be neither
    return simplify_branches(params, operands, 0)


def checkpoint_lower(params: CheckpointParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    """torch has no such operator for inference graphs: forward and backward dissolve into the graph around them."""
    after = params.after_cotangents or (False,) * len(operands)
    until = [x for x, a in zip(operands, after) if a]
    waiting = iter(behind_barrier([x for x, a in zip(operands, after) if not a], until))
    return params.body(*(x if a else next(waiting) for x, a in zip(operands, after)))


def checkpoint_prune(params: CheckpointParams, used: Mask) -> Pruned[CheckpointParams]:
    body = params.body
    needed = needed_inputs(body, used)
    after = tuple(a for a, n in zip(params.after_cotangents, needed) if n)
    return Pruned(replace(params, body=restricted(body, needed, used), after_cotangents=after), needed, used)
