"""All rules of replay: its body's, at the same state of the generator."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NoReturn

from torch import Tensor

from ...derive.batch import batched
from ...derive.partition import Partition, partition
from ...derive.tangent import with_tangents
from ...errors import CaptureError, message
from ...ir.dependence import Pruned, Through, dependent_outputs, needed_inputs
from ...ir.generator import STATE, current_state, set_current_state
from ...ir.meta import Mask
from ...lowering.loops.forms import Again
from ...passes.rewiring import restricted
from .op import ReplayParams, replay_op

__all__ = [
    "replay_abstract_eval",
    "replay_batch",
    "replay_dependent_outputs",
    "replay_form",
    "replay_impl",
    "replay_jvp",
    "replay_lower",
    "replay_passthrough",
    "replay_prune",
    "replay_vjp_backward",
    "replay_vjp_forward",
]


def _partition(params: ReplayParams, active: Mask) -> Partition:
    body = params.body
    reached = dependent_outputs(body, active[1:], Through.GRADIENT)
    return partition(body, active[1:], reached)


def replay_impl(params: ReplayParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    state, *rest = operands
    before = current_state()
    set_current_state(state)
    try:
        outs = params.body(*rest)
        return [current_state(), *outs]
    finally:
        set_current_state(before)


def replay_abstract_eval(params: ReplayParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return [STATE.empty(), *(meta.empty() for meta in params.body.outputs)]


def replay_dependent_outputs(params: ReplayParams, sources: Mask, through: Through, trips: int | None = None) -> Mask:
    of_state = sources[0] and through.is_of_values
    return of_state, *(of_state or d for d in dependent_outputs(params.body, sources[1:], through))


def replay_batch(
    params: ReplayParams, operands: Sequence[Tensor], mapped: Mask, size: int, randomness: str
) -> tuple[Sequence[Tensor], Mask]:
    if mapped[0]:
        raise CaptureError(
            message(
                "vmap",
                "random numbers drawn in a while_loop can't be drawn again for lanes that take different steps",
                remedy="draw them before the loop, or let the same condition hold for all lanes",
            )
        )
    body, out = batched(params.body, mapped[1:], size, randomness)
    return replay_op(ReplayParams(body), *operands), (False, *out)


def replay_jvp(
    params: ReplayParams, primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    body, reached = with_tangents(params.body, tuple(t is not None for t in tangents[1:]))
    outs = replay_op(ReplayParams(body), *primals, *(t for t in tangents if t is not None))
    n = params.n_outputs
    found = iter(outs[n:])
    return outs[:n], [None, *(next(found) if r else None for r in reached)]


def replay_vjp_forward(params: ReplayParams, active: Mask) -> ReplayParams:
    return ReplayParams(_partition(params, active).forward)


def replay_vjp_backward(
    params: ReplayParams,
    active: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    part = _partition(params, active)
    return [None, *part.pull(lambda backward, given: backward(*given), operands[1:], residuals, cotangents[1:])]


def replay_prune(params: ReplayParams, used: Mask) -> Pruned[ReplayParams]:
    needed = needed_inputs(params.body, used[1:])
    smaller = restricted(params.body, needed, used[1:])
    return Pruned(ReplayParams(smaller), (True, *needed), (True, *used[1:]))


def replay_passthrough(params: ReplayParams, operands: Sequence[Hashable]) -> None:
    """What passes through a step is found in the loop around it."""


def replay_form(params: ReplayParams, operands: Sequence[Any]) -> Again:
    return Again(params.body)


def replay_lower(params: ReplayParams, operands: Sequence[Tensor]) -> NoReturn:
    raise CaptureError(
        message(
            "grad",
            "random numbers drawn in a while_loop can't be drawn again by a compiler, which has generators of its own",
            remedy='draw them before the loop, or compile with backend="eager"',
        )
    )
