"""Which carries of a loop no step changes, and its inputs, each value once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ...ir.subgraph import Subgraph
from ...passes.passthrough import Renumbering, passthrough_inputs, values

__all__ = ["fixed_carries", "renumbered"]


def fixed_carries(body: Subgraph, n: int, consts: range, inputs: Sequence[Hashable]) -> set[int]:
    """The carries that are in every step what they were at the start: themselves, or a constant with the same value."""
    sources = passthrough_inputs(body)
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
    changing = [i for i in range(n) if i not in fixed]
    groups = [changing, *others[:-1], [*sorted(fixed), *others[-1]]]
    return Renumbering.make(groups, [*carry, *inputs[n:]])
