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
    """torch's scan runs forward in time only, wants at least one step and one ``xs``, and inputs that share no
    storage.
    """
    (body,) = static.bodies
    n, n_xs = static["n_carry"], static["n_xs"]
    length, init, xs, consts = split_operands(static, operands)
    if isinstance(length, int) and length == 0:
        return [*(c.clone() for c in init), *(meta.with_leading(0).zeros() for meta in body.outputs[n:])]
    if not xs:
        xs = [torch.arange(length)]
    if static["reverse"]:
        xs = [x.flip(0) for x in xs]
    is_map = n == 0 and _torch.is_exporting()
    # Inductor lowers no map, and takes a scan of a single output for that output: an idle carry makes it two.
    idle = [] if is_map or (n > 0 and len(body.outputs) > 1) else [torch.zeros(())]
    k = len(idle)

    def step(*args: Tensor) -> tuple[Tensor, ...]:
        carry, x, rest = args[k : k + n], args[k + n : k + n + len(xs)], args[k + n + len(xs) :]
        outs = body(*carry, *x[:n_xs], *rest)
        return tuple(o.contiguous() for o in (*(c.clone() for c in args[:k]), *outs))

    # Closed-over values too: Inductor writes each carry into the buffer of the initial one.
    inputs = _torch.unshared([*consts, *(c.contiguous() for c in (*idle, *init, *xs))])[len(consts) :]
    outs = _torch.native_scan(step, inputs[: k + n], inputs[k + n :], tuple(consts))[k:]
    ys = [y.flip(0) for y in outs[n:]] if static["reverse"] else outs[n:]
    return [*outs[:n], *ys]
