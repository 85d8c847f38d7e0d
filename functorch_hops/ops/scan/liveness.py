"""Unused outputs of a scan: stacks that nobody reads, and carries that feed only themselves."""

from __future__ import annotations

from ...ir.dependence import Pruned, needed_inputs
from ...ir.meta import Mask
from ...passes.rewiring import restricted
from ..loops.carry import carry_fixpoint
from .op import ScanParams

__all__ = ["scan_prune"]


def scan_prune(params: ScanParams, used: Mask) -> Pruned[ScanParams]:
    body = params.body
    n, m = params.n_carry, params.n_xs
    ys = used[n:]
    carry = carry_fixpoint(used[:n], lambda c: needed_inputs(body, (*c, *ys))[:n])
    needed = (*carry, *needed_inputs(body, (*carry, *ys))[n:])
    outputs = (*carry, *ys)
    smaller = restricted(body, needed, outputs)
    new = ScanParams(smaller, sum(carry), sum(needed[n : n + m]), params.reverse)
    return Pruned(new, (True, *needed), outputs)
