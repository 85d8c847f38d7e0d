"""Where numbers of lanes are, beside tensors of an accelerator.

NOTE [Numbers of lanes] torch combines a tensor without dimensions on the CPU, a number, with tensors of any device. If
it differs between lanes it has one, and torch does not. So a number that lanes decide about is where they compute, and
an operator that combines what lanes have on the CPU with tensors of an accelerator computes there. To random operators,
inner operators and those that are not torch's, tensors are where they were captured; so are the results of a graph.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from .. import _torch
from ..ir.subgraph import Subgraph, is_random_node

__all__ = ["Placing", "is_mixed"]


def is_mixed(body: Subgraph) -> bool:
    """Whether there are tensors of several devices in a graph, but for what is inside its inner operators."""

    def found() -> bool:
        values = _torch.tree_leaves([node.meta.get("val") for node in body.module.graph.nodes])
        return len({x.device for x in values if isinstance(x, Tensor)}) > 1

    return body.derive("is mixed", found)


class Placing(fx.Interpreter):
    """Runs a graph on inputs some of which are elsewhere, or differ between lanes: NOTE [Numbers of lanes]."""

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_function" or n.target is operator.getitem:
            return super().run_node(n)
        if (
            not isinstance(n.target, _torch.OpOverload)
            or n.target.namespace != "aten"
            or is_random_node(n, self.module)
        ):
            return self._run_with(n, self._back)
        operands = [x for node in n.all_input_nodes if isinstance(x := self.env[node], Tensor)]
        there = next((x.device for x in operands if x.device.type != "cpu"), None)
        is_apart = any(map(self._has_moved, n.all_input_nodes)) or any(
            x.device.type == "cpu" and _torch.is_batched(x) for x in operands
        )
        if there is None or not is_apart:
            return super().run_node(n)
        return self._run_with(n, lambda node: _to(self.env[node], there))

    def _run_with(self, n: fx.Node, value: Callable[[fx.Node], Any]) -> Any:
        args, kwargs = fx.map_arg((n.args, n.kwargs), value)
        return n.target(*args, **kwargs)  # type: ignore[operator]

    def _has_moved(self, node: fx.Node) -> bool:
        value = self.env[node]
        return isinstance(value, Tensor) and value.device != node.meta["val"].device

    def _back(self, node: fx.Node) -> Any:
        return self.env[node].to(node.meta["val"].device) if self._has_moved(node) else self.env[node]


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) and value.device.type == "cpu" else value
