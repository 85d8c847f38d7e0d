"""Carries of which a step writes to a part.

NOTE [Carries updated in place] Functional code that writes to a part of a carry, a row of a table, makes another table,
and its derivative adds a table of zeros but for that row to the cotangent of the table. A step would take as long as
the carry is large. So the graph of a step writes to the operand, where this can't be told from what it says: all that
reads the old value comes before the writes, and none of it is a result. Inductor keeps the order of the reads and
writes of a buffer; only what is written, and where, it may compute in the kernel that writes. That is stored first if
it is made of the old value.
"""

from __future__ import annotations

import graphlib
import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from ...ir.memory import is_view
from ..barrier import stored
from .sizes import Size, hint, size_of, symbols

__all__ = ["update_in_place"]

aten = torch.ops.aten

_FEW = 64
"""Elements of which a copy costs nothing."""

_WRITES: dict[Any, Any] = {
    aten._unsafe_index_put.default: aten.index_put_.default,
    aten.index_put.default: aten.index_put_.default,
    aten.scatter.src: aten.scatter_.src,
    aten.scatter.value: aten.scatter_.value,
    aten.scatter_add.default: aten.scatter_add_.default,
}
_PARTS: dict[Any, Any] = {aten.select_scatter.default: aten.select.int, aten.slice_scatter.default: aten.slice.Tensor}
"""Writes to what these show."""


class _Writes(NamedTuple):
    """``total`` is what was before but for what ``nodes`` write, or add (``are_sums``) where they write it to zeros."""

    total: fx.Node
    nodes: list[fx.Node]
    are_sums: bool


def update_in_place(module: fx.GraphModule, n_carry: int, mode: Any) -> frozenset[int]:
    """Let the graph of a step, whose first inputs and outputs are carries, write to its inputs; which it writes to."""
    graph = _Graph(module.graph, mode)
    carries = module.graph.find_nodes(op="placeholder")[:n_carry]
    results: Any = module.graph.output_node().args[0]
    written = dict[int, list[_Writes]]()
    for i, carry in enumerate(carries):
        several = _writes_between(carry, results[i])
        if several and hint(_numel(carry)) >= _FEW and sum(x in _shown([several[-1].total]) for x in results) == 1:
            written[i] = several
    if not written:
        return frozenset()
    versions = {i: [carries[i], *(writes.total for writes in several)] for i, several in written.items()}
    graph.store_old(versions.values(), written.values())
    order = list(module.graph.nodes)
    before = {node: set(node.all_input_nodes) for node in order}
    for first, second in itertools.pairwise(node for node in order if node.is_impure()):
        before[second].add(first)
    for i in list(written):
        tried = {node: set(earlier) for node, earlier in before.items()}
        for old, new in itertools.pairwise(versions[i]):
            tried[new].update(x for x in _readers(old) if x is not new)
        found = _in_order(tried)
        if found is None:
            del written[i]
        else:
            before, order = tried, found
    end = module.graph.output_node()
    for node in order:
        if node is not end:
            end.prepend(node)
    for i, several in written.items():
        for writes in several:
            graph.write_all(carries[i], writes)
        results[i].replace_all_uses_with(carries[i])
    module.graph.eliminate_dead_code()
    return frozenset(written)


def _in_order(before: Mapping[fx.Node, set[fx.Node]]) -> list[fx.Node] | None:
    """All nodes, each behind those that come ``before`` it, and else as they are; None if there is no such order."""
    nodes = list(before)
    places = {node: i for i, node in enumerate(nodes)}
    sorter = graphlib.TopologicalSorter(before)
    try:
        sorter.prepare()
    except graphlib.CycleError:
        return None
    ready, order = list[int](), list[fx.Node]()
    while sorter.is_active():
        for node in sorter.get_ready():
            heapq.heappush(ready, places[node])
        order.append(nodes[heapq.heappop(ready)])
        sorter.done(order[-1])
    return order


def _writes_between(carry: fx.Node, result: fx.Node) -> list[_Writes]:
    """The writes that make ``result`` of a carry, the first ones first; none if something else is done to it."""
    found: list[_Writes] = []
    node = result
    while node is not carry:
        before: Any = node.args[0] if node.args else None
        if node.target in _WRITES or node.target in _PARTS:
            found.append(_Writes(node, [node], are_sums=False))
        elif node.target is aten.add.Tensor and not node.kwargs:
            before, part = node.args if _is_zero_but_for_a_part(node.args[1], node) else node.args[::-1]
            if not _is_zero_but_for_a_part(part, node):
                return []
            found.append(_Writes(node, _terms(part), are_sums=True))
        elif node.target is not aten.view.default or symbols(_shape(node)):
            return []
        if not isinstance(before, fx.Node) or not _is_like(before, node, node.target is aten.view.default):
            return []
        node = before
    return found[::-1] if _is_like(result, carry) else []


def _terms(part: Any) -> list[fx.Node]:
    return [x for term in part.args for x in _terms(term)] if part.target is aten.add.Tensor else [part]


