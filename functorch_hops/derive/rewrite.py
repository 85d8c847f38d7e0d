"""A function over graphs as a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..ir.meta import Mask, TensorMeta
from ..ir.subgraph import Subgraph
from ..trace.speculate import speculate_subgraph

__all__ = ["merged", "rewritten"]


def rewritten(function: Callable[..., Sequence[Tensor]], inputs: Sequence[TensorMeta], operation: str) -> Subgraph:
    """Capture a function over graphs: closed, free of autocast."""
    graph, lifted = speculate_subgraph(function, inputs, operation=operation, parameter="body", keep_autocast=False)
    assert not lifted, "a derived graph closes over nothing"
    return graph


def merged(values: Sequence[Any], replaced: Mask, new: Sequence[Any]) -> list[Any]:
    fresh = iter(new)
    return [next(fresh) if r else v for v, r in zip(values, replaced)]
