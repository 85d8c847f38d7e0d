"""vjp of a while loop that keeps k of its carries and computes the others again.

The loop forwards saves carries in k slots, and the residuals of its last step. The loop backwards goes from that step
to the first; where the carry with which a step began is gone, it runs the body again from the latest saved one, saving
carries on the way in the slots that have become free. Which ones: NOTE [Minimal repetition checkpointing].

NOTE [Both loops are recomputed calls] They are bodies of ``checkpoint`` calls, which save their operands only. A
gradient that may be differentiated again (functorch prepares each one for that) would else stack what every iteration
of the loop backwards computes, and nothing would be saved. When it is differentiated again, both run once more as plain
while loops, with memory for each iteration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...derive.rewrite import rewritten
from ...errors import ArgumentValueError, message
from ...ir.dependence import needed_inputs
from ...ir.generator import generator_state
from ...ir.meta import Mask, TensorMeta
from ...ir.subgraph import Subgraph
from ...passes.effects import silent
from ...passes.rewiring import restricted
from ..checkpoint.op import CheckpointParams, checkpoint_op
from ..checkpoint.policies import nothing
from ..cond.op import CondParams, cond_op
from ..loops.backward import BackwardPlan, backward_step
from ..loops.carry import carry_fixpoint
from .op import WhileLoopParams, while_loop_op
from .replaying import after_loop, draws_elsewhere, replaying
from .schedule import NUMBER, empty_table, latest, offer, table, written

__all__ = ["checkpointed_vjp_backward", "checkpointed_vjp_forward"]


@dataclass(frozen=True)
class _Step:
    """A step of the loop, to be taken again and to be differentiated.

    ``values``: which carries that reads; these are saved. ``again: (values, consts) -> values``; ``residuals: (values,
    consts) -> what the step's backward reads``.
    """

    plan: BackwardPlan
    values: Mask
    again: Subgraph
    residuals: Subgraph

    @classmethod
    def make(cls, params: WhileLoopParams, active: Mask) -> _Step:
        n = params.n_carry
        plan = BackwardPlan.make(params.body, n, 0, active)
        body, forward = silent(params.body), silent(plan.part.forward)  # see NOTE [Effects happen once]
        emitted = (False,) * n + (True,) * (len(forward.outputs) - n)
        read = [a or b for a, b in zip(needed_inputs(forward, emitted), plan.part.kept)]
        values = carry_fixpoint(read[:n], lambda c: needed_inputs(body, c)[:n])
        inputs = (*values, *(True,) * (len(body.inputs) - n))
        return cls(plan, values, restricted(body, inputs, values), restricted(forward, inputs, emitted))

    def of_carry(self, carry: Sequence[Any]) -> list[Any]:
        return [x for x, v in zip(carry, self.values) if v]

    def slots(self, k: int) -> list[TensorMeta]:
        return [meta.with_leading(k) for meta in self.of_carry(self.plan.body.inputs)]

    def gradients(self) -> list[TensorMeta]:
        """Of the active carries and constants."""
        return [meta for meta, a in zip(self.plan.body.inputs, self.plan.active) if a]

    def residuals_or(
        self, is_last: Tensor, saved: Sequence[Tensor], values: Sequence[Tensor], consts: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """The residuals of the step, which are ``saved`` if it is the last one."""
        if not saved:
            return []
        n = len(saved)
        metas = [*self.residuals.outputs, *self.residuals.inputs]
        compute = rewritten(lambda *args: self.residuals(*args[n:]), metas, "while_loop")
        take = rewritten(lambda *args: list(args[:n]), metas, "while_loop")
        return cond_op(CondParams((compute, take)), is_last, *saved, *values, *consts)

    def pulled(
        self, grads: Sequence[Tensor], residuals: Sequence[Tensor], values: Sequence[Tensor], consts: Sequence[Tensor]
    ) -> list[Tensor]:
        """The gradients before the step, from those after it; those of the constants are sums."""
        n, kept = self.plan.n_carry, self.plan.part.kept
        carry = [x for x, k in zip(values, self.of_carry(kept)) if k]
        read = [c for c, k in zip(consts, kept[n:]) if k]
        return list(backward_step(self.plan, None)(*grads, *residuals, *carry, *read))


def checkpointed_vjp_forward(params: WhileLoopParams, k: int, active: Mask) -> CheckpointParams:
    """The loop that also returns its trip count, which step's carry is in which slot, the slots, and the residuals of
    the last step.
    """
    if params.body.random:
        return _drawing_vjp_forward(params, k, active)
    cond, body = params.cond, params.body
    n = params.n_carry
    key = ("saving loop", cond, n, active, k)
    return CheckpointParams(body.derive(key, lambda: _saving_loop(cond, _Step.make(params, active), k)), nothing)


def _drawing_vjp_forward(params: WhileLoopParams, k: int, active: Mask) -> CheckpointParams:
    """As NOTE [Random numbers are drawn again] has it; the state with which the loop begins is one more residual."""
    if any(map(draws_elsewhere, params.bodies)):
        raise ArgumentValueError(
            message(
                "while_loop",
                "the body draws random numbers on a device where they can't be drawn again",
                parameter="checkpoints",
                expected="random numbers drawn on the CPU, to take gradients",
                remedy="draw them on the CPU or before the loop, or leave checkpoints out",
            )
        )
    saving = checkpointed_vjp_forward(replaying(params), k, (False, *active))
    body, n = params.body, params.n_carry

    def run(*args: Tensor) -> list[Tensor]:
        state = generator_state()
        last, *outs = checkpoint_op(saving, state, *args)
        after_loop(params, last, outs[:n], args[n:])
        return [*outs, state]

    key = ("drawing loop", params.cond, n, active, k)
    return CheckpointParams(body.derive(key, lambda: rewritten(run, body.inputs, "while_loop")), nothing)


def _saving_loop(cond: Subgraph, one: _Step, k: int) -> Subgraph:
    """``(carry, consts) -> (carry, trips, steps, slots, residuals)``, by a loop that carries ``carry, (at, steps,
    levels), slots, residuals``.
    """
    body, n, slot_metas, residual_metas = one.plan.body, one.plan.n_carry, one.slots(k), one.residuals.outputs
    state = [NUMBER, table(k), table(k)]
    metas = [body.inputs[:n], state, slot_metas, residual_metas, body.inputs[n:]]

    def condition(*args: Tensor) -> Sequence[Tensor]:
        carry, _, _, _, consts = _split(args, metas)
        return cond(*carry, *consts)

    def step(*args: Tensor) -> list[Tensor]:
        carry, (at, *columns), slots, _, consts = _split(args, metas)
        place, taken, *columns = offer(at, at > 0, *columns)
        outs = one.plan.part.forward(*carry, *consts)
        return [*outs[:n], at + 1, *columns, *written(place, taken, one.of_carry(carry), slots), *outs[n:]]

    loop = _loop(condition, step, metas)

    def run(*operands: Tensor) -> list[Tensor]:
        start = [NUMBER.zeros(), *empty_table(k), *(meta.zeros() for meta in (*slot_metas, *residual_metas))]
        outs = while_loop_op(loop, *operands[:n], *start, *operands[n:])
        carry, (trips, steps, _), slots, residuals = _split(outs, metas[:4])
        return [*carry, trips, steps, *slots, *residuals]

    return rewritten(run, body.inputs, "while_loop")


def checkpointed_vjp_backward(
    params: WhileLoopParams,
    k: int,
    active: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    if params.body.random:
        *saved, state = residuals
        pure, cts = replaying(params), (None, *cotangents)
        return checkpointed_vjp_backward(pure, k, (False, *active), (state, *operands), saved, cts)[1:]
    body = params.body
    n = params.n_carry
    one = _Step.make(params, active)
    given = [m.or_zeros(ct) for ct, m, c in zip(cotangents, body.outputs, one.plan.cotangents) if c]
    backwards = body.derive(("loop backwards", n, active, k), lambda: _loop_backwards(one, k))
    call = CheckpointParams(backwards, nothing)
    grads = iter(checkpoint_op(call, *residuals, *one.of_carry(operands[:n]), *given, *operands[n:]))
    return [next(grads) if a else None for a in one.plan.active]


def _loop_backwards(one: _Step, k: int) -> Subgraph:
    """``(trips, steps, slots, residuals, init, ct carry, consts) -> gradients``, by a loop that carries ``(end, at,
    steps, levels), values, gradients, slots``.

    The steps from ``end`` on are done, and ``values`` are the carry with which step ``at < end`` begins. An iteration
    takes this step or, if it is the last one before ``end``, its derivative.
    """
    body, n, slot_metas = one.plan.body, one.plan.n_carry, one.slots(k)
    value_metas, grad_metas, const_metas = one.of_carry(body.inputs[:n]), one.gradients(), body.inputs[n:]
    state = [NUMBER, NUMBER, table(k), table(k)]
    residual_metas = one.residuals.outputs
    metas = [state, value_metas, grad_metas, slot_metas, [NUMBER], residual_metas, value_metas, const_metas]

    def again(*args: Tensor) -> list[Tensor]:
        (end, at, *columns), values, grads, *_, consts = _split(args, metas)
        place, taken, *columns = offer(at + 1, at + 2 < end, *columns)
        return [place, taken, end, at + 1, *columns, *one.again(*values, *consts), *grads]

    def turn(*args: Tensor) -> list[Tensor]:
        (end, _, steps, _), values, grads, slots, (trips,), saved, init, consts = _split(args, metas)
        residuals = one.residuals_or(end == trips, saved, values, consts)
        grads = one.pulled(grads, residuals, values, consts)
        at, steps, levels, values = latest(end - 1, steps, slots, init)
        return [torch.zeros_like(at).reshape(1), (at < 0).reshape(1), end - 1, at, steps, levels, *values, *grads]

    branches = CondParams(tuple(rewritten(branch, _flat(metas), "while_loop") for branch in (again, turn)))

    def step(*args: Tensor) -> list[Tensor]:
        (end, at, *_), _, _, slots, *_ = _split(args, metas)
        place, taken, *rest = cond_op(branches, at + 1 == end, *args)
        _, values, _ = _split(rest, metas[:3])
        return [*rest, *written(place, taken, values, slots)]

    loop = _loop(lambda end, *_: [end > 0], step, metas)
    ct_metas = grad_metas[: sum(one.plan.cotangents)]
    inputs = [[NUMBER, table(k)], slot_metas, residual_metas, value_metas, ct_metas, const_metas]

    def run(*args: Tensor) -> Sequence[Tensor]:
        (trips, steps), slots, residuals, init, cts, consts = _split(args, inputs)
        at, steps, levels, values = latest(trips, steps, slots, init)
        sums = [meta.zeros() for meta in grad_metas[len(cts) :]]
        carry = [trips, at, steps, levels, *values, *cts, *sums, *slots]
        outs = while_loop_op(loop, *carry, trips, *residuals, *init, *consts)
        return _split(outs, metas[:4])[2]

    return rewritten(run, _flat(inputs), "while_loop")


def _loop(
    condition: Callable[..., Sequence[Tensor]],
    step: Callable[..., Sequence[Tensor]],
    metas: Sequence[Sequence[TensorMeta]],
) -> WhileLoopParams:
    """A while loop whose operands come in groups. ``step`` returns new values for the leading groups, which are the
    carry; the rest are constants.
    """
    cond, body = (rewritten(function, _flat(metas), "while_loop") for function in (condition, step))
    return WhileLoopParams(cond, body, len(body.outputs))


def _flat(groups: Sequence[Sequence[TensorMeta]]) -> list[TensorMeta]:
    return [meta for group in groups for meta in group]


def _split(flat: Sequence[Tensor], groups: Sequence[Sequence[TensorMeta]]) -> list[list[Tensor]]:
    rest = iter(flat)
    return [[next(rest) for _ in group] for group in groups]
