"""Unused outputs of a scan: stacks that nobody reads, and carries that feed only themselves."""

from __future__ import annotations

from ...ir.dependence import Pruned, needed_inputs
from ...ir.meta import Mask
from ...ir.subgraph import StaticParameters
from ...passes.rewiring import restricted
from ..loops.carry import carry_fixpoint
from .op import scan_static

__all__ = ["scan_prune"]


def scan_prune(static: StaticParameters, used: Mask) -> Pruned:
    (body,) = static.bodies
    n, m = static["n_carry"], static["n_xs"]
    ys = used[n:]
    carry = carry_fixpoint(used[:n], lambda c: needed_inputs(body, (*c, *ys))[:n])
    needed = (*carry, *needed_inputs(body, (*carry, *ys))[n:])
    outputs = (*carry, *ys)
    smaller = restricted(body, needed, outputs)
    new = scan_static(smaller, sum(carry), sum(needed[n : n + m]), static["reverse"])
    return Pruned(new, (True, *needed), outputs)
