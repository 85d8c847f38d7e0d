"""Memory that values share in a recorded graph, and the gradient histories that they do not share.

NOTE [Each alias has a history of its own] ``d = y.detach()`` shares the memory of ``y`` but not its gradient history,
and so does each view taken under ``no_grad``. A write through either changes the values of both; the history of the
other stays what it was. torch's functionalization knows one value for each piece of memory, with one history: a write
through ``d`` would detach ``y``, or the next read of ``d`` would be differentiated. So before it runs, such an alias
gets memory of its own (a *region*: what was allocated at once, or begins at a barrier), and each write is followed by
assignments of the new values to the regions around it (``assigned``, which keeps the history of its target). Those that
nobody reads afterwards are dead code. What ``y.data = z`` makes of ``y`` is an alias of ``z``, too (``rebound``).
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from .._torch import OpOverload
from ..ir.meta import is_differentiable
from ..ir.nodes import assigned, behind, rebound, untracked

__all__ = ["BARRIERS", "depends_on_input", "memory_chains", "separate_detached", "written"]

_DETACHED = (torch.ops.aten.detach.default, untracked)
BARRIERS = (*_DETACHED, rebound)


def separate_detached(graph: fx.Graph) -> None:
    """Give each detached alias memory of its own, see NOTE [Each alias has a history of its own]."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    chains = memory_chains(graph)
    writes = {node: targets for node in order if (targets := written(node))}
    changing = {chains[target][-1] for targets in writes.values() for target in targets}
    barriers = [n for n in order if n.target in BARRIERS and chains[n][-1] in changing]
    own = {barrier: _with_own_memory(barrier) for barrier in barriers}

    def region(node: fx.Node) -> fx.Node:
        return next((n for n in chains[node] if n in own), chains[node][-1])

    links = [(region(chains[barrier][1]), barrier) for barrier in barriers]
    for write, targets in writes.items():
        changed = list(dict.fromkeys(map(region, targets)))
        known = [(around, alias) for around, alias in links if order[alias] < order[write]]
        with graph.inserting_before(write.next):
            for start in changed:
                _spread(start, known, own, set(changed))


def _spread(
    start: fx.Node, links: list[tuple[fx.Node, fx.Node]], own: dict[fx.Node, fx.Node], reached: set[fx.Node]
) -> None:
    """Assign the values of a region to those around it, and theirs to those around them."""
    todo = [start]
    for here in todo:
        for around, alias in links:
            if here is around and alias not in reached:
                _assign(own[alias], _source(alias))
                todo.append(alias)
            elif here is alias and around not in reached:
                _assign(_source(alias), own[alias])
                todo.append(around)
            reached.add(todo[-1])


def _source(alias: fx.Node) -> fx.Node:
    source = alias.args[0]
    assert isinstance(source, fx.Node)
    return source


def _with_own_memory(barrier: fx.Node) -> fx.Node:
    with barrier.graph.inserting_after(barrier):
        copy = barrier.graph.call_function(torch.ops.aten.clone.default, (barrier,))
    copy.meta["val"] = barrier.meta["val"]
    barrier.replace_all_uses_with(copy, lambda user: user is not copy)
    return copy


def _assign(target: fx.Node, value: fx.Node) -> None:
    graph = target.graph
    new = graph.call_function(assigned, (graph.call_function(untracked, (value,)), target))
    graph.call_function(torch.ops.aten.copy_.default, (target, new))


def memory_chains(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Each value, followed by those whose memory it shares, back to the one that it was allocated for."""
    chains: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        source = _shares_memory_of(node)
        chains[node] = [node, *chains[source]] if source is not None else [node]
    return chains


def _shares_memory_of(node: fx.Node) -> fx.Node | None:
    """The argument that a result is a view of, or that was written to."""
    source: object = None
    if node.target in (untracked, rebound, operator.getitem):
        source = node.args[0]
    elif isinstance(node.target, OpOverload) and any(r.alias_info is not None for r in node.target._schema.returns):
        arguments = node.target._schema.arguments
        place = next(i for i, a in enumerate(arguments) if a.alias_info is not None)
        source = node.args[place] if place < len(node.args) else node.kwargs.get(arguments[place].name)
    return source if isinstance(source, fx.Node) else None


def written(node: fx.Node) -> list[fx.Node]:
    """The values that an operator writes to."""
    targets: list[fx.Node] = []
    if isinstance(node.target, OpOverload) and node.target._schema.is_mutable:
        for i, argument in enumerate(node.target._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
                fx.map_arg(value, targets.append)
    return targets


def depends_on_input(node: fx.Node) -> bool:
    """Whether a gradient may lead from a value to an input."""
    ends = behind([node], lambda n: n.target in _DETACHED)
    return any(n.op == "placeholder" and is_differentiable(n.meta["val"].dtype) for n in ends)
