"""vjp of while_loop: stack what the body's backward reads, then scan backwards over the iterations that happened.

An infinitesimal change of the operands does not change the trip count, so the loop is differentiated as the scan that
it turned out to be. The stacks grow with the run: no bound on the trip count is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...ir.meta import Mask
from ...ir.subgraph import StaticParameters
from ..loops.backward import BackwardPlan, run_backward, with_kept_carry
from ..scan.op import Operands
from .checkpoints import checkpointed_vjp_backward, checkpointed_vjp_forward
from .op import split_stacks, while_static

__all__ = ["while_loop_vjp_backward", "while_loop_vjp_forward"]


def _plan(static: StaticParameters, active: Mask) -> BackwardPlan:
    _, body = static.bodies
    return BackwardPlan.make(body, static["n_carry"], 0, active)


def while_loop_vjp_forward(static: StaticParameters, active: Mask) -> StaticParameters:
    if static["checkpoints"] is not None:
        return checkpointed_vjp_forward(static, active)
    cond, body = static.bodies
    n, flags = static["n_carry"], static["flags"]
    part = _plan(static, active).part
    forward = with_kept_carry(part.forward, [i for i in range(n) if part.kept[i]])
    n_old = len(body.outputs) - n + len(flags)
    return while_static(cond, forward, n, (*flags, n_old))


def while_loop_vjp_backward(
    static: StaticParameters,
    active: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    if static["checkpoints"] is not None:
        return checkpointed_vjp_backward(static, active, operands, residuals, cotangents)
    _, body = static.bodies
    plan = _plan(static, active)
    n = static["n_carry"]
    valid, *stacks = residuals
    trips = valid.shape[0]
    cts = [*cotangents[:n], *split_stacks(static["flags"], cotangents[n:])]
    full = [
        (meta if i < n else meta.with_leading(trips)).or_zeros(ct)
        for i, (ct, meta, c) in enumerate(zip(cts, body.outputs, plan.cotangents))
        if c
    ]
    k = sum(plan.cotangents[:n])
    parts = Operands(trips, operands[:n], [], operands[n:])
    return run_backward(plan, False, parts, stacks, full[:k], full[k:], valid)[1:]
