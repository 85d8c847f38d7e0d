"""Numbers on the CPU in a graph of an accelerator (torch 2.13 and 2.11).

NOTE [Counters need no compiler] A loop of torch's on an accelerator counts on the CPU, so that asking whether it goes
on waits for nothing. Inductor makes C++ of that: for a sum and a comparison of integers the first call finds out what
the processor can do, and compiles headers and some kernels, which takes up to a minute of one core. Here they are calls
of torch's operators, which take about as long as calls of kernels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from .._torch import OpOverload

__all__ = ["counted_by_torch", "is_on_accelerator"]

aten = torch.ops.aten


def is_on_accelerator(graphs: list[fx.GraphModule]) -> bool:
    values = tree_leaves([node.meta.get("val") for part in graphs for node in part.graph.nodes])
    return any(isinstance(x, Tensor) and x.device.type not in ("cpu", "meta") for x in values)


@contextlib.contextmanager
def counted_by_torch() -> Iterator[None]:
    """While Inductor compiles a graph of an accelerator, in Python."""
    from torch._inductor.graph import GraphLowering
    from torch._inductor.lowering import fallback_handler

    def call_function(graph: Any, target: Any, args: Any, kwargs: Any) -> Any:
        if not graph.cpp_wrapper and _computes_numbers(graph.current_node):
            return fallback_handler(target, add_to_fallback_set=False)(*args, **kwargs)
        return original(graph, target, args, kwargs)

    original: Any = GraphLowering.call_function
    setattr(GraphLowering, "call_function", call_function)  # noqa: B010
    try:
        yield
    finally:
        setattr(GraphLowering, "call_function", original)  # noqa: B010


def _computes_numbers(node: fx.Node) -> bool:
    if not isinstance(node.target, OpOverload):
        return False
    is_simple = torch.Tag.pointwise in node.target.tags or node.target is aten.full.default
    return is_simple and all(map(_is_number, (node, *node.all_input_nodes)))


def _is_number(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return not isinstance(value, Tensor) or (value.dim() == 0 and value.device.type == "cpu")
