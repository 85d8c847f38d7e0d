"""``remat``: what a scan computes again in reverse mode, as a composition of scan and checkpoint.

``"step"`` is a scan of the checkpointed step: it keeps the carry of each step. K segments are a scan over the segments,
whose body is the checkpointed scan of one segment's steps: it keeps the K carries between segments, and while a segment
is pulled back, what its own steps keep. With T steps and K = sqrt(T) that is O(sqrt(T)) instead of O(T) (Griewank and
Walther 2000, section 2). Either way each step runs twice, once forward and once again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ... import _torch
from ...calls.validate import as_int
from ...derive.rewrite import rewritten
from ...errors import ArgumentValueError, message
from ...ir.subgraph import Subgraph
from ..checkpoint.op import CheckpointParams, checkpoint_op
from ..checkpoint.policies import nothing
from .unrolling import Loop, run_in_chunks, run_unrolled, simplified

__all__ = ["as_remat", "run_scan_graph", "segment_length"]


def as_remat(remat: Any) -> Any:
    """What ``remat`` chooses, if there is such a choice."""
    if remat is None or (isinstance(remat, str) and remat in ("step", "sqrt")):
        return remat
    if isinstance(remat, str):
        expected = "None, 'step', 'sqrt' or a positive number of segments"
        remedy = "pass remat='sqrt' to save memory in a long scan"
        got = repr(remat)
        raise ArgumentValueError(
            message("scan", "unknown choice", parameter="remat", expected=expected, got=got, remedy=remedy)
        )
    return as_int("scan", "remat", remat, at_least=1, is_option=True)


def segment_length(remat: Any, length: int) -> int:
    """How many steps are computed again together: equally many, but for the last segment's remainder."""
    if remat == "step":
        return 1
    segments = math.isqrt(length) if remat == "sqrt" else remat
    return max(1, -(-length // max(1, segments)))


def run_scan_graph(
    body: Subgraph,
    length: Any,
    init: Sequence[Tensor],
    xs: Sequence[Tensor],
    consts: Sequence[Tensor],
    reverse: bool,
    unroll: int,
    remat: Any,
) -> Sequence[Tensor]:
    """A captured scan that keeps for reverse mode what ``remat`` says; its remainder is a segment of its own."""
    if remat not in (None, "step") and not isinstance(length, int):
        # Segments are of a known length: jit captures each length anew, and an exported program does without them.
        if _torch.is_exporting():
            remat = "step"
        else:
            length = int(length)
    loop = simplified(body, length, init, xs, consts, reverse)
    return loop.restore(_run_segments(loop, length, reverse, unroll, remat))


def _run_segments(loop: Loop, length: Any, reverse: bool, unroll: int, remat: Any) -> Sequence[Tensor]:
    body, init, xs, consts, _ = loop
    n_carry = len(init)
    size = None if remat is None or length == 0 else segment_length(remat, length)
    if size is not None and body.random:
        size = 1  # a loop in a checkpoint that draws random numbers is saved whole, see NOTE [Partition]
    if size is None or size == 1:
        step = body if size is None else _checkpointed(body)
        return run_unrolled(step, n_carry, length, init, xs, consts, reverse, unroll)

    def segment(k: int) -> Subgraph:
        return _checkpointed(_segment(body, n_carry, len(xs), k, reverse, unroll))

    def rest(k: int, carry: Sequence[Tensor], xs: Sequence[Tensor]) -> Sequence[Tensor]:
        return segment(k)(*carry, *xs, *consts)

    return run_in_chunks(segment(size), size, rest, n_carry, length, init, xs, consts, reverse)


def _checkpointed(body: Subgraph) -> Subgraph:
    def run(*args: Tensor) -> Sequence[Tensor]:
        return checkpoint_op(CheckpointParams(body, nothing), *args)

    return body.derive("checkpointed", lambda: rewritten(run, body.inputs, "scan"))


def _segment(body: Subgraph, n_carry: int, n_xs: int, k: int, reverse: bool, unroll: int) -> Subgraph:
    """k steps of a loop as one step of another: ``(carry, k xs, consts) -> (carry, k ys)``."""

    def run(*args: Tensor) -> Sequence[Tensor]:
        carry, xs, consts = args[:n_carry], args[n_carry : n_carry + n_xs], args[n_carry + n_xs :]
        return run_unrolled(body, n_carry, k, carry, xs, consts, reverse, unroll)

    inputs = [meta.with_leading(k) if n_carry <= i < n_carry + n_xs else meta for i, meta in enumerate(body.inputs)]
    key = ("segment", n_carry, n_xs, k, reverse, unroll)
    return body.derive(key, lambda: rewritten(run, inputs, "scan"))
