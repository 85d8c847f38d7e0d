"""The prefixes one after the other, as a scan: for a length that stays open, which no tree of fixed depth fits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...derive.rewrite import rewritten
from ...ir.meta import TensorMeta
from ...ir.subgraph import Subgraph
from ..cond.op import CondParams, cond_op
from ..scan.op import ScanParams, scan_op
from .op import AssociativeScanParams

__all__ = ["sequential_prefixes"]


def sequential_prefixes(params: AssociativeScanParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    """The first step takes its element as it is. Steps from the second element on would be one fewer, and torch.export
    would ask whether that is one.
    """
    k = params.n_leaves
    elems, consts = operands[:k], operands[k:]
    step = params.derive("step", lambda: _step(params))
    length = elems[0].shape[0]
    combines = torch.arange(length, device=elems[0].device) > 0
    outs = scan_op(ScanParams(step, k, 1 + k, reverse=False), length, *(e[0] for e in elems), combines, *elems, *consts)
    return outs[k:]


def _step(params: AssociativeScanParams) -> Subgraph:
    """``(prefix, whether it combines, element, consts...) -> (prefix, prefix)``."""
    body, k = params.body, params.n_leaves
    take = rewritten(lambda *xs: xs[k : 2 * k], body.inputs, "associative_scan")

    def step(*args: Tensor) -> list[Tensor]:
        prefix, combines, rest = args[:k], args[k], args[k + 1 :]
        outs = cond_op(CondParams((take, body)), combines, *prefix, *rest)
        return [*outs, *outs]

    flag = TensorMeta((), torch.bool, body.inputs[0].device)
    return rewritten(step, [*body.inputs[:k], flag, *body.inputs[k:]], "associative_scan")
