"""Run the body while the condition holds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _torch
from ...ir.first_nan import NanMade
from ...ir.meta import TensorMeta
from ...lowering.loops.watching import state
from .op import WhileLoopParams, merge_flags
from .reuse import reusing

__all__ = ["while_loop_abstract_eval", "while_loop_impl"]


def while_loop_impl(params: WhileLoopParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    cond, body, n, flags = params.cond, params.body, params.n_carry, params.flags
    step, owned = reusing(body, n)
    carry: Sequence[Tensor] = [c.clone() if o else c for c, o in zip(operands, owned)]
    consts = operands[n:]
    steps: list[Sequence[Tensor]] = []
    trips = 0
    watch = state.watch
    if watch is not None:
        watch.begin(steps, None)
    while cond(*carry, *consts)[0].item():
        try:
            outs = step(*carry, *consts)
        except NanMade as found:
            found.steps.append((trips, params.operator.label, params.origin))
            raise
        carry = outs[:n]
        trips += 1
        if watch is not None:
            watch.at(steps, trips)
        if flags:
            steps.append(outs[n:])
    if watch is not None:
        watch.end(steps)
    if trips == 0:
        carry = [c.clone() for c in carry]
    if not flags:
        return carry
    sizes = body.bind(operands)
    metas = [meta.at(sizes) for meta in body.outputs[n:]]
    columns = [[step[i] for step in steps] for i in range(len(metas))]
    stacks = [torch.stack(column) if column else meta.with_leading(0).empty() for column, meta in zip(columns, metas)]
    merged = merge_flags(flags, None, stacks)
    return [*carry, *(torch.ones(trips, dtype=torch.bool) if s is None else s for s in merged)]


def while_loop_abstract_eval(params: WhileLoopParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    body = params.body
    n, flags = params.n_carry, params.flags
    carry = [meta.empty() for meta in body.outputs[:n]]
    if not flags:
        return carry
    trips = _torch.unbacked_size()
    flag = TensorMeta((), torch.bool, torch.device("cpu"))
    return [*carry, *(meta.with_leading(trips).empty() for meta in merge_flags(flags, flag, body.outputs[n:]))]
