"""scan as torch's own ``scan`` (or ``map`` where nothing is carried)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _torch
from ...capture.subgraph import StaticParameters
from .eager import split_operands

__all__ = ["scan_native"]


def scan_native(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    """torch's scan runs forward in time only, wants at least one step and one ``xs``, and inputs that share no storage."""
    (body,) = static.bodies
    n = static["n_carry"]
    length, init, xs, consts = split_operands(static, operands)
    if isinstance(length, int) and length == 0:
        return [*(c.clone() for c in init), *(meta.with_leading(0).zeros() for meta in body.outputs[n:])]
    if not xs:
        xs = [torch.arange(length)]
    if static["reverse"]:
        xs = [x.flip(0) for x in xs]
    n_body_xs = static["n_xs"]

    def step(*args: Tensor) -> tuple[Tensor, ...]:
        carry, x, rest = args[:n], args[n : n + len(xs)], args[n + len(xs) :]
        return tuple(o.contiguous() for o in body(*carry, *x[:n_body_xs], *rest))

    inputs = _torch.unshared([c.contiguous() for c in init] + [x.contiguous() for x in xs])
    outs = _torch.native_scan(step, inputs[:n], inputs[n:], tuple(consts))
    ys = [y.flip(0) for y in outs[n:]] if static["reverse"] else outs[n:]
    return [*outs[:n], *ys]
