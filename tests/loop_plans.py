"""How the loops of a program are lowered, and that their kernels compute what eager does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import torch
from torch import Tensor

import functorch_hops as fh
from functorch_hops.lowering.inductor import exact_code
from functorch_hops.lowering.loops.planning import planned
from functorch_hops.lowering.loops.plans import LoopReport, Plan
from functorch_hops.lowering.real_parts import in_real_parts
from modes import same

__all__ = ["Program", "check", "normal", "plan", "taken"]

Program = tuple[Callable[..., Any], tuple[Tensor, ...]]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plan(f: Callable[..., Any], *args: Any) -> Plan:
    with exact_code():
        return planned(in_real_parts(fh.jit(f).lower(*args)._body), {})


def check(f: Callable[..., Any], *args: Tensor, **tolerances: float) -> list[LoopReport]:
    """Run ``f`` with kernels and without; how its loops were lowered."""
    made = plan(f, *args)
    expected = optree.tree_leaves(fh.jit(f, backend="eager")(*args))
    same(list(made.body(*args)), expected, equal_nan=True, **tolerances)
    return list(made.loops)


def taken(reports: list[LoopReport]) -> list[str]:
    return [report.taken for report in reports]
