"""Gradients of a compiled call by plain autograd: its loops run once.

NOTE [Tapes as residuals] What a while loop stacks has a size that only a run knows, so it can't be a residual, and the
backward graph runs the loop again. A tape (NOTE [Tapes]) can be one. So where nothing but autograd is active, the joint
graph gets its kernels first and is partitioned then. Kernels have no derivative, no batching rule, and a tape that
somebody copied (a hook on saved tensors) is lost: where the gradient is differentiated or transformed, the call takes
the way of every other one, and its forward graph runs again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...derive.joint import joint
from ...derive.partition import Partition, partition, partition_of_joint
from ...hop.operator import is_plain_call
from ...ir.active import state
from ...ir.dependence import Through, dependent_outputs
from ...ir.meta import Mask
from ...ir.subgraph import Subgraph
from ...lowering.backends import with_tapes
from ...lowering.loops.forms import is_whole
from ...lowering.loops.tape_values import tapes_made
from ...passes.effects import silenced
from .op import ClosedCallParams, TapedCallParams, closed_call_op
from .rules import closed_call_vjp_backward, closed_call_vjp_forward

__all__ = ["are_whole", "partition_of", "taped_call_vjp_backward", "taped_call_vjp_forward"]


def taped_call_vjp_forward(params: ClosedCallParams, active: Mask) -> ClosedCallParams:
    return ClosedCallParams.of(partition_of(params, active).forward, params.backend)


def taped_call_vjp_backward(
    params: ClosedCallParams,
    active: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    part = partition_of(params, active)
    if not _tapes(part):
        return closed_call_vjp_backward(params, active, operands, residuals, cotangents)
    given = [*operands, *residuals, *(ct for ct in cotangents if ct is not None)]
    is_for_tape = is_plain_call(given) and are_whole(part, residuals)
    if torch.is_grad_enabled() or state.stops_at_nan or not is_for_tape:
        params = silenced(params)  # see NOTE [Effects happen once]
        again = closed_call_op(closed_call_vjp_forward(params, active), *operands)
        return closed_call_vjp_backward(params, active, operands, again[params.n_outputs :], cotangents)

    def run(backward: Subgraph, given: Sequence[Tensor]) -> Sequence[Tensor]:
        return closed_call_op(ClosedCallParams.of(backward, params.backend), *given)

    return part.pull(run, operands, residuals, cotangents)


def partition_of(params: ClosedCallParams, active: Mask) -> Partition:
    """The partition of a call that plain autograd remembers: with a tape as a residual, if there is one."""
    return params.derive(("partition", active), lambda: _partition_of(params, active))


def are_whole(part: Partition, residuals: Sequence[Tensor]) -> bool:
    """Whether the tapes among the residuals are themselves."""
    return all(is_whole(residuals[i]) for i in _tapes(part))


def _tapes(part: Partition) -> tuple[int, ...]:
    """Which residuals are tapes."""
    n = len(part.forward.outputs) - len(part.residuals)
    return tuple(i - n for i in tapes_made(part.forward))


def _partition_of(params: ClosedCallParams, active: Mask) -> Partition:
    body = params.body
    reached = dependent_outputs(body, active, Through.GRADIENT)
    if isinstance(params, TapedCallParams):
        graph = with_tapes(joint(body, active, reached), params.backend)
        part = None if graph is None else partition_of_joint(body, graph, active, reached)
        if part is not None and _tapes(part):
            return part
    return partition(body, active, reached)
