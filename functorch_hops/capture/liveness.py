"""Dead-code elimination through the bodies of operators.

An unused output of a node is dead inside the node's body too: stacks that nobody reads (each backward pass is itself
prepared for differentiation, and most never are), carries that feed only themselves, operands that nothing reads any
more.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from .subgraph import Mask, StaticParameters, Subgraph, is_random_node, static_of

__all__ = ["Pruned", "eliminate_dead_code", "needed_inputs", "restricted"]


@dataclass(frozen=True)
class Pruned:
    """Smaller parameters of an operator, and which operands and outputs are left."""

    static: StaticParameters
    operands: Mask
    outputs: Mask


def needed_inputs(body: Subgraph, outputs: Sequence[bool]) -> Mask:
    """Which inputs the marked outputs (and the random numbers that are drawn) depend on."""
    key = ("needed inputs", tuple(outputs))
    return body.derive(key, lambda: _needed_inputs(body, outputs))


def _roots(body: Subgraph, outputs: Sequence[bool]) -> list[fx.Node]:
    random = [n for n in body.module.graph.nodes if is_random_node(n, body.module)]
    return [*(n for n, o in zip(body.output_nodes(), outputs) if o), *random]


def _needed_inputs(body: Subgraph, outputs: Sequence[bool]) -> Mask:
    needed: set[fx.Node] = set()
    todo = _roots(body, outputs)
    while todo:
        node = todo.pop()
        if node not in needed:
            needed.add(node)
            todo.extend(node.all_input_nodes)
    return tuple(n in needed for n in body.module.graph.nodes if n.op == "placeholder")


def restricted(body: Subgraph, inputs: Mask, outputs: Mask) -> Subgraph:
    """The body with the marked inputs and outputs only; the marked outputs must not depend on other inputs."""
    if all(inputs) and all(outputs):
        return body
    return body.derive(("restricted", inputs, outputs), lambda: _restricted(body, inputs, outputs))


def _restricted(body: Subgraph, inputs: Mask, outputs: Mask) -> Subgraph:
    graph = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    kept = iter(inputs)
    metas = [m for m, k in zip(body.inputs, inputs) if k]
    for node in body.module.graph.nodes:
        if node.op == "placeholder":
            if next(kept):
                new[node] = graph.placeholder(f"arg{len(new)}")
                new[node].meta = dict(node.meta)
        elif node.op == "output":
            graph.output(tuple(new[n] for n, k in zip(body.output_nodes(), outputs) if k))
        elif all(n in new for n in node.all_input_nodes):
            new[node] = graph.node_copy(node, new.__getitem__)
    module = fx.GraphModule(body.module, graph)
    eliminate_dead_code(module)
    return Subgraph.intern(module, metas, [m for m, k in zip(body.outputs, outputs) if k])


def eliminate_dead_code(module: fx.GraphModule) -> None:
    """Remove what no output needs, here and inside the bodies of nodes."""
    for node in reversed(module.graph.nodes):
        static = static_of(node, module)
        if static is not None:
            _prune(node, static, module)
    module.graph.eliminate_dead_code(
        is_impure_node=lambda node: node.op in ("placeholder", "output") or is_random_node(node, module)
    )
    module.recompile()


def _prune(node: fx.Node, static: StaticParameters, module: fx.GraphModule) -> None:
    for user in list(node.users):
        if user.target is operator.getitem and not user.users:
            module.graph.erase_node(user)
    if not node.users:
        if not is_random_node(node, module):
            module.graph.erase_node(node)
        return
    if any(user.target is not operator.getitem for user in node.users):
        return
    used = {int(user.args[1]) for user in node.users}  # type: ignore[arg-type]
    mask = tuple(i in used for i in range(static["n_outputs"]))
    pruned: Pruned | None = None if all(mask) else node.target.rules.prune(static, mask)  # type: ignore[union-attr]
    if pruned is None or (all(pruned.operands) and all(pruned.outputs)):
        return
    _rewrite(node, pruned, module)


def _rewrite(node: fx.Node, pruned: Pruned, module: fx.GraphModule) -> None:
    name = f"{node.args[0].target}_pruned"  # type: ignore[union-attr]
    module.register_module(name, pruned.static)
    with module.graph.inserting_before(node):
        parameters = module.graph.get_attr(name)
    node.args = (parameters, *(a for a, k in zip(node.args[1:], pruned.operands) if k))
    places = {old: new for new, old in enumerate(i for i, k in enumerate(pruned.outputs) if k)}
    for user in list(node.users):
        user.args = (node, places[int(user.args[1])])  # type: ignore[arg-type]
    values = node.meta.get("val")
    if values is not None:
        node.meta["val"] = tuple(v for v, k in zip(values, pruned.outputs) if k)
