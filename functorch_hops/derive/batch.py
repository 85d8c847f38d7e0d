"""A graph over a batch."""

from __future__ import annotations

from torch import Tensor

from .. import _torch
from ..ir.dependence import Through, dependent_outputs
from ..ir.meta import Mask
from ..ir.sizes import size_key
from ..ir.subgraph import Subgraph
from .placing import Placing, is_mixed
from .rewrite import rewritten

__all__ = ["batched"]


def batched(body: Subgraph, mapped: Mask, size: int, randomness: str, out: Mask | None = None) -> tuple[Subgraph, Mask]:
    """``body`` over a batch at dimension 0 of the ``mapped`` inputs, and which outputs have one.

    At least the outputs in ``out`` have it, expanded where the body does not map them.
    """
    through = Through.of_vmap(randomness)
    reached = dependent_outputs(body, mapped, through)
    outputs = tuple(a or b for a, b in zip(reached, out)) if out is not None else reached

    def run(*args: Tensor) -> list[Tensor]:
        in_dims = tuple(0 if m else None for m in mapped)
        lane = Placing(body.module).run if is_mixed(body) else body
        results, dims = _torch.restore_vmap(lane, in_dims, size, randomness)(*args)
        placed = [r.to(meta.device) for r, meta in zip(results, body.outputs)]
        return [_at_front(r, d, size) if o else r for r, d, o in zip(placed, dims, outputs)]

    def make() -> Subgraph:
        inputs = [meta.with_leading(size) if m else meta for meta, m in zip(body.inputs, mapped)]
        return rewritten(run, inputs, "vmap")

    return body.derive(("batched", mapped, size_key(size), randomness, outputs), make), outputs


def _at_front(x: Tensor, dim: int | None, size: int) -> Tensor:
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
