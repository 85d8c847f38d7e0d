"""vjp of while_loop: stack what the body's backward reads, then scan backwards over the iterations that happened.

An infinitesimal change of the operands does not change the trip count, so the loop is differentiated as the scan that
it turned out to be. The stacks grow with the run: no bound on the trip count is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...ir.meta import Mask
from ...ir.subgraph import Params
from ..loops.backward import BackwardPlan, run_backward, with_kept_carry
from ..scan.op import Operands
from .checkpoints import checkpointed_vjp_backward, checkpointed_vjp_forward
from .op import WhileLoopParams, split_stacks

__all__ = ["while_loop_vjp_backward", "while_loop_vjp_forward"]


def _plan(params: WhileLoopParams, active: Mask) -> BackwardPlan:
    body = params.body
    return BackwardPlan.make(body, params.n_carry, 0, active)


def while_loop_vjp_forward(params: WhileLoopParams, active: Mask) -> Params:
    if params.checkpoints is not None:
        return checkpointed_vjp_forward(params, params.checkpoints, active)
    cond, body, n, flags = params.cond, params.body, params.n_carry, params.flags
    part = _plan(params, active).part
    forward = with_kept_carry(part.forward, [i for i in range(n) if part.kept[i]])
    n_old = len(body.outputs) - n + len(flags)
    return WhileLoopParams(cond, forward, n, (*flags, n_old))


def while_loop_vjp_backward(
    params: WhileLoopParams,
    active: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    if params.checkpoints is not None:
        return checkpointed_vjp_backward(params, params.checkpoints, active, operands, residuals, cotangents)
    plan = _plan(params, active)
    n = params.n_carry
    valid, *stacks = residuals
    trips = valid.shape[0]
    cts = [*cotangents[:n], *split_stacks(params.flags, cotangents[n:])]
    given = [ct for ct, c in zip(cts, plan.cotangents) if c]
    parts = Operands(trips, operands[:n], [], operands[n:])
    return run_backward(plan, False, parts, stacks, given, valid)[1:]
