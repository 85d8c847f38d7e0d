"""The cheapest set of values to save, as a minimum cut.

Each value is an edge of a network, from its being computed to its being read, whose capacity is what it takes to save
it; what is computed from it follows by edges that can't be cut. A cut between what may not be computed again (the
source) and what is needed (the sink) is a set of values to save. (The same formulation is in torch's
``min_cut_rematerialization_partition``.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import fx

__all__ = ["Cost", "least_saved"]


class Cost(NamedTuple):
    """``size``: what saving takes, None if that is impossible; ``is_fixed``: it can't be computed again."""

    size: int | None
    is_fixed: bool


def least_saved(needed: Iterable[fx.Node], cost: Callable[[fx.Node], Cost | None]) -> set[fx.Node] | None:
    """The values to save so that all ``needed`` ones can be had, or None if that is impossible.

    ``cost`` returns None for a value that is there anyway. Of several cheapest sets it is the one that leaves the
    fewest values to compute.
    """
    needed = set(needed)
    costs = _region(needed, cost)
    if all(c.is_fixed == (c.size is not None) for c in costs.values()):
        return {node for node, c in costs.items() if c.is_fixed}  # there is no choice
    import networkx  # torch depends on it; importing it takes long

    network = networkx.DiGraph()
    network.add_nodes_from(("source", "sink"))
    for node, (size, is_fixed) in costs.items():
        network.add_edge((node, "made"), (node, "read"), **({} if size is None else {"capacity": size}))
        if is_fixed:
            network.add_edge("source", (node, "made"))
        else:
            network.add_edges_from(((n, "read"), (node, "made")) for n in node.all_input_nodes if n in costs)
        if node in needed:
            network.add_edge((node, "read"), "sink")
    try:
        flow = networkx.algorithms.flow.boykov_kolmogorov
        _, (_, sinks) = networkx.minimum_cut(network, "source", "sink", flow_func=flow)
    except networkx.NetworkXUnbounded:
        return None
    return {node for node in costs if (node, "read") in sinks and (node, "made") not in sinks}


def _region(needed: set[fx.Node], cost: Callable[[fx.Node], Cost | None]) -> dict[fx.Node, Cost]:
    """The values from which the needed ones follow, back to those that can't be computed again."""
    costs: dict[fx.Node, Cost] = {}
    todo, seen = list(needed), set(needed)
    while todo:
        node = todo.pop()
        found = cost(node)
        if found is None:
            continue
        costs[node] = found
        if not found.is_fixed:
            fresh = [n for n in node.all_input_nodes if n not in seen]
            seen.update(fresh)
            todo.extend(fresh)
    return costs
