"""The cheapest set of values to save, as a minimum cut.

Each value is an edge of a network, from its being computed to its being read, whose capacity is what it takes to save
it; what is computed from it follows by edges that can't be cut. A cut between what may not be computed again (the
source) and what is needed (the sink) is a set of values to save. (The same formulation is in torch's
``min_cut_rematerialization_partition``.)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

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
    capacities: dict[tuple[Any, Any], float] = {}
    for node, (size, is_fixed) in costs.items():
        made, read = (node, "made"), (node, "read")
        capacities[made, read] = math.inf if size is None else size
        if is_fixed:
            capacities["source", made] = math.inf
        else:
            capacities.update((((n, "read"), made), math.inf) for n in node.all_input_nodes if n in costs)
        if node in needed:
            capacities[read, "sink"] = math.inf
    sinks = _before_sink(capacities)
    if sinks is None:
        return None
    return {node for node in costs if (node, "read") in sinks and (node, "made") not in sinks}


def _before_sink(capacities: dict[tuple[Any, Any], float]) -> set[Any] | None:
    """What is behind the last minimum cut: the vertices that reach the sink by edges with capacity left by a maximum
    flow. None if every cut is infinite.

    Source: E. A. Dinic, "Algorithm for solution of a problem of maximum flow in networks with power estimation", Soviet
    Math. Doklady 11 (1970).
    """
    left: dict[Any, dict[Any, float]] = {"source": {}, "sink": {}}
    for (a, b), capacity in capacities.items():
        left.setdefault(a, {})[b] = capacity
        left.setdefault(b, {}).setdefault(a, 0)
    while True:
        levels = _levels("source", lambda a: (b for b, capacity in left[a].items() if capacity > 0))
        if "sink" not in levels:
            return {*_levels("sink", lambda b: (a for a in left[b] if left[a][b] > 0))}
        ways = {a: [b for b in left[a] if levels.get(b) == level + 1] for a, level in levels.items()}
        path = ["source"]
        while path:
            here = path[-1]
            if here == "sink":
                amount = min(left[a][b] for a, b in itertools.pairwise(path))
                if amount == math.inf:
                    return None
                for a, b in itertools.pairwise(path):
                    left[a][b] -= amount
                    left[b][a] += amount
                del path[next(i for i, (a, b) in enumerate(itertools.pairwise(path), 1) if left[a][b] == 0) :]
                continue
            while ways[here] and left[here][ways[here][-1]] == 0:
                ways[here].pop()
            if ways[here]:
                path.append(ways[here][-1])
            else:
                path.pop()
                if path:
                    ways[path[-1]].pop()


def _levels(start: Any, following: Callable[[Any], Iterable[Any]]) -> dict[Any, int]:
    """How many edges each vertex is from ``start``, as far as it can be reached."""
    levels, now = {start: 0}, [start]
    while now:
        fresh = dict.fromkeys(b for a in now for b in following(a) if b not in levels)
        levels.update(dict.fromkeys(fresh, levels[now[0]] + 1))
        now = [*fresh]
    return levels


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
