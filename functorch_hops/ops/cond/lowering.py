"""cond as torch's own ``cond``; more than two branches nest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _torch
from ...capture.subgraph import StaticParameters, Subgraph

__all__ = ["cond_native"]


def cond_native(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    selector, *rest = operands
    if not static.bodies[0].outputs:
        return []
    if selector.dtype == torch.bool:
        return _branch(selector, static.bodies[1], [static.bodies[0]], rest)
    return _nested(selector, list(static.bodies), 0, rest)


def _branch(pred: Tensor, taken: Subgraph, others: Sequence[Subgraph], operands: Sequence[Tensor]) -> Sequence[Tensor]:
    (other,) = others
    return _torch.native_cond(pred, _contiguous(taken), _contiguous(other), tuple(operands))


def _nested(selector: Tensor, branches: list[Subgraph], first: int, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    if len(branches) == 1:
        return branches[0](*operands)

    def others(selector: Tensor, *args: Tensor) -> Sequence[Tensor]:
        return tuple(o.contiguous() for o in _nested(selector, branches[1:], first + 1, args))

    def taken(selector: Tensor, *args: Tensor) -> Sequence[Tensor]:
        return tuple(o.contiguous() for o in branches[0](*args))

    return _torch.native_cond(selector == first, taken, others, (selector, *operands))


def _contiguous(body: Subgraph):  # type: ignore[no-untyped-def]
    return lambda *args: tuple(o.contiguous() for o in body(*args))
