"""Carries that no step changes, carries that are equal, and stacks of what is there already."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ...passes.passthrough import SimplifiedCall, Source, distinct, passthrough_inputs, values
from ...passes.rewiring import rewired
from ..loops.passthrough import fixed_carries, renumbered
from .op import ScanParams

__all__ = ["scan_passthrough"]


def scan_passthrough(params: ScanParams, operands: Sequence[Hashable]) -> SimplifiedCall[ScanParams] | None:
    body = params.body
    n, m = params.n_carry, params.n_xs
    length, *inputs = operands
    xs, consts = range(n, n + m), range(n + m, len(inputs))
    fixed = fixed_carries(body, n, consts, inputs)
    new = renumbered(body, n, fixed, [xs, consts], inputs)
    kept = [i in new.kept and i not in fixed for i in range(n)]
    n_new = sum(kept)
    outputs = [Source("operand", 1 + i) if i in fixed else Source("output", new.numbers[i]) for i in range(n)]
    sources, first = passthrough_inputs(body), distinct(values(body)[n:])
    for i in range(n, len(body.outputs)):
        source, j = sources[i], n + first[i - n]
        if source is not None and (source in fixed or source >= n):
            outputs.append(Source("operand", 1 + source, None if source in xs else length))
        else:
            outputs.append(Source("output", sum(kept)) if i == j else outputs[j])
        kept.append(outputs[-1].kind == "output" and i == j)
    if len(new.kept) == len(inputs) and not fixed and all(kept):
        return None
    smaller = rewired(body, new.numbers, tuple(kept))
    n_xs = sum(i in xs for i in new.kept)
    return SimplifiedCall(
        ScanParams(smaller, n_new, n_xs, params.reverse), (0, *(1 + i for i in new.kept)), tuple(outputs)
    )
