"""Branches in the body of a loop as selects.

NOTE [Selects] All branches are computed, and each lane selects. That is right where every operator computes lane by
lane and none can fail; and a GPU loses little, as lanes of a warp run in step anyway. What a vmap made of a cond asks
whether any lane takes a branch, which is a look at other lanes: it is no select.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import fx

from ....derive.numbers import without_numbers
from ....ir.build import add_params, copy_nodes, copy_of
from ....ir.subgraph import Subgraph, params_of
from ....passes.cleaning import clean
from ..forms import Branches, Refused, Scan, While
from ..masked import is_total

__all__ = ["with_selects"]

aten = torch.ops.aten


def with_selects(body: Subgraph) -> Subgraph:
    """The same graph, and the bodies of loops in it, with selects for branches."""
    body = without_numbers(body)
    if not any(params_of(node, body.module) for node in body.module.graph.nodes):
        return body
    module = copy_of(body)
    for node in list(module.graph.nodes):
        params = params_of(node, module)
        if params is None:
            continue
        operands = [x.meta["val"] if isinstance(x, fx.Node) else x for x in node.args[1:]]
        form = params.operator.rules.form(params, operands)
        if isinstance(form, Branches):
            _select(node, form, params.operator.label, module)
        elif isinstance(form, Scan | While):
            selecting = {inner: with_selects(inner) for inner in params.run_bodies}
            new = params.with_bodies(functools.partial(_replaced, selecting))
            with module.graph.inserting_before(node):
                node.args = (add_params(module, module.graph, new), *node.args[1:])
        else:
            raise Refused(f"{params.operator.label} is in its body")
    clean(module)
    return Subgraph.intern(module, body.inputs, body.outputs)


def _replaced(bodies: Mapping[Subgraph, Subgraph], body: Subgraph) -> Subgraph:
    return bodies.get(body, body)


def _select(node: fx.Node, form: Branches, label: str, module: fx.GraphModule) -> None:
    branches = [with_selects(branch) for branch in form.branches]
    for branch in branches:
        for inner in branch.module.graph.nodes:
            if inner.op == "call_function" and not is_total(inner):
                raise Refused(f"{label} is in its body, and not all lanes may run {inner.target}")
    graph: Any = node.graph
    selector, *rest = cast("list[fx.Node]", node.args[1:])
    with graph.inserting_before(node):
        results = [copy_nodes(branch, rest, module, graph) for branch in branches]
        takes = [graph.call_function(aten.eq.Scalar, (selector, i)) for i in range(len(branches))]
        for user in list(node.users):
            column = [outs[cast("int", user.args[1])] for outs in results]
            value = functools.reduce(
                lambda old, new: graph.call_function(aten.where.self, (new[0], new[1], old)),
                zip(takes[1:], column[1:]),
                column[0],
            )
            user.replace_all_uses_with(value)
            graph.erase_node(user)
    graph.erase_node(node)
