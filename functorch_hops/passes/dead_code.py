"""Dead-code elimination through the bodies of operators.

An unused output of a node is dead inside the node's body too: stacks that nobody reads (each backward pass is itself
prepared for differentiation, and most never are), carries that feed only themselves, operands that nothing reads any
more.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from ..ir.build import add_params
from ..ir.dependence import Pruned
from ..ir.origin import made_for
from ..ir.subgraph import Params, is_pinned, params_of

__all__ = ["eliminate_dead_code"]


def eliminate_dead_code(module: fx.GraphModule) -> None:
    """Remove what no output needs, here and inside the bodies of nodes."""
    for node in reversed(module.graph.nodes):
        params = params_of(node, module)
        if params is not None:
            _prune(node, params, module)
    module.graph.eliminate_dead_code(
        is_impure_node=lambda node: node.op in ("placeholder", "output") or is_pinned(node, module)
    )
    module.recompile()


def _prune(node: fx.Node, params: Params, module: fx.GraphModule) -> None:
    for user in list(node.users):
        if user.target is operator.getitem and not user.users:
            module.graph.erase_node(user)
    if not node.users:
        if not is_pinned(node, module):
            module.graph.erase_node(node)
        return
    if any(user.target is not operator.getitem for user in node.users):
        return
    used = {int(user.args[1]) for user in node.users}  # type: ignore[arg-type]
    mask = tuple(i in used for i in range(params.n_outputs))
    with made_for(params.origin):
        pruned: Pruned[Any] | None = node.target.rules.prune(params, mask)  # type: ignore[union-attr]
    if pruned is None or (all(pruned.operands) and all(pruned.outputs)):
        return
    _rewrite(node, pruned, module)


def _rewrite(node: fx.Node, pruned: Pruned[Any], module: fx.GraphModule) -> None:
    with module.graph.inserting_before(node):
        parameters = add_params(module, module.graph, pruned.params)
    node.args = (parameters, *(a for a, k in zip(node.args[1:], pruned.operands) if k))
    places = {old: new for new, old in enumerate(i for i, k in enumerate(pruned.outputs) if k)}
    for user in list(node.users):
        user.args = (node, places[int(user.args[1])])  # type: ignore[arg-type]
    values = node.meta.get("val")
    if values is not None:
        node.meta["val"] = tuple(v for v, k in zip(values, pruned.outputs) if k)
