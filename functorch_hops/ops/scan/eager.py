"""Run the body once per step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...ir.first_nan import NanMade
from ...lowering.loops.watching import watched
from .op import ScanParams, split_operands

__all__ = ["scan_abstract_eval", "scan_impl"]


def scan_impl(params: ScanParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    body = params.body
    length, init, xs, consts = split_operands(params, operands)
    carry: Sequence[Tensor] = init
    n = params.n_carry
    if length == 0:
        sizes = body.bind([*init, *(x.new_empty(x.shape[1:]) for x in xs), *consts])
        return [*(c.clone() for c in carry), *(meta.at(sizes).with_leading(0).zeros() for meta in body.outputs[n:])]
    slices = [x.unbind(0) for x in xs]
    stacks: list[Tensor] = []
    rows: list[Sequence[Tensor]] = []
    for t in watched(range(length - 1, -1, -1) if params.reverse else range(length)):
        try:
            outs = body(*carry, *(x[t] for x in slices), *consts)
        except NanMade as found:
            origin = params.origin
            is_backward = origin is not None and origin.part == "backward"
            step = t if params.reverse == is_backward else length - 1 - t
            found.steps.append((step, params.operator.label, origin))
            raise
        carry, ys = outs[:n], outs[n:]
        if len(stacks) < len(ys):
            # Written where they belong: a list of all steps, stacked at the end, would take the memory twice.
            stacks = [y.new_empty((length, *y.shape)) for y in ys]
            rows = [stack.unbind(0) for stack in stacks]
        for row, y in zip(rows, ys):
            row[t].copy_(y)
    return [*carry, *stacks]


def scan_abstract_eval(params: ScanParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    body = params.body
    n, length = params.n_carry, operands[0]
    carry = [meta.empty() for meta in body.outputs[:n]]
    return [*carry, *(meta.with_leading(length).empty() for meta in body.outputs[n:])]
