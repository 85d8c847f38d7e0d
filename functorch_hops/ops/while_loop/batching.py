"""vmap of while_loop.

With an unbatched condition the lanes stay in step, and the body is batched as a scan's is. With a batched one the loop
carries a mask of the lanes that run; it ends when no lane does. A lane that has finished keeps its carry, and computes
along with the operands of one that runs (NOTE [Representative lanes]).

NOTE [Stacks of lanes] A stacked loop then runs as long as its longest lane. Rows of a lane that had finished hold what
the borrowed operands gave, and ``valid`` is False there, which tells the loop backwards to skip them.

NOTE [One mask] A loop that runs as long as any element of its first carry is true, as one that was batched before does,
needs no mask besides: which lanes run is what this carry says, and that of a finished lane stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...derive.batch import batched
from ...derive.rewrite import rewritten
from ...ir.dependence import Through, dependent_outputs
from ...ir.meta import Mask, TensorMeta
from ...ir.subgraph import Subgraph
from ..effect.marking import enter_scope, in_scope, new_scope
from ..lanes import borrow_operands, expand_lanes, place_of, select_lanes, with_numbers_on
from ..loops.carry import carry_fixpoint
from .op import WhileLoopParams, merge_flags, while_loop_op

__all__ = ["while_loop_batch"]


def while_loop_batch(
    params: WhileLoopParams, operands: Sequence[Tensor], mapped: Mask, size: int, randomness: str
) -> tuple[Sequence[Tensor], Mask]:
    cond, body = params.cond, params.body
    n = params.n_carry
    through = Through.of_vmap(randomness)
    consts = mapped[n:]
    carry = carry_fixpoint(mapped[:n], lambda c: dependent_outputs(body, (*c, *consts), through)[:n])
    if any(dependent_outputs(cond, (*carry, *consts), through)):
        return _per_lane(params, operands, mapped, size, randomness)
    return _in_step(params, operands, mapped, carry, size, randomness)


def _in_step(
    params: WhileLoopParams,
    operands: Sequence[Tensor],
    mapped: Mask,
    carry: Mask,
    size: int,
    randomness: str,
) -> tuple[Sequence[Tensor], Mask]:
    cond, body, n, flags = params.cond, params.body, params.n_carry, params.flags
    masks = (*carry, *mapped[n:])
    new_cond, _ = batched(cond, masks, size, randomness)
    new_body, out = batched(body, masks, size, randomness, (*carry, *(False,) * (len(body.outputs) - n)))
    init = [expand_lanes(x, size) if new and not old else x for x, new, old in zip(operands[:n], carry, mapped)]
    outs = while_loop_op(WhileLoopParams(new_cond, new_body, n, flags, params.checkpoints), *init, *operands[n:])
    stacks_mapped = merge_flags(flags, False, out[n:])
    stacks = [s.movedim(1, 0) if m else s for s, m in zip(outs[n:], stacks_mapped)]
    return [*outs[:n], *stacks], (*out[:n], *stacks_mapped)


def _per_lane(
    params: WhileLoopParams, operands: Sequence[Tensor], mapped: Mask, size: int, randomness: str
) -> tuple[Sequence[Tensor], Mask]:
    n, flags = params.n_carry, params.flags
    device = place_of(params.cond.outputs[0], params.body.inputs)
    cond, body = (with_numbers_on(device, *of) for of in ((params.cond, n, 1), (params.body, n, n)))
    lanes = (*(True,) * n, *mapped[n:])
    lane_cond, _ = batched(cond, lanes, size, randomness, (True,))
    lane_body, _ = batched(body, lanes, size, randomness, (True,) * len(body.outputs))
    placed = [x.to(meta.device) for x, meta in zip(operands, body.inputs[:n])]
    init = [x if m else expand_lanes(x, size) for x, m in zip(placed, mapped)]
    masks = [] if _is_any(cond) else [TensorMeta((size,), torch.bool, cond.outputs[0].device)]
    first = lane_cond(*init, *operands[n:]) if masks else []
    step = _masked_step(lane_cond, lane_body, masks, mapped[n:], n, bool(flags))
    n_carry = len(masks) + n
    loop = WhileLoopParams(_any_lane(lane_cond, masks), step, n_carry, (0,) if flags else (), params.checkpoints)
    outs = while_loop_op(loop, *first, *init, *operands[n:])
    carry = outs[len(masks) : n_carry]
    if not flags:
        return carry, (True,) * n
    # The step stacks its mask first. Where the flag of the loop itself is False, this is another one's, borrowed.
    happened, running, *ys = outs[n_carry:]
    valid = running & happened.to(running.device).unsqueeze(1)
    stacks = [s.movedim(1, 0) for s in merge_flags(flags, valid, ys)]
    return [*carry, *stacks], (True,) * (n + len(stacks))


def _is_any(cond: Subgraph) -> bool:
    """Whether a condition asks for any element of the first carry: NOTE [One mask]."""
    (test,), first = cond.output_nodes(), cond.input_nodes()[0]
    return test.target is torch.ops.aten.any.default and test.args == (first,)


def _any_lane(cond: Subgraph, masks: Sequence[TensorMeta]) -> Subgraph:
    def run(running: Tensor, *_: Tensor) -> list[Tensor]:
        return [running.any()]

    return cond.derive(("any lane", *masks), lambda: rewritten(run, [*masks, *cond.inputs], "vmap"))


def _masked_step(
    cond: Subgraph, body: Subgraph, masks: Sequence[TensorMeta], consts_mapped: Mask, n: int, is_stacked: bool
) -> Subgraph:
    """``(running, carry, consts) -> (running, carry, [running, stacked values])``, the former two if there are
    ``masks``.
    """

    scope = new_scope()
    has_scope = body.holds_effects or cond.holds_effects
    inner_cond, inner_body = in_scope(cond, scope), in_scope(body, scope)

    def run(*args: Tensor) -> list[Tensor]:
        operands = args[len(masks) :]
        running = args[0] if masks else cond(*operands)[0]
        if has_scope:
            enter_scope(scope, running)
        mapped = (*(True,) * n, *consts_mapped)
        borrowed = [borrow_operands(running, x) if m else x for x, m in zip(operands, mapped)]
        outs = inner_body(*borrowed)
        carry = [select_lanes(running, new, old) for new, old in zip(outs, operands[:n])]
        still = [running & inner_cond(*carry, *operands[n:])[0]] if masks else []
        return [*still, *carry, *([running.clone(), *outs[n:]] if is_stacked else [])]

    key = ("masked step", cond, *masks, consts_mapped, n, is_stacked)
    return body.derive(key, lambda: rewritten(run, [*masks, *body.inputs], "vmap"))
