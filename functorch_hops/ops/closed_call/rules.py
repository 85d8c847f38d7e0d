"""All rules of the closed call: a transform of a compiled function is a compiled function of the transformed graph."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import Tensor

from ... import _torch
from ...derive.batch import batched
from ...derive.partition import Partition, partition
from ...derive.tangent import with_tangents
from ...hop.autograd import pulls_for_transform
from ...ir.active import state
from ...ir.dependence import Pruned, Through, dependent_outputs, needed_inputs
from ...ir.meta import Mask
from ...ir.subgraph import Subgraph
from ...lowering.backends import compiled, dissolved
from ...passes.passthrough import SimplifiedCall
from ...passes.rewiring import restricted, simplify_branches
from ...trace.capture import current_capture
from .op import ClosedCallParams, closed_call_op, deferred, deferred_call_op

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


def _call(
    body: Subgraph, params: ClosedCallParams, operands: Sequence[Tensor], differentiated: Mask = ()
) -> Sequence[Tensor]:
    return closed_call_op(ClosedCallParams.of(body, params.backend, differentiated), *operands)


def closed_call_impl(params: ClosedCallParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    if state.stops_at_nan:
        return params.body(*operands)
    return compiled(params.body, params.backend, params.origin)(operands)


def closed_call_abstract_eval(params: ClosedCallParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return [meta.empty() for meta in params.body.outputs]


def closed_call_dependent_outputs(
    params: ClosedCallParams, sources: Mask, through: Through, trips: int | None = None
) -> Mask:
    return dependent_outputs(params.body, sources, through)


def closed_call_batch(
    params: ClosedCallParams, operands: Sequence[Tensor], mapped: Mask, size: int, randomness: str
) -> tuple[Sequence[Tensor], Mask]:
    body, out = batched(params.body, mapped, size, randomness)
    return _call(body, params, operands, params.differentiated), out


def closed_call_jvp(
    params: ClosedCallParams, primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    body, reached = with_tangents(params.body, tuple(t is not None for t in tangents))
    outs = _call(body, params, [*primals, *(t for t in tangents if t is not None)])
    n = params.n_outputs
    found = iter(outs[n:])
    return outs[:n], [next(found) if r else None for r in reached]


def closed_call_vjp_forward(params: ClosedCallParams, active: Mask) -> ClosedCallParams:
    return ClosedCallParams.of(_partition(params, active).forward, params.backend, active)


def closed_call_vjp_backward(
    params: ClosedCallParams,
    active: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    part = _partition(params, active)

    def pulled(backward: Subgraph, given: Sequence[Tensor]) -> Sequence[Tensor]:
        if not pulls_for_transform() or current_capture() is not None:
            return _call(backward, params, given)
        call = ClosedCallParams.of(backward, params.backend, (True,) * len(given))
        is_late = call.may_be_deferred and _torch.top_interpreter() is not None
        return deferred_call_op(deferred(call), *given) if is_late else closed_call_op(call, *given)

    return part.pull(pulled, operands, residuals, cotangents)


def _partition(params: ClosedCallParams, active: Mask) -> Partition:
    return partition(params.body, active, dependent_outputs(params.body, active, Through.GRADIENT))


def closed_call_passthrough(
    params: ClosedCallParams, operands: Sequence[Hashable]
) -> SimplifiedCall[ClosedCallParams] | None:
    return simplify_branches(params, operands, 0)


def closed_call_lower(params: ClosedCallParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    """Inside another graph the call dissolves: that graph is compiled as a whole."""
    return dissolved(params.body, params.backend)(*operands)


def closed_call_prune(params: ClosedCallParams, used: Mask) -> Pruned[ClosedCallParams]:
    body = params.body
    needed = needed_inputs(body, used)
    return Pruned(ClosedCallParams.of(restricted(body, needed, used), params.backend), needed, used)
