"""The results of a jitted call that are operands, views of operands, or views of one another.

NOTE [Results that share memory] A graph returns memory of its own. What a function hands on - an operand, a view of
one, one value twice, a value and a view of it - is therefore no output of the graph. When the call ends it is taken
from the operands and the outputs, by the operators that the function took it by: so it is the object, or the view, with
the gradient history that eager Python returns.

That is done where the recorded graph says that it is right. Operands lie in memory as they like, so operators that read
the layout are no way to a result, and where the trace took an operand for ``contiguous()`` of it, results of one that
is not are copies. A detached alias of memory that is written to has a history of its own (``trace.detached``). Such
results, and views of a value that is not returned itself, stay copies.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from .. import _torch
from ..ir.memory import is_copy, is_view_operator
from ..ir.nodes import size_at, untracked
from ..trace.capture import Capture, current_capture
from ..trace.detached import BARRIERS, memory_chains, written
from ..trace.history import check_behind_leaves, own_leaves

__all__ = ["Returned", "separated"]

_aten = torch.ops.aten

_PLAIN_FORMS: dict[Any, Any] = {
    _aten.view.default: _aten.reshape.default,
    _aten._conj.default: torch.conj,
    _aten.sym_size.int: size_at,
}
"""Operators that assume a layout or know no transform, and what gives the same view."""

_BY_LAYOUT = (_aten.as_strided.default, _aten._reshape_alias.default, _aten.view_as_complex.default, _aten.view.dtype)
"""Views that depend on where the elements of their operand lie in memory."""


class Returned:
    """The results of a call, given its operands and what its graph computed."""

    def __init__(self, graph: fx.Graph, sources: Sequence[int | None], contiguous: Sequence[int]) -> None:
        """``sources``: for each result the operand that it is, or is a view of. ``contiguous``: the operands that were
        contiguous in the trace, which made use of that: of others the results are copies.
        """
        self._taken = _torch.run_of(_torch.new_graph_module(torch.nn.Module(), graph))
        self._sources, self._contiguous = sources, contiguous

    def __call__(self, operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Of a call whose operands are plain: none is lazy, nor a wrapper that is dead."""
        if torch.is_grad_enabled():
            results = self._taken(operands, outputs)
        else:
            with torch.enable_grad():  # what was viewed without, says so itself
                results = self._taken(operands, outputs)
        if not self._contiguous:
            return results
        is_captured = current_capture() is not None  # where the layout of the call is not known
        return self._apart(results, [i for i in self._contiguous if is_captured or not operands[i].is_contiguous()])

    def of_any(self, operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """As a call, for operands that may be other than the graph takes them."""
        plain = [*map(_torch.plain, operands)]
        changed = [i for i, (x, operand) in enumerate(zip(plain, operands)) if x is not operand]
        return self._apart(self(plain, outputs), changed)

    def _apart(self, results: Sequence[Tensor], operands: Sequence[int]) -> Sequence[Tensor]:
        """The results, copied where they are of these operands."""
        if not operands:
            return results
        return [
            result.clone(memory_format=torch.contiguous_format) if source in operands else result
            for result, source in zip(results, self._sources)
        ]


def separated(results: list[Tensor], capture: Capture) -> tuple[list[Tensor], Returned | None]:
    """What the graph has to compute for these results, and how they are had then; None if they are just that."""
    with _torch.without_torch_function():
        values = [capture.lift(t) for t in results]
        memory = [_torch.storage_key(_torch.base_tensor(t)) for t in values]
        leaves = own_leaves(capture, values)
        check_behind_leaves(capture, values, leaves)
        if len({*memory}) == len(memory) and not leaves and not any(map(capture.is_from_outside, memory)):
            return results, None
        return _Separation(capture).of(values)


class _NoView(Exception):
    """A value is no view of what is at hand when a call ends."""


class _Separation:
    """Results in the making: the graph that takes them from operands and outputs."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._chains = memory_chains(capture.graph)
        self._changed = {self._chains[target][-1] for node in self._chains for target in written(node)}
        self._graph = fx.Graph()
        self._operands, self._outputs = map(self._graph.placeholder, ("operands", "outputs"))
        self._places = {node: i for i, node in enumerate(capture.graph.find_nodes(op="placeholder"))}
        self._known = {node: self._item(self._operands, i) for node, i in self._places.items()}

    def of(self, values: Sequence[Tensor]) -> tuple[list[Tensor], Returned | None]:
        order, leaves = {node: i for i, node in enumerate(self._chains)}, own_leaves(self._capture, values)
        made = [self._memory(self._capture.node_of(t)) if self._is_plain(t) else None for t in values]
        computed: list[Tensor] = []
        results: dict[int, fx.Node] = {}
        for i in sorted(range(len(values)), key=lambda i: -1 if (node := made[i]) is None else order[node]):
            node = made[i]
            try:
                results[i] = self._taken(node)
            except _NoView:
                results[i] = self._item(self._outputs, len(computed))
                computed.append(values[i])
                if i in leaves:
                    results[i] = self._graph.call_function(Tensor.requires_grad_, (results[i],))
                    computed[-1] = values[i].detach()
                if node is not None:
                    self._known[node] = results[i]
        self._graph.output(tuple(results[i] for i in range(len(values))))
        self._graph.eliminate_dead_code()
        sources = [None if node is None else self._source(node) for node in made]
        operands = {source for source in sources if source is not None}
        return computed, Returned(self._graph, sources, [*filter(self._is_contiguous, operands)])

    def _item(self, values: fx.Node, place: int) -> fx.Node:
        return self._graph.call_function(operator.getitem, (values, place))

    def _source(self, node: fx.Node) -> int | None:
        """The operand in whose memory a value lies."""
        return self._places.get(self._memory(self._chains[node][-1]))

    def _is_contiguous(self, operand: int) -> bool:
        """Whether the trace may have taken a value for this operand because that is contiguous there."""
        memory = [_torch.storage_key(node.meta["val"]) for node, i in self._places.items() if i == operand]
        return any(map(self._capture.is_taken_as_contiguous, memory))

    def _is_plain(self, t: Tensor) -> bool:
        """Whether a node says all of a result: it is of no transform, and began no history of its own."""
        if _torch.is_wrapped(t) or not self._capture.owns(t):
            return False
        return not (t.requires_grad and t.is_leaf) or self._capture.node_of(t).op == "placeholder"

    def _memory(self, node: fx.Node) -> fx.Node:
        """The value to which a node writes, if it does; of a buffer's copy the buffer."""
        while (targets := written(node)) and torch.Tag.inplace_view not in node.target.tags:  # type: ignore[union-attr]
            if targets != self._chains[node][1:2]:
                break
            node = targets[0]
        buffers = self._capture.buffers
        if is_copy(node) and buffers is not None and buffers.is_copy(_torch.storage_key(node.meta["val"])):
            return node.args[0].args[0]  # type: ignore[union-attr, return-value]
        return node

    def _taken(self, node: fx.Node | None) -> fx.Node:
        """A value, taken from what is at hand."""
        if node is None:
            raise _NoView
        node = self._memory(node)
        if node not in self._known:
            if not (self._is_view(node) or _is_size(node)):
                raise _NoView
            args, kwargs = fx.map_arg((node.args, node.kwargs), self._taken)
            target: Any = _PLAIN_FORMS.get(node.target, node.target)
            self._known[node] = self._graph.call_function(target, args, kwargs)
        return self._known[node]

    def _is_view(self, node: fx.Node) -> bool:
        if node.target in BARRIERS and self._chains[node][-1] in self._changed:
            return False
        if node.target in (untracked, operator.getitem):
            return True
        is_of_torch = isinstance(node.target, _torch.OpOverload) and node.target.namespace == "aten"
        return is_of_torch and node.target not in _BY_LAYOUT and is_view_operator(node.target)


def _is_size(node: fx.Node) -> bool:
    """Whether a node is an open size, or computed from such."""
    is_number = isinstance(node.meta.get("val"), torch.SymInt)
    return is_number and (node.target is _aten.sym_size.int or not isinstance(node.target, _torch.OpOverload))
