"""Loop-invariant code motion: what a loop computes from its constants alone is computed once, before the loop.

NOTE [When hoisting is right] Graphs are functional, so a value is the same before the loop as in it. But a loop may
take no step, or a lane of a vmap none. Then the hoisted operator runs where it would not have run: it must end, must
not raise, and its derivative, which gets the cotangent zero, must not be infinite (0 * inf). So

- a scan that is known to take a step is hoisted as it is captured, before any transform: the gradient of a hoisted
  value is summed over the steps and pulled back once;
- every loop is hoisted where a graph is compiled, behind all transforms; a loop that may run zero times only for
  operators that always terminate and never raise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from torch import Tensor, fx

from .._torch import OpOverload, is_pointwise
from ..ir.build import Builder, add_params, copy_nodes, copy_of
from ..ir.memory import is_view
from ..ir.meta import Mask
from ..ir.nodes import meta_of
from ..ir.origin import made_for
from ..ir.sizes import is_closed
from ..ir.subgraph import P, Params, Subgraph, is_pinned, params_of
from .cleaning import clean, close

__all__ = ["Hoisted", "hoist_loops", "is_any", "is_costly", "is_total", "not_a_loop", "split_invariant"]

Judgement = Callable[[fx.Node], bool]


@dataclass(frozen=True)
class Hoisted(Generic[P]):
    """The loop without its invariant work: ``params`` takes the old operands and the outputs of ``outside``.

    ``outside`` takes the old operands numbered in ``operands``.
    """

    params: P
    outside: Subgraph
    operands: tuple[int, ...]


def is_costly(node: fx.Node) -> bool:
    """Whether a value is worth computing elsewhere.

    What costs nothing (views, sizes, what is made from no tensor) is not, nor what is broadcast to more than it is made
    from.
    """
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not is_closed(value.shape):
        return False
    producer = node.all_input_nodes[0] if node.all_input_nodes else None
    if producer is None or is_view(node) or (is_view(producer) and isinstance(producer.meta.get("val"), (list, tuple))):
        return False
    tensors = [v for n in node.all_input_nodes if isinstance(v := n.meta.get("val"), Tensor)]
    is_broadcast = is_pointwise(node.target)
    return not is_broadcast or any(is_closed(v.shape) and v.numel() >= value.numel() for v in tensors)


def split_invariant(
    body: Subgraph, constant: Mask, may_move: Judgement, is_worth: Judgement = is_costly
) -> tuple[Subgraph, Subgraph] | None:
    """``outside: constant inputs -> values``, ``inside: inputs, values -> outputs``; None if no value is worth it.

    Values too cheap to move are computed inside the loop from the moved ones.
    """
    key = ("split invariant", constant, may_move, is_worth)
    return body.derive(key, lambda: (_Split(body, constant, may_move, is_worth).graphs(),))[0]


class _Split:
    def __init__(self, body: Subgraph, constant: Mask, may_move: Judgement, is_worth: Judgement) -> None:
        self.body, self.module, self.is_worth = body, body.module, is_worth
        self.constants = [n for n, c in zip(body.input_nodes(), constant) if c]
        self.metas = [m for m, c in zip(body.inputs, constant) if c]
        self.invariant = set(self.constants)
        for node in self.module.graph.nodes:
            if self._moves(node, may_move):
                self.invariant.add(node)

    def _moves(self, node: fx.Node, may_move: Judgement) -> bool:
        if node.op == "get_attr":
            return True
        is_fit = node.op == "call_function" and not is_pinned(node, self.module) and may_move(node)
        return is_fit and all(n in self.invariant for n in node.all_input_nodes)

    def graphs(self) -> tuple[Subgraph, Subgraph] | None:
        values = self._values()
        if not values:
            return None
        outside = Builder(self.module)
        for node, meta in zip(self.constants, self.metas):
            outside.placeholder(node, meta)
        inside = Builder(self.module)
        for node, meta in zip(self.body.input_nodes(), self.body.inputs):
            inside.placeholder(node, meta)
        for node in values:
            inside.placeholder(node, meta_of(node))
        return close(outside, values), close(inside, self.body.output_nodes(), also=self.body.pinned_nodes())

    def _values(self) -> list[fx.Node]:
        """The invariant values that the rest of the body reads, as far back as it is free to compute them inside."""
        todo = [n for node in self.module.graph.nodes if node not in self.invariant for n in node.all_input_nodes]
        found: set[fx.Node] = set()
        seen: set[fx.Node] = set()
        while todo:
            node = todo.pop()
            if node in seen or node not in self.invariant or node in self.constants:
                continue
            seen.add(node)
            if self.is_worth(node):
                found.add(node)
            else:
                todo.extend(node.all_input_nodes)
        return [n for n in self.module.graph.nodes if n in found]


def is_any(node: fx.Node) -> bool:
    return True


def is_total(node: fx.Node) -> bool:
    """Whether an operator ends, and raises for no values of its operands: floats in, floats out, nothing factorised."""
    target = node.target
    if not isinstance(target, OpOverload) or target.namespace != "aten" or target.name().startswith(_PARTIAL):
        return False
    tensors = [n.meta.get("val") for n in (node, *node.all_input_nodes)]
    return all(isinstance(v, Tensor) and (v.is_floating_point() or v.is_complex()) for v in tensors)


_PARTIAL = ("aten::linalg", "aten::_linalg", "aten::cholesky", "aten::lu_", "aten::triangular_solve", "aten::_assert")


def not_a_loop(params: Params, operands: Sequence[Any]) -> None:
    """The hoisting rule of an operator that runs each of its bodies at most once."""


def hoist_loops(body: Subgraph) -> Subgraph:
    """The graph with the invariant work of its loops before them, from the innermost outwards."""
    return body.derive("hoisted", lambda: _hoist_loops(body))


def _hoist_loops(body: Subgraph) -> Subgraph:
    module = copy_of(body)
    for node in [n for n in module.graph.nodes if params_of(n, module) is not None]:
        params = params_of(node, module)
        assert params is not None
        params, operands = params.with_bodies(hoist_loops), list(node.args[1:])
        with made_for(params.origin):
            hoisted: Hoisted[Params] | None = node.target.rules.hoist(params, operands)
        with module.graph.inserting_before(node):
            if hoisted is not None:
                params = hoisted.params
                operands += copy_nodes(hoisted.outside, [operands[i] for i in hoisted.operands], module, module.graph)
            node.args = (add_params(module, module.graph, params), *operands)
    clean(module)
    return Subgraph.intern(module, body.inputs, body.outputs)
