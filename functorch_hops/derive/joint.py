"""A graph and its vector-Jacobian product, in one graph."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _torch
from ..ir.meta import Mask
from ..ir.subgraph import Subgraph
from .rewrite import merged, rewritten

__all__ = ["joint"]


def joint(body: Subgraph, active: Mask, cotangents: Mask) -> Subgraph:
    """``(inputs, cotangents of the marked outputs) -> (outputs, gradients of the active inputs)``."""

    def run(*args: Tensor) -> list[Tensor]:
        primals, cts = args[: len(active)], args[len(active) :]

        def marked_and_others(*xs: Tensor) -> tuple[tuple[Tensor, ...], list[Tensor]]:
            outs = body(*merged(primals, active, xs))
            marked = tuple(o for o, c in zip(outs, cotangents) if c)
            return marked, [o for o, c in zip(outs, cotangents) if not c]

        xs = tuple(p for p, a in zip(primals, active) if a)
        if not cts or not xs:
            return [*body(*primals), *map(torch.zeros_like, xs)]
        marked, pull, others = torch.func.vjp(marked_and_others, *xs, has_aux=True)  # type: ignore[misc]
        pieces = iter(marked), iter(others)
        outs = [next(pieces[0] if c else pieces[1]) for c in cotangents]
        return [*outs, *pull(tuple(cts))]

    cts = [meta for meta, c in zip(body.outputs, cotangents) if c]
    while True:
        try:
            return rewritten(run, [*body.inputs, *cts], "vjp")
        except RuntimeError as error:
            # From now on that is an error only where the derivative is computed, not where it is prepared.
            if not _torch.found_without_formula(error):
                raise