def _leaves(node: fx.Node, is_sum: bool) -> Iterator[fx.Node]:
    """What writes values, where a part of a part is written."""
    value = node.args[1]
    if is_sum and node.target in _PARTS and _is_zero_but_for_a_part(value, node):
        for term in _terms(value):
            yield from _leaves(term, True)
    else:
        yield node


def _is_zero_but_for_a_part(node: Any, total: fx.Node) -> bool:
    """Of what only ``total`` reads."""
    if not isinstance(node, fx.Node) or list(node.users) != [total] or not _is_like(node, total):
        return False
    if node.target is aten.add.Tensor:
        return not node.kwargs and all(_is_zero_but_for_a_part(x, node) for x in node.args)
    accumulates = node.target is aten.scatter_add.default or (node.target in _PUTS and node.args[3:] == (True,))
    return (accumulates or node.target in _PARTS) and not node.kwargs and _is_zero(node.args[0])


_PUTS = aten.index_put.default, aten._unsafe_index_put.default


def _is_zero(node: Any) -> bool:
    return node.target is aten.full.default and node.args[1] == 0


def _is_like(a: fx.Node, b: fx.Node, any_shape: bool = False) -> bool:
    x, y = a.meta["val"], b.meta["val"]
    return x.dtype == y.dtype and (any_shape or _shape(a) == _shape(b))


def _shape(node: fx.Node) -> list[Size]:
    return list(map(size_of, node.meta["val"].shape))


def _numel(node: fx.Node) -> Size:
    return math.prod(_shape(node))


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """What reads a value, itself or through views."""
    for user in node.users:
        if is_view(user):
            yield from _readers(user)
        else:
            yield user


def _dependent(node: fx.Node) -> set[fx.Node]:
    found = {node}
    for later in _behind(node):
        if not found.isdisjoint(later.all_input_nodes):
            found.add(later)
    return found


def _behind(node: fx.Node) -> Iterator[fx.Node]:
    while node.next.op != "root":
        node = node.next
        yield node


def _shown(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Values and all views of them."""
    shown = set(nodes)
    for node in nodes:
        shown.update(later for later in _behind(node) if is_view(later) and later.args[0] in shown)
    return shown


class _Graph(NamedTuple):
    graph: fx.Graph
    mode: Any

    def store_old(self, versions: Iterable[Sequence[fx.Node]], written: Iterable[Sequence[_Writes]]) -> None:
        """Store what is written, and where, if it is made of an old value of a carry, and results that are parts of
        one: they are read where that is.
        """
        old = {node for several in versions for node in several[:-1]}
        made_of_old = set[fx.Node]().union(*map(_dependent, old))
        for writes in itertools.chain.from_iterable(written):
            for leaf in [leaf for node in writes.nodes for leaf in _leaves(node, writes.are_sums)]:
                rest = fx.node.map_arg(leaf.args[1:], lambda x: self.stored(x) if x in made_of_old else x)
                leaf.args = leaf.args[0], *rest
        end, parts = self.graph.output_node(), _shown(old)
        results: Any = end.args[0]
        end.args = ([self.stored(x) if x in parts else x for x in results],)

    def write_all(self, carry: fx.Node, writes: _Writes) -> None:
        with self.graph.inserting_before(writes.total):
            for node in writes.nodes:
                self.write(carry, node, writes.are_sums)
            writes.total.replace_all_uses_with(self.shown_as(writes.total, carry))

    def write(self, target: fx.Node, node: fx.Node, is_sum: bool) -> None:
        """Write to ``target``, a carry or a view of it, what ``node`` writes to its operand."""
        target, rest = self.shown_as(node, target), node.args[1:]
        if node.target in _WRITES:
            self.add(_WRITES[node.target], target, *rest)
            return
        value, *where = rest
        shown = self.add(_PARTS[node.target], target, *where)
        if is_sum and _is_zero_but_for_a_part(value, node):
            for term in _terms(value):
                self.write(shown, term, True)
        else:
            self.add(aten.copy_.default, shown, self.add(aten.add.Tensor, shown, value) if is_sum else value)

    def shown_as(self, node: fx.Node, target: fx.Node) -> fx.Node:
        """``target`` in the shape of ``node``."""
        if _shape(target) == _shape(node):
            return target
        return self.add(aten.view.default, target, list(node.meta["val"].shape))

    def stored(self, value: fx.Node) -> fx.Node:
        """A value in memory of its own, from where it is made on."""
        is_input = value.op == "placeholder"
        with self.graph.inserting_after(self.graph.find_nodes(op="placeholder")[-1] if is_input else value):
            copied = self.add(aten.clone.default, value)
        with self.graph.inserting_after(copied):
            return self.add(stored, copied)

    def add(self, target: Any, *args: Any) -> fx.Node:
        node = self.graph.call_function(target, args)
        with self.mode:
            value = target(*fx.node.map_arg(args, lambda x: x.meta["val"]))
        assert isinstance(value, Tensor)
        node.meta["val"] = value
        return node
