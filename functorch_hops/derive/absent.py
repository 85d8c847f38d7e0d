"""Backward graphs to which no gradient comes from some outputs.

NOTE [Absent cotangents] Where no gradient arrives, autograd does nothing: an output that nobody differentiates has no
part in the gradient, were its own derivative infinite. A call has one backward graph for all of its outputs, in which
zeros for absent cotangents would give ``0 * inf``, NaN. What is computed from cotangents is linear in them, so what
follows from absent ones alone is zero by structure, and is not computed, nor in the bodies of operators. A rule of the
user's may make of cotangents what is not linear in them. It runs as soon as one of them is there, and gets zeros for
the others: an operator before it says so (``materializing``). What a loop carries is zero in its first step at most,
and so is not known to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..ir.build import add_params, copy_of
from ..ir.dependence import Through, depends
from ..ir.meta import Mask, is_differentiable
from ..ir.origin import made_for
from ..ir.sizes import is_closed
from ..ir.subgraph import Params, Subgraph, params_of
from ..passes.cleaning import clean

__all__ = ["without_cotangents"]

_aten = torch.ops.aten


def without_cotangents(backward: Subgraph, cotangents: Mask, absent: Mask) -> Subgraph:
    """The same graph where some of the inputs that are ``cotangents`` are absent; these it does not read."""
    if not any(absent):
        return backward
    return backward.derive(("without cotangents", cotangents, absent), lambda: _without(backward, cotangents, absent))


def _without(body: Subgraph, cotangents: Mask, absent: Mask) -> Subgraph:
    module = copy_of(body)
    inputs = module.graph.find_nodes(op="placeholder")
    marks = _Marks(module)
    for node, is_cotangent, is_absent in zip(inputs, cotangents, absent, strict=True):
        marks.live[node], marks.zero[node] = is_cotangent and not is_absent, is_absent
    for node in list(module.graph.nodes):
        if node.op not in ("placeholder", "output"):
            marks.mark(node)
    for node in list(module.graph.nodes):
        if marks.zero.get(node) is True:
            _read_as_zeros(node, marks)
        elif (params := params_of(node, module)) is not None:
            _specialise(node, params, marks)
    clean(module)
    return Subgraph.intern(module, body.inputs, body.outputs)


class _Marks:
    """What follows from cotangents that are there (``live``), and what from absent ones alone (``zero``); of operators
    with bodies, which outputs do.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.live: dict[fx.Node, bool | Mask] = {}
        self.zero: dict[fx.Node, bool | Mask] = {}

    def mark(self, node: fx.Node) -> None:
        live = self.live[node] = depends(node, self.live, Through.VALUE, self.module)
        reached = depends(node, self.zero, Through.TANGENT, self.module)
        if isinstance(live, tuple) and isinstance(reached, tuple):
            self.zero[node] = tuple(z and not f for z, f in zip(reached, live))
        else:
            self.zero[node] = bool(reached) and not live


def _read_as_zeros(node: fx.Node, marks: _Marks) -> None:
    """What is computed from other values too, or returned, reads zeros in the place of this one."""
    readers = [user for user in node.users if marks.zero.get(user) is not True]
    value = node.meta.get("val")
    if not readers or not isinstance(value, Tensor):
        return
    graph = node.graph
    with graph.inserting_before(_after_inputs(node)):
        if is_closed(value.shape):
            options: dict[str, Any] = {"dtype": value.dtype, "device": value.device}
            zeros = graph.call_function(_aten.zeros.default, (list(value.shape),), options)
        else:
            zeros = graph.call_function(_aten.zeros_like.default, (node,))
    zeros.meta["val"], marks.zero[zeros] = value, True
    for user in readers:
        user.replace_input_with(node, zeros)


def _after_inputs(node: fx.Node) -> fx.Node:
    following = node.next
    while following.op == "placeholder":
        following = following.next
    return following


def _specialise(node: fx.Node, params: Params, marks: _Marks) -> None:
    """Let the bodies of an operator know which of their inputs are zero in each run."""
    operands: Sequence[fx.Node | None] = params.steady(node.args[1:])
    absent = tuple(a is not None and marks.zero.get(a) is True for a in operands)
    if not any(absent):
        return

    def change(body: Subgraph) -> Subgraph:
        differentiable = (is_differentiable(meta.dtype) for meta in body.inputs)
        live = tuple(d if a is None else bool(marks.live.get(a)) for a, d in zip(operands, differentiable))
        return without_cotangents(body, tuple(f or z for f, z in zip(live, absent)), absent)

    with made_for(params.origin):
        changed = params.with_bodies(change)
    with node.graph.inserting_before(node):
        node.update_arg(0, add_params(marks.module, node.graph, changed))
