"""Run the body while the condition holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ... import _torch
from ...capture.subgraph import StaticParameters, Subgraph, TensorMeta
from ..scan.eager import stacked
from .reuse import reusing

T = TypeVar("T")

__all__ = ["merge_flags", "split_stacks", "while_loop_abstract", "while_loop_run", "while_static"]


def while_static(
    cond: Subgraph, body: Subgraph, n_carry: int, flags: tuple[int, ...] = (), checkpoints: int | None = None
) -> StaticParameters:
    n_outputs = len(body.outputs) + len(flags)
    attributes = {"n_carry": n_carry, "flags": flags, "checkpoints": checkpoints, "n_outputs": n_outputs}
    return StaticParameters("while_loop", [cond, body], **attributes)


def merge_flags(flags: tuple[int, ...], valid: T, ys: Sequence[T]) -> list[T]:
    """The stacks of a loop: ``ys`` with ``valid`` at the places in ``flags``."""
    rest = iter(ys)
    return [valid if i in flags else next(rest) for i in range(len(ys) + len(flags))]


def split_stacks(flags: tuple[int, ...], stacks: Sequence[T]) -> list[T]:
    """The stacks of a loop without its flags."""
    return [s for i, s in enumerate(stacks) if i not in flags]


def while_loop_run(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    cond, body = static.bodies
    n, flags = static["n_carry"], static["flags"]
    step, owned = reusing(body, n)
    carry: Sequence[Tensor] = [c.clone() if o else c for c, o in zip(operands, owned)]
    consts = operands[n:]
    steps: list[Sequence[Tensor]] = []
    trips = 0
    while cond(*carry, *consts)[0].item():
        outs = step(*carry, *consts)
        carry = outs[:n]
        trips += 1
        if flags:
            steps.append(outs[n:])
    if trips == 0:
        carry = [c.clone() for c in carry]
    if not flags:
        return carry
    sizes = body.bind(operands)
    metas = [meta.at(sizes) for meta in body.outputs[n:]]
    columns = [[step[i] for step in steps] for i in range(len(metas))]
    stacks = [torch.stack(column) if column else stacked(meta, 0) for column, meta in zip(columns, metas)]
    merged = merge_flags(flags, None, stacks)
    return [*carry, *(torch.ones(trips, dtype=torch.bool) if s is None else s for s in merged)]


def while_loop_abstract(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    _, body = static.bodies
    n, flags = static["n_carry"], static["flags"]
    carry = [meta.empty() for meta in body.outputs[:n]]
    if not flags:
        return carry
    trips = _torch.unbacked_size()
    flag = TensorMeta((), torch.bool, torch.device("cpu"))
    return [*carry, *(stacked(meta, trips) for meta in merge_flags(flags, flag, body.outputs[n:]))]
