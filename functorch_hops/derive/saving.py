"""What is known of a value that reverse mode could save: how it was made, what it is called, what saving it takes.

A *policy* is a function of such a value: whether it is saved. It has no say where there is no choice: inputs are there
anyway, and random numbers are always saved, so the backward pass sees those that the forward pass drew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from .._torch import HigherOrderOperator, OpOverload, is_pointwise, is_unbacked, size_hint
from ..ir import memory
from ..ir.selection import finds_selected
from ..ir.subgraph import is_random_node, params_of

__all__ = ["Policy", "Value", "bytes_of", "is_cheap", "is_random", "is_saved", "is_storable", "is_view", "maker"]


@dataclass(frozen=True)
class Value:
    """``operator``: an ATen operator, or the name of an operator of this library; ``names``: by ``checkpoint_name``."""

    operator: OpOverload | str
    names: frozenset[str]


Policy = Callable[[Value], bool]


def is_saved(policy: Policy, node: fx.Node, module: fx.GraphModule) -> bool:
    """Whether a policy saves a value. It saves what an operator of this library returns, its residuals included, if it
    saves anything in the operator's bodies.
    """
    source = maker(node)
    params = params_of(source, module)
    operator: Any = source.target if params is None else params.operator.label
    if policy(Value(operator, frozenset(_names(node, module)))):
        return True
    bodies = () if params is None else params.bodies
    return any(
        is_saved(policy, inner, body.module)
        for body in bodies
        for inner in body.module.graph.nodes
        if inner.op == "call_function" and isinstance(inner.meta.get("val"), Tensor)
    )


def _names(node: fx.Node, module: fx.GraphModule) -> list[str]:
    """The names that a value was given, directly or by naming what was named before."""
    names = []
    for user in node.users:
        params = params_of(user, module)
        if params is not None and params.operand_name is not None:
            names += [params.operand_name, *(name for element in user.users for name in _names(element, module))]
    return names


def maker(node: fx.Node) -> fx.Node:
    """The node that computes a value: of an element of a tuple the one that made the tuple."""
    source = node.args[0] if node.args else None
    is_element = isinstance(source, fx.Node) and isinstance(source.meta.get("val"), (tuple, list))
    return source if is_element and isinstance(source, fx.Node) else node


def is_random(node: fx.Node, module: fx.GraphModule) -> bool:
    return is_random_node(maker(node), module)


def is_storable(node: fx.Node) -> bool:
    """Whether a loop can stack the value: a tensor of a shape that is known."""
    value: Any = node.meta.get("val")
    return isinstance(value, Tensor) and not any(map(is_unbacked, value.shape))


def bytes_of(node: fx.Node) -> int:
    value: Tensor = node.meta["val"]
    return math.prod(map(size_hint, value.shape)) * value.element_size()


def is_view(node: fx.Node) -> bool:
    """Whether a value is computed by nothing: memory of another value, or another value under a name."""
    return memory.is_view(maker(node))


_COPIES = (
    torch.ops.aten._to_copy.default,
    torch.ops.aten.cat.default,
    torch.ops.aten.stack.default,
    torch.ops.aten.flip.default,
    torch.ops.aten.zeros_like.default,
    torch.ops.aten.ones_like.default,
    torch.ops.aten.full_like.default,
)


def is_cheap(node: fx.Node, module: fx.GraphModule) -> bool:
    """Whether to compute a value takes little more than to read it: views, copies and pointwise work.

    Everything else is not: products, convolutions, reductions, sorts, operators of this library, and what nobody here
    knows. Nor is a comparison whose result another computation may not repeat: see NOTE [What a maximum is taken of is
    computed once].
    """
    target = maker(node).target
    if finds_selected(node):
        return False
    if is_view(node) or not isinstance(target, (OpOverload, HigherOrderOperator)):
        return True
    return target in _COPIES or is_pointwise(target)
