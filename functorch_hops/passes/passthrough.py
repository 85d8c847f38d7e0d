"""Values that only pass through an operator, or that it holds twice.

A carry that no step changes is a constant, and the final carry is the initial one; a stack of it is that value
repeated; what two operands or two outputs hold is one value. After this, users read the value itself, and dead-code
elimination and hoisting see through the loop.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple

import torch
from torch import Tensor, fx

from ..ir.build import add_params
from ..ir.memory import without_copies
from ..ir.origin import made_for
from ..ir.subgraph import P, Params, Subgraph, params_of

__all__ = [
    "Renumbering",
    "SimplifiedCall",
    "Source",
    "distinct",
    "passthrough_inputs",
    "simplify_call",
    "simplify_calls",
    "values",
]


class Source(NamedTuple):
    """Where an output of the old call is now: ``output`` number ``place`` of the new one, or ``operand`` number
    ``place`` of the old one, repeated ``steps`` times if that is not None.
    """

    kind: str
    place: int
    steps: Any = None


@dataclass(frozen=True)
class SimplifiedCall(Generic[P]):
    """A smaller call: its parameters, which of the old operands it takes, and where the old outputs are now."""

    params: P
    operands: tuple[int, ...]
    outputs: tuple[Source, ...]


Rule = Callable[[P, Sequence[Hashable]], SimplifiedCall[P] | None]


def passthrough_inputs(body: Subgraph) -> tuple[int | None, ...]:
    """For each output the input whose value it is, None where it is computed."""
    places = {node: i for i, node in enumerate(body.input_nodes())}
    return tuple(map(places.get, values(body)))


def values(body: Subgraph) -> list[fx.Node]:
    """The outputs, the same node for the same value."""
    return [without_copies(node) for node in body.output_nodes()]


def distinct(keys: Sequence[Hashable]) -> list[int]:
    """For each key the place of the first one that is equal."""
    first: dict[Hashable, int] = {}
    return [first.setdefault(key, i) for i, key in enumerate(keys)]


@dataclass(frozen=True)
class Renumbering:
    """``numbers``: for each old input of a body the new one; ``kept``: the old input that each new one was."""

    numbers: tuple[int, ...]
    kept: tuple[int, ...]

    @classmethod
    def make(cls, groups: Sequence[Sequence[int]], keys: Sequence[Hashable]) -> Renumbering:
        """Inputs in the order of the groups; those of a group with equal keys become one."""
        numbers, kept = [0] * len(keys), list[int]()
        for group in groups:
            seen: dict[Hashable, int] = {}
            for i in group:
                if keys[i] not in seen:
                    seen[keys[i]] = len(kept)
                    kept.append(i)
                numbers[i] = seen[keys[i]]
        return cls(tuple(numbers), tuple(kept))


def simplify_call(
    rule: Rule[P], params: P, operands: Sequence[Any]
) -> tuple[P, Sequence[Any], Callable[[Sequence[Tensor]], list[Tensor]]]:
    """A call before any transform sees it: smaller, and a function from its outputs to those of the call as it was.

    What passes through a body is then no carry to batch, to differentiate or to save once per step.
    """
    found = rule(params, [id(x) if isinstance(x, Tensor) else x for x in operands])
    if found is None:
        return params, operands, list
    sources = found.outputs

    def restore(outs: Sequence[Tensor]) -> list[Tensor]:
        """Each of its own memory: the body that is traced may write to one of them."""
        fresh = dict(enumerate(outs))
        restored = []
        for s in sources:
            if s.kind == "output":
                restored.append(fresh.pop(s.place) if s.place in fresh else outs[s.place].clone())
            else:
                restored.append(_restored(operands[s.place], s.steps))
        return restored

    return found.params, [operands[i] for i in found.operands], restore


def _restored(x: Tensor, steps: Any) -> Tensor:
    return x.clone() if steps is None else x.expand(steps, *(-1,) * x.dim()).clone()


def simplify_calls(module: fx.GraphModule) -> bool:
    """Shrink the calls in a graph; whether there was one to shrink."""
    is_changed = False
    for node in list(module.graph.nodes):
        params = params_of(node, module)
        if params is None or any(user.target is not operator.getitem for user in node.users):
            continue
        rule: Rule[Params] = node.target.rules.passthrough
        with made_for(params.origin):
            found = rule(params, node.args[1:])
        if found is not None:
            _rewrite(node, found, module)
            is_changed = True
    return is_changed


def _rewrite(node: fx.Node, found: SimplifiedCall[Params], module: fx.GraphModule) -> None:
    operands = node.args[1:]
    for user in list(node.users):
        source = found.outputs[int(user.args[1])]  # type: ignore[arg-type]
        if source.kind == "output":
            user.args = (node, source.place)
        else:
            operand = operands[source.place]
            assert isinstance(operand, fx.Node)
            value = operand if source.steps is None else _repeated(operand, source.steps, user)
            user.replace_all_uses_with(value)
            module.graph.erase_node(user)
    with module.graph.inserting_before(node):
        parameters = add_params(module, module.graph, found.params)
    node.args = (parameters, *(operands[i] for i in found.operands))
    metas = node.meta.get("val")
    if metas is not None:
        kept = {s.place: v for s, v in zip(found.outputs, metas) if s.kind == "output"}
        node.meta["val"] = tuple(kept[i] for i in range(len(kept)))


def _repeated(operand: fx.Node, steps: Any, like: fx.Node) -> fx.Node:
    graph, value = like.graph, like.meta["val"]
    with graph.inserting_before(like):
        sizes = [steps, *[-1] * (value.dim() - 1)]
        repeated = graph.create_node("call_function", torch.ops.aten.expand.default, (operand, sizes), name="expand")
    repeated.meta["val"] = value
    return repeated
