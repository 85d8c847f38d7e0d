"""Numbers that a step returns of all lanes, reduced after the loop.

NOTE [Late reductions] A mean, a loss or an energy that each step returns, and no later step reads, is all that keeps
many loops from being loops over lanes. So a step returns what it reduces, a value of each lane, and the stack is
reduced after the loop, with what is computed of numbers behind it. The stack has to stay in the cache, and the loop
then has to be one over lanes: else the step reduces.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from ...ir.build import copy_of
from ...ir.meta import TensorMeta
from ...ir.nodes import meta_of
from ...ir.subgraph import Subgraph
from ...passes.cleaning import clean
from .forms import Scan
from .masked import is_total

__all__ = ["Late", "late_reductions"]

aten = torch.ops.aten

_MOST_BYTES = 1 << 20

_REDUCTIONS: dict[Any, Any] = {
    aten.amax.default: aten.amax.default,
    aten.amin.default: aten.amin.default,
    aten.mean.default: aten.mean.dim,
    aten.mean.dim: aten.mean.dim,
    aten.sum.default: aten.sum.dim_IntList,
    aten.sum.dim_IntList: aten.sum.dim_IntList,
}
"""And those of all rows at once."""


@dataclass(frozen=True)
class Late:
    """``form`` returns what is reduced; ``before``: the loop with the reductions in its steps. ``stacks``: the output
    of ``form`` that each value of a step is; ``kept``: for each output of ``before`` that of ``form``, None for a late
    number.
    """

    form: Scan
    before: Scan
    stacks: Mapping[fx.Node, int]
    kept: tuple[int | None, ...]

    def outputs(self, graph: fx.Graph, results: Sequence[fx.Node], operands: Sequence[Any], mode: Any) -> list[fx.Node]:
        """The outputs of the loop before, computed of those of ``form`` by nodes that are added to ``graph``."""
        body = self.before.body
        made: dict[fx.Node, Any] = dict(zip(body.input_nodes(), operands))

        def number(node: Any) -> Any:
            if not isinstance(node, fx.Node):
                return node
            if node not in made:
                target: Any = _REDUCTIONS.get(node.target, node.target)
                if node.target in _REDUCTIONS:
                    stack = results[self.stacks[node.args[0]]]  # type: ignore[index]
                    args: tuple[Any, ...] = (stack, list(range(1, stack.meta["val"].ndim)))
                else:
                    args = tuple(map(number, node.args))
                made[node] = graph.call_function(target, args)
                with mode:
                    fakes = [meta_of(x).fake(mode) if isinstance(x, fx.Node) else x for x in args]
                    made[node].meta["val"] = target(*fakes)
            return made[node]

        return [
            number(node) if i is None else results[i] for node, i in zip(body.output_nodes(), self.kept, strict=True)
        ]


def late_reductions(form: Scan) -> Late | None:
    """The loop without the reductions of all lanes that its steps return, if there are any."""
    n, outputs = form.n_carry, form.body.output_nodes()
    if type(form.length) is not int:
        return None
    rows = form.body.input_nodes()[n:]
    rows = [x for x, shift in itertools.zip_longest(rows, form.shifts) if shift is None]
    reduced = {i: _reduced(outputs[i], rows) for i in range(n, len(outputs)) if form.lead(i) is None}
    values = list(dict.fromkeys(value for found in reduced.values() for value in found or ()))
    size = sum(math.prod(meta.shape) * meta.dtype.itemsize for meta in map(meta_of, values))
    if not values or size * form.length > _MOST_BYTES:
        return None
    places = [i for i in range(len(outputs)) if not reduced.get(i)]
    module = copy_of(form.body)
    output = module.graph.output_node()
    copies = dict(zip(form.body.module.graph.nodes, module.graph.nodes, strict=True))
    output.args = (tuple(copies[node] for node in (*(outputs[i] for i in places), *values)),)
    metas: list[TensorMeta] = [*(form.body.outputs[i] for i in places), *map(meta_of, values)]
    clean(module)
    body = Subgraph.intern(module, form.body.inputs, metas)
    leads = (*(form.lead(i) for i in places[n:]), *[None] * len(values)) if form.leads else ()
    kept = tuple(places.index(i) if i in places else None for i in range(len(outputs)))
    stacks = {value: len(places) + i for i, value in enumerate(values)}
    return Late(replace(form, body=body, leads=leads), form, stacks, kept)


def _reduced(node: fx.Node, given: Sequence[fx.Node]) -> list[fx.Node] | None:
    """The values of lanes that a number is computed of, element by element of the numbers that they are reduced to;
    None if it is not.
    """
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.shape != ():
        return None
    if node in given:
        return []
    tensors = [x for x in node.args if isinstance(x, fx.Node)]
    if node.kwargs or not tensors or len(tensors) != len(node.all_input_nodes):
        return None
    if node.target in _REDUCTIONS:
        meta = meta_of(tensors[0])
        is_plain = meta.dtype is value.dtype and all(type(size) is int for size in meta.shape)
        return tensors if is_plain and math.prod(meta.shape) > 1 else None
    if not is_total(node) or any(not isinstance(x.meta.get("val"), Tensor) for x in tensors):
        return None
    found = [_reduced(x, given) for x in tensors]
    if None in found or any(meta_of(x).dtype is not value.dtype for x in tensors):
        return None
    return [x for values in found for x in values or ()]
