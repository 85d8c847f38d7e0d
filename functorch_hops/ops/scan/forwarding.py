"""Carries that no step changes, carries that are equal, and stacks of what is there already."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ...capture.passes.forwarding import Forwarded, Renumbering, Source, distinct, handed_on, rewired, values
from ...capture.subgraph import StaticParameters, Subgraph
from .eager import scan_static

__all__ = ["fixed_carries", "renumbered", "scan_forward"]


def scan_forward(static: StaticParameters, operands: Sequence[Hashable]) -> Forwarded | None:
    (body,) = static.bodies
    n, m = static["n_carry"], static["n_xs"]
    length, *inputs = operands
    xs, consts = range(n, n + m), range(n + m, len(inputs))
    fixed = fixed_carries(body, n, consts, inputs)
    new = renumbered(body, n, fixed, [xs, consts], inputs)
    kept = [i in new.kept and i not in fixed for i in range(n)]
    n_new = sum(kept)
    outputs = [Source("operand", 1 + i) if i in fixed else Source("output", new.numbers[i]) for i in range(n)]
    sources, first = handed_on(body), distinct(values(body)[n:])
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
    return Forwarded(
        scan_static(smaller, n_new, n_xs, static["reverse"]), (0, *(1 + i for i in new.kept)), tuple(outputs)
    )


def fixed_carries(body: Subgraph, n: int, consts: range, inputs: Sequence[Hashable]) -> set[int]:
    """The carries that are in every step what they were at the start: themselves, or a constant with the same value."""
    sources = handed_on(body)
    fixed = set(range(n))
    while True:
        stable = {
            i for i in fixed if (s := sources[i]) is not None and inputs[s] == inputs[i] and (s in fixed or s in consts)
        }
        if stable == fixed:
            return fixed
        fixed = stable


def renumbered(
    body: Subgraph, n: int, fixed: set[int], others: Sequence[range], inputs: Sequence[Hashable]
) -> Renumbering:
    """The inputs of a loop's body - carries, ``others``, the last of which are the constants - each value once.

    Fixed carries are constants. Two carries are one if they start equal and each step gives both the same value.
    """
    carry = [inputs[i] if i in fixed else (inputs[i], value) for i, value in enumerate(values(body)[:n])]
    moving = [i for i in range(n) if i not in fixed]
    groups = [moving, *others[:-1], [*sorted(fixed), *others[-1]]]
    return Renumbering.make(groups, [*carry, *inputs[n:]])
