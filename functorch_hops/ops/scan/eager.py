"""Run the body once per step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...capture.subgraph import StaticParameters, Subgraph, TensorMeta

__all__ = ["Operands", "scan_abstract", "scan_run", "scan_static", "split_operands"]


class Operands(NamedTuple):
    length: Any
    init: Sequence[Any]
    xs: Sequence[Any]
    consts: Sequence[Any]


def scan_static(body: Subgraph, n_carry: int, n_xs: int, reverse: bool) -> StaticParameters:
    return StaticParameters("scan", [body], n_carry=n_carry, n_xs=n_xs, reverse=reverse, n_outputs=len(body.outputs))


def split_operands(static: StaticParameters, operands: Sequence[Any]) -> Operands:
    """Operands (or a mask of them) by their part."""
    n, m = static["n_carry"], static["n_xs"]
    length, *rest = operands
    return Operands(length, rest[:n], rest[n : n + m], rest[n + m :])


def scan_run(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    (body,) = static.bodies
    length, init, xs, consts = split_operands(static, operands)
    carry: Sequence[Tensor] = init
    n = static["n_carry"]
    if length == 0:
        sizes = body.bind([*init, *(x.new_empty(x.shape[1:]) for x in xs), *consts])
        return [*(c.clone() for c in carry), *(meta.at(sizes).with_leading(0).zeros() for meta in body.outputs[n:])]
    slices = [x.unbind(0) for x in xs]
    stacks: list[Tensor] = []
    rows: list[Sequence[Tensor]] = []
    for t in range(length - 1, -1, -1) if static["reverse"] else range(length):
        outs = body(*carry, *(x[t] for x in slices), *consts)
        carry, ys = outs[:n], outs[n:]
        if len(stacks) < len(ys):
            # Written where they belong: a list of all steps, stacked at the end, would take the memory twice.
            stacks = [y.new_empty((length, *y.shape)) for y in ys]
            rows = [stack.unbind(0) for stack in stacks]
        for row, y in zip(rows, ys):
            row[t].copy_(y)
    return [*carry, *stacks]


def scan_abstract(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    (body,) = static.bodies
    n, length = static["n_carry"], operands[0]
    carry = [meta.empty() for meta in body.outputs[:n]]
    return [*carry, *(stacked(meta, length) for meta in body.outputs[n:])]


def stacked(meta: TensorMeta, length: Any) -> Tensor:
    return torch.empty((length, *meta.shape), dtype=meta.dtype, device=meta.device)
