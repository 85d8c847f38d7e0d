"""A graph and its vector-Jacobian product, in one graph."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _torch
from ..ir.dependence import Through, dependent_outputs
from ..ir.meta import Mask
from ..ir.subgraph import Subgraph
from .rewrite import merged, rewritten

__all__ = ["joint"]


def joint(body: Subgraph, active: Mask, cotangents: Mask) -> Subgraph:
    """``(inputs, cotangents of the marked outputs) -> (outputs, gradients of the active inputs)``."""

    # torch (2.13) takes what a view under no_grad returns for differentiable, and fails when it pulls it back.
    reached = dependent_outputs(body, active, Through.GRADIENT)
    marks = tuple(c and r for c, r in zip(cotangents, reached))

    def run(*args: Tensor) -> list[Tensor]:
        primals, given = args[: len(active)], iter(args[len(active) :])
        cts = [ct for ct, m in ((next(given), m) for c, m in zip(cotangents, marks) if c) if m]

        def marked_and_others(*xs: Tensor) -> tuple[tuple[Tensor, ...], list[Tensor]]:
            outs = body(*merged(primals, active, xs))
            marked = tuple(o for o, m in zip(outs, marks) if m)
            return marked, [o for o, m in zip(outs, marks) if not m]

        xs = tuple(p for p, a in zip(primals, active) if a)
        if not cts or not xs:
            return [*body(*primals), *map(torch.zeros_like, xs)]
        marked, pull, others = torch.func.vjp(marked_and_others, *xs, has_aux=True)  # type: ignore[misc]
        pieces = iter(marked), iter(others)
        outs = [next(pieces[0] if m else pieces[1]) for m in marks]
        return [*outs, *pull(tuple(cts))]

    cts = [meta for meta, c in zip(body.outputs, cotangents) if c]
    while True:
        try:
            return rewritten(run, [*body.inputs, *cts], "vjp")
        except RuntimeError as error:
            # From now on that is an error only where the derivative is computed, not where it is prepared.
            if not _torch.found_without_formula(error):
                raise
