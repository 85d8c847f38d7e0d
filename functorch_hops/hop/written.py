"""What the backward pass of a call reads of operands that were written to after it.

NOTE [Operands written to] A call saves all of its operands, and torch does not unpack what was written to since. But of
many the derivative reads no value (``c * w + b`` of none of ``b``), and what reads none may be written to, as in plain
Python. Which ones a rule reads is seen in its graph, which is made when it is first asked for: such writes are rare.

Where AOTAutograd traces the call, a value stays as it is when its tensor is written to, and may be read: a while loop,
which runs again in its derivative, reads all that its steps read (see NOTE [Partition]).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import _torch
from ..derive.rewrite import rewritten
from ..ir.dependence import is_read
from ..ir.meta import Mask, TensorMeta
from ..ir.origin import made_for
from ..ir.subgraph import Params, Subgraph
from .rules import operator_of

__all__ = ["unpacked"]


def unpacked(ctx: Any, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
    """What a call saved, operands and residuals. ``ctx.written``: the operands that were written to since, of which the
    first derivative by these cotangents reads no value.
    """
    n, n_outputs = len(ctx.active), ctx.params.n_outputs
    saved = _torch.saved_despite_writes(ctx, n, ctx.written)
    if ctx.written:
        given = tuple(c is not None for c in cotangents[:n_outputs])
        operands = [ctx.numbers.get(i, t) for i, t in enumerate(saved[:n])]
        outputs = [TensorMeta.of(c) for c in cotangents[:n_outputs] if c is not None]
        graph = ctx.params.derive(
            ("first derivative", ctx.active, given),
            lambda: _first_derivative(ctx.params, ctx.active, given, operands, saved[n:], outputs),
        )
        for place, (_, error) in ctx.written.items():
            if is_read(graph, sum(isinstance(x, Tensor) for x in operands[:place])):
                if place not in ctx.before:
                    raise error
                saved[place] = ctx.before[place]
    return saved


def _first_derivative(
    params: Params,
    active: Mask,
    given: Mask,
    operands: Sequence[Any],
    residuals: Sequence[Tensor | None],
    cotangents: Sequence[TensorMeta],
) -> Subgraph:
    """The backward rule as a graph: of the operands that are tensors, the residuals, and the given cotangents."""
    metas = [TensorMeta.of(x) for x in (*operands, *residuals) if isinstance(x, Tensor)]

    def run(*flat: Tensor) -> list[Tensor]:
        values = iter(flat)
        xs = [next(values) if isinstance(x, Tensor) else x for x in operands]
        saved = [next(values) for _ in residuals]
        with made_for(params.origin, "backward"):
            grads = operator_of(params).rules.vjp_backward(
                params, active, xs, saved, [next(values) if g else None for g in given]
            )
        return [g for g in grads if g is not None]

    return rewritten(run, [*metas, *cotangents], params.public_name)
