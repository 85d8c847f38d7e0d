"""The prefixes in blocks of rows, to be differentiated where each operator costs a launch.

NOTE [Prefixes in blocks] The elements are cut into blocks; the prefixes within all blocks are taken side by side, one
row after the other, then those of what whole blocks combine to, which are fewer elements, in the same way; and each
prefix within a block is combined with what lies before its block (Blelloch, "Prefix sums and their applications",
1990). Where a number of an element waits for the same number of others only, each of these loops and each loop of its
derivative is one kernel over lanes. The derivative of the tree is that of all its operators: for a thousand elements
three times as many nodes, and half a minute of compilers. Alone, on a GPU, the tree is as fast as the blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ... import _torch
from ...derive.batch import batched
from ...derive.rewrite import rewritten
from ...ir.subgraph import Subgraph
from ..scan.op import ScanParams, scan_op
from .op import AssociativeScanParams

__all__ = ["blocked_prefixes", "goes_by_blocks"]

_LABEL = "associative_scan"
_ROWS = 32
"""Of a block: few enough for many blocks, and many enough for few of the loops over blocks of blocks."""
_MOST_LANES = 1 << 18
"""As many threads fill a GPU: elements of so many numbers are a single block."""


def goes_by_blocks(params: AssociativeScanParams, length: Any) -> bool:
    """Whether each number of a prefix waits for the same number of others only, on a device that has many lanes."""
    if type(length) is not int or length < 3 or params.is_half or params.body.shape_env is not None:
        return False
    return params.body.derive("goes by blocks", lambda: _is_of_lanes(params.body))


def _is_of_lanes(body: Subgraph) -> bool:
    metas = body.inputs
    if any(meta.device.type != "cuda" or 0 in meta.shape for meta in metas):
        return False
    return all(node.op != "call_function" or _stays_in_lane(node) for node in body.module.graph.nodes)


def _stays_in_lane(node: fx.Node) -> bool:
    shape = node.meta["val"].shape if isinstance(node.meta.get("val"), Tensor) else None
    is_total = _torch.is_pointwise(node.target) and torch.Tag.nondeterministic_seeded not in node.target.tags
    return is_total and all(x.meta["val"].shape in (shape, ()) for x in node.all_input_nodes)


def blocked_prefixes(params: AssociativeScanParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    k = params.n_leaves
    return _prefixes(params.body, operands[:k], operands[k:])


def _prefixes(body: Subgraph, elems: Sequence[Tensor], consts: Sequence[Tensor]) -> Sequence[Tensor]:
    k, length = len(elems), elems[0].shape[0]
    if length <= _ROWS or max(math.prod(e.shape[1:]) for e in elems) >= _MOST_LANES:
        return _one_after_the_other(body, elems, consts)
    n = -(-length // _ROWS)
    cut = [_filled(e, n * _ROWS).unflatten(0, (n, _ROWS)).transpose(0, 1) for e in elems]
    within = _one_after_the_other(_side_by_side(body, k, n), cut, consts)
    before = _prefixes(body, [w.select(0, -1).narrow(0, 0, n - 1) for w in within], consts)
    behind = _side_by_side(_side_by_side(body, k, n - 1), k, _ROWS, left=False)
    combined = behind(*before, *(w.narrow(1, 1, n - 1) for w in within), *consts)
    whole = [torch.cat((w.narrow(1, 0, 1), c), 1) for w, c in zip(within, combined)]
    return [w.transpose(0, 1).flatten(0, 1).narrow(0, 0, length) for w in whole]


def _filled(e: Tensor, length: int) -> Tensor:
    """With its last element again, up to ``length``: nobody reads what that combines to."""
    missing = length - e.shape[0]
    return torch.cat((e, e.narrow(0, -1, 1).expand(missing, *e.shape[1:]))) if missing else e


def _side_by_side(body: Subgraph, k: int, n: int, left: bool = True) -> Subgraph:
    """``body`` on ``n`` pairs, which have one left element if not ``left``."""
    mapped = (*(left,) * k, *(True,) * k, *(False,) * (len(body.inputs) - 2 * k))
    return batched(body, mapped, n, "different", (True,) * k)[0]


def _one_after_the_other(body: Subgraph, elems: Sequence[Tensor], consts: Sequence[Tensor]) -> Sequence[Tensor]:
    k, length = len(elems), elems[0].shape[0]
    if length == 1:
        return [e.clone() for e in elems]
    firsts = [e.select(0, 0) for e in elems]
    rest = [e.narrow(0, 1, length - 1) for e in elems]
    step = body.derive("prefix and row", lambda: rewritten(lambda *xs: _twice(body(*xs)), body.inputs, _LABEL))
    outs = scan_op(ScanParams(step, k, k, reverse=False), length - 1, *firsts, *rest, *consts)
    return [torch.cat((first.unsqueeze(0), rows)) for first, rows in zip(firsts, outs[k:])]


def _twice(outs: Sequence[Tensor]) -> list[Tensor]:
    return [*outs, *outs]
