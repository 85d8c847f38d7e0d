"""cond as torch's own ``cond``; more than two branches make a chain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import _torch
from ...ir.meta import TensorMeta
from ...ir.subgraph import Subgraph
from ...lowering.exported import as_declared, as_floats, is_training, native_cond
from ...lowering.loops.forms import Branches
from .op import CondParams

__all__ = ["cond_form", "cond_lower"]


def cond_lower(params: CondParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    selector, *rest = operands
    n = len(params.branches[0].outputs)
    if n == 0 and not params.has_effects:
        return []
    if selector.dtype == torch.bool:
        no, yes = params.branches
        outs = native_cond(selector, _as_branch(yes), _as_branch(no), rest)
    else:
        outs = _chain(selector, params.branches, rest)
    return as_declared(outs, params.branches[0].outputs)


def cond_form(params: CondParams, operands: Sequence[Any]) -> Branches:
    return Branches(params.branches, TensorMeta.of(operands[0]))


def _chain(selector: Tensor, branches: Sequence[Subgraph], operands: Sequence[Tensor]) -> Sequence[Tensor]:
    """One cond per branch, each handing the result so far on unless it is the selected one.

    Conds inside branches would say the same, but torch 2.13 loses the graphs of nested ones when it loads a program.
    """
    result = _returned([meta.zeros() for meta in branches[0].outputs] or [_nothing()])
    k = len(result)
    for i, branch in enumerate(branches):

        def taken(*args: Tensor, branch: Subgraph = branch) -> tuple[Tensor, ...]:
            return _as_branch(branch)(*args[k:])

        def passed(*args: Tensor) -> tuple[Tensor, ...]:
            return tuple(x.clone() for x in args[:k])

        result = native_cond(selector == i, taken, passed, (*result, *operands))
    return result


def _as_branch(body: Subgraph) -> Callable[..., tuple[Tensor, ...]]:
    """As torch's cond takes it: outputs in the layout of their shape, and at least one."""
    return lambda *args: tuple(_torch.dense(o) for o in _returned(body(*args) or [_nothing()]))


def _returned(outs: Sequence[Tensor]) -> Sequence[Tensor]:
    return as_floats(outs) if is_training() else outs


def _nothing() -> Tensor:
    """The output of a branch that is run for its effects."""
    return torch.zeros((), dtype=torch.bool)
