"""Which outputs of a graph depend on which inputs."""

from __future__ import annotations

import enum
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor, fx

from .generator import generator_state
from .meta import Mask, is_differentiable
from .nodes import behind, unfilled, untracked
from .subgraph import P, Subgraph, is_random_node, params_of

__all__ = ["Pruned", "Through", "dependent_outputs", "depends", "is_read", "needed_inputs", "passes"]


@dataclass(frozen=True)
class Pruned(Generic[P]):
    """Smaller parameters of an operator, and which operands and outputs are left."""

    params: P
    operands: Mask
    outputs: Mask


class Through(enum.Enum):
    """What a dependence goes through."""

    VALUE = "value"
    """Any operator: the value of the output may be another one."""
    LANE = "lane"
    """Any operator, under a vmap in which each lane draws random numbers of its own: these are sources too."""
    READ = "read"
    """Any operator but those that take the shape of their operand and none of its values."""
    TANGENT = "tangent"
    """Operators on differentiable values, which ``detach`` stops."""
    GRADIENT = "gradient"
    """The same, which ``no_grad`` stops too."""
    COTANGENT = "cotangent"
    """The same, which a backward rule of the user's stops too where it returns None: the way that a gradient takes back
    along a history."""

    @classmethod
    def of_vmap(cls, randomness: str) -> Through:
        return cls.LANE if randomness == "different" else cls.VALUE

    @property
    def is_of_values(self) -> bool:
        return self in (Through.VALUE, Through.LANE, Through.READ)

    @property
    def is_of_history(self) -> bool:
        """What autograd records, step by step. The other dependences are invariants of a loop, one for all steps."""
        return self in (Through.GRADIENT, Through.COTANGENT)


_aten = torch.ops.aten

_OF_SHAPE = frozenset(
    {
        *(_aten.zeros_like.default, _aten.ones_like.default, _aten.full_like.default, _aten.empty_like.default),
        *(_aten.new_zeros.default, _aten.new_ones.default, _aten.new_full.default, _aten.new_empty.default),
        *(_aten.rand_like.default, _aten.randn_like.default, _aten.new_empty_strided.default),
        *(_aten.randint_like.default, _aten.randint_like.low_dtype),
    }
)
"""Operators that take the shape of their operand and none of its values."""

_WITHOUT_HISTORY = _OF_SHAPE | {_aten.randint_like.Tensor, _aten.histc.default, _aten.detach.default}
"""Operators of which autograd knows no derivative."""

_BARRIERS = {
    Through.TANGENT: _WITHOUT_HISTORY,
    Through.GRADIENT: _WITHOUT_HISTORY | {untracked},
    Through.COTANGENT: _WITHOUT_HISTORY | {untracked},
}


def dependent_outputs(body: Subgraph, sources: Sequence[bool], through: Through) -> Mask:
    """Which outputs depend on the marked inputs."""
    key = ("dependent outputs", tuple(sources), through)
    return body.derive(key, lambda: _dependent_outputs(body, sources, through))


def _dependent_outputs(body: Subgraph, sources: Sequence[bool], through: Through) -> Mask:
    marked: dict[fx.Node, bool | Mask] = {}
    inputs = iter(sources)
    for node in body.module.graph.nodes:
        if node.op == "placeholder":
            marked[node] = next(inputs) and passes(node, through)
        elif node.op != "output":
            marked[node] = depends(node, marked, through, body.module)
    return tuple(isinstance(out, fx.Node) and bool(marked[out]) for out in body.output_nodes())


def depends(node: fx.Node, marked: dict[fx.Node, bool | Mask], through: Through, module: fx.GraphModule) -> bool | Mask:
    """Whether a node depends on what is marked, or which of its outputs do, if its operator has a rule for that."""
    params = params_of(node, module)
    if params is not None:
        mask = tuple(isinstance(a, fx.Node) and bool(marked[a]) for a in node.args[1:])
        trips = params.trip_count(node.args[1:])
        return node.target.rules.dependent_outputs(params, mask, through, trips)  # type: ignore[union-attr]
    if node.target is operator.getitem:
        source, index = node.args
        whole = marked[source]  # type: ignore[index]
        hit = whole[index] if isinstance(whole, tuple) else whole  # type: ignore[index]
    else:
        hit = any(marked[n] for n in node.all_input_nodes)
        is_own = is_random_node(node, module) and node.target is not generator_state  # of which there is one for all
        hit = hit or (through is Through.LANE and is_own)
    return hit and passes(node, through)


def passes(node: fx.Node, through: Through) -> bool:
    """Whether a dependence on a node goes on from there."""
    if node.target is unfilled:
        return False
    if through.is_of_values:
        return through is not Through.READ or node.target not in _OF_SHAPE
    value = node.meta.get("val")
    carries = is_differentiable(value.dtype) if isinstance(value, Tensor) else isinstance(value, (tuple, list))
    return carries and node.target not in _BARRIERS[through]


def is_read(body: Subgraph, place: int) -> bool:
    """Whether more of an input than its shape is needed."""
    alone = tuple(i == place for i in range(len(body.inputs)))
    return body.input_nodes()[place] in behind(body.pinned_nodes()) or any(dependent_outputs(body, alone, Through.READ))


def needed_inputs(body: Subgraph, outputs: Sequence[bool]) -> Mask:
    """Which inputs the marked outputs (and the random numbers that are drawn) depend on."""
    key = ("needed inputs", tuple(outputs))
    return body.derive(key, lambda: _needed_inputs(body, outputs))


def _needed_inputs(body: Subgraph, outputs: Sequence[bool]) -> Mask:
    needed = behind([*(n for n, o in zip(body.output_nodes(), outputs) if o), *body.pinned_nodes()])
    return tuple(n in needed for n in body.input_nodes())
