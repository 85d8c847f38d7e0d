"""cond as torch's own ``cond``; more than two branches make a chain."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ... import _torch
from ...ir.subgraph import StaticParameters, Subgraph

__all__ = ["cond_lower"]


def cond_lower(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    selector, *rest = operands
    if not static.bodies[0].outputs:
        return []
    if selector.dtype == torch.bool:
        no, yes = static.bodies
        return _torch.native_cond(selector, _contiguous(yes), _contiguous(no), tuple(rest))
    return _chain(selector, static.bodies, rest)


def _chain(selector: Tensor, branches: Sequence[Subgraph], operands: Sequence[Tensor]) -> Sequence[Tensor]:
    """One cond per branch, each handing the result so far on unless it is the selected one.

    Conds inside branches would say the same, but torch 2.13 loses the graphs of nested ones when it loads a program.
    """
    result: Sequence[Tensor] = [meta.zeros() for meta in branches[0].outputs]
    k = len(result)
    for i, branch in enumerate(branches):

        def taken(*args: Tensor, branch: Subgraph = branch) -> tuple[Tensor, ...]:
            return tuple(_torch.dense(o) for o in branch(*args[k:]))

        def passed(*args: Tensor) -> tuple[Tensor, ...]:
            return tuple(x.clone() for x in args[:k])

        result = _torch.native_cond(selector == i, taken, passed, (*result, *operands))
    return result


def _contiguous(body: Subgraph) -> Callable[..., tuple[Tensor, ...]]:
    return lambda *args: tuple(_torch.dense(o) for o in body(*args))
