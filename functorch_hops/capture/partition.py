"""Split a body and its vector-Jacobian product into a forward graph that emits residuals and a backward graph.

NOTE [Partition] The joint graph computes outputs and gradients from inputs and cotangents. What depends on a cotangent
is backward; the rest is forward. A forward value that backward reads is

- passed again, if it is an input;
- recomputed, if that takes no stored value: views, sizes, constants, chains over ``free`` inputs (those that a loop
does
  not stack), and values of data-dependent shape, which no loop could stack;
- else a residual: an output of the forward graph.

Random numbers are residuals always, so the backward pass sees those that the forward pass drew. Those of a loop of
unknown length can't be: they are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from .._torch import OpOverload, storage_key
from ..errors import CaptureError, message
from .derive import joint
from .liveness import eliminate_dead_code
from .subgraph import Mask, Subgraph, TensorMeta, is_random_node

__all__ = ["Partition", "backward_operands", "partition"]


@dataclass(frozen=True)
class Partition:
    """``forward: inputs -> outputs + residuals``; ``backward: residuals + kept inputs + cotangents -> gradients``."""

    forward: Subgraph
    backward: Subgraph
    kept: Mask
    residuals: tuple[TensorMeta, ...]


SavePolicy = Callable[[fx.Node], bool]


def save_all(node: fx.Node) -> bool:
    return True


def partition(
    body: Subgraph,
    active: Mask,
    cotangents: Mask,
    *,
    free: Mask | None = None,
    save: SavePolicy = save_all,
) -> Partition:
    """The partition of ``body`` for gradients of its ``active`` inputs, given cotangents of the marked outputs.

    ``save`` may refuse a value as residual; backward then recomputes it (its random ancestors are saved all the same).
    """
    free = free or (False,) * len(active)
    key = ("partition", active, cotangents, free, save)
    return body.derive(key, lambda: _Splitter(body, active, cotangents, free, save).split())


def backward_operands(
    part: Partition,
    outputs: Sequence[TensorMeta],
    reached: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> list[Tensor]:
    """What the backward graph of a call takes; ``reached`` are the outputs with cotangents, None being zero."""
    given = zip(cotangents, outputs, reached)
    cts = [meta.zeros() if ct is None else ct for ct, meta, r in given if r]
    return [*residuals, *(x for x, k in zip(operands, part.kept) if k), *cts]


class _Splitter:
    def __init__(self, body: Subgraph, active: Mask, cotangents: Mask, free: Mask, save: SavePolicy) -> None:
        self.body, self.active, self.cotangents, self.save = body, active, cotangents, save
        self.module = joint(body, active, cotangents).module
        nodes = list(self.module.graph.nodes)
        placeholders = [n for n in nodes if n.op == "placeholder"]
        self.inputs, self.cts = placeholders[: len(active)], placeholders[len(active) :]
        outputs = nodes[-1].args[0]
        self.outputs, self.grads = outputs[: len(body.outputs)], outputs[len(body.outputs) :]
        self.backward = _closure(nodes, set(self.cts))
        self.stored = _closure(nodes, {p for p, f in zip(self.inputs, free) if not f} | set(self._random(nodes)))
        self.residuals: dict[fx.Node, None] = {}
        self.kept: set[fx.Node] = set()
        self.copied: set[fx.Node] = set()

    def _random(self, nodes: Iterable[fx.Node]) -> Iterable[fx.Node]:
        return (n for n in nodes if is_random_node(n, self.module))

    def split(self) -> Partition:
        for node in self.backward:
            for argument in node.all_input_nodes:
                self._need(argument)
        for grad in self.grads:
            self._need(grad)
        return Partition(
            forward=self._forward(),
            backward=self._backward(),
            kept=tuple(p in self.kept for p in self.inputs),
            residuals=tuple(_meta(n) for n in self.residuals),
        )

    def _need(self, node: fx.Node) -> None:
        """Arrange that the backward graph has the value of ``node``."""
        todo = [node]
        while todo:
            node = todo.pop()
            if node in self.backward or node in self.cts or node in self.copied or node in self.residuals:
                continue
            if node in self.inputs:
                self.kept.add(node)
            elif self._is_recomputed(node):
                if is_random_node(node, self.module):
                    raise CaptureError(_other_numbers())
                self.copied.add(node)
                todo.extend(node.all_input_nodes)
            else:
                self.residuals[node] = None

    def _is_recomputed(self, node: fx.Node) -> bool:
        if node.op == "get_attr" or not _is_static_tensor(node):
            return True
        if is_random_node(node, self.module) or any(is_random_node(n, self.module) for n in _producer(node)):
            return False
        return node not in self.stored or _is_view(node) or not self.save(node)

    def _forward(self) -> Subgraph:
        taken = {storage_key(n.meta["val"]) for n in (*self.inputs, *self.outputs)}
        builder = _Builder(self.module)
        for node, meta in zip(self.inputs, self.body.inputs):
            builder.placeholder(node, meta)
        results = [builder.value(n) for n in self.outputs]
        for node in self.residuals:
            value = builder.value(node)
            key = storage_key(node.meta["val"])
            results.append(builder.clone(value) if key in taken else value)
            taken.add(key)
        return builder.finish(results)

    def _backward(self) -> Subgraph:
        builder = _Builder(self.module)
        for node in self.residuals:
            builder.placeholder(node, _meta(node))
        for node in (n for n in self.inputs if n in self.kept):
            builder.placeholder(node, _meta(node))
        for node in self.cts:
            builder.placeholder(node, _meta(node))
        results, taken = [], {storage_key(n.meta["val"]) for n in builder.new}
        for node in self.grads:
            value, key = builder.value(node), storage_key(node.meta["val"])
            results.append(builder.clone(value) if key in taken else value)
            taken.add(key)
        return builder.finish(results)


class _Builder:
    """A graph assembled from nodes of another one."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.graph = fx.Graph()
        self.new: dict[fx.Node, fx.Node] = {}
        self.inputs: list[TensorMeta] = []

    def placeholder(self, old: fx.Node, meta: TensorMeta) -> None:
        new = self.graph.placeholder(f"arg{len(self.inputs)}")
        new.meta = dict(old.meta)
        self.new[old] = new
        self.inputs.append(meta)

    def value(self, old: fx.Node) -> fx.Node:
        todo = [old]
        while todo:
            node = todo[-1]
            missing = [n for n in node.all_input_nodes if n not in self.new] if node not in self.new else []
            todo.extend(missing)
            if not missing:
                todo.pop()
                if node not in self.new:
                    self.new[node] = self.graph.node_copy(node, self.new.__getitem__)
        return self.new[old]

    def clone(self, node: fx.Node) -> fx.Node:
        new = self.graph.call_function(torch.ops.aten.clone.default, (node,))
        new.meta["val"] = node.meta["val"]
        return new

    def finish(self, results: list[fx.Node]) -> Subgraph:
        self.graph.output(tuple(results))
        module = fx.GraphModule(self.module, self.graph)
        eliminate_dead_code(module)  # of an operator in it, this part may use some outputs only
        return Subgraph.intern(module, self.inputs, [_meta(n) for n in results])


def _other_numbers() -> str:
    return message(
        "grad",
        "a while_loop draws random numbers, and would draw others as it runs again in the backward pass",
        expected="no random numbers in a while_loop within a loop, a branch, a checkpoint or a jitted function",
        remedy="draw them before the while_loop, or use scan or fori_loop with a known number of steps",
    )


def _closure(nodes: Iterable[fx.Node], sources: set[fx.Node]) -> set[fx.Node]:
    """The nodes that depend on ``sources``, these included where they are no placeholders of cotangents."""
    reached = set(sources)
    for node in nodes:
        if node.op != "output" and any(n in reached for n in node.all_input_nodes):
            reached.add(node)
    return reached


def _producer(node: fx.Node) -> list[fx.Node]:
    """The node that made the tuple of which ``node`` is an element."""
    source = node.args[0] if node.args else None
    is_tuple = isinstance(source, fx.Node) and isinstance(source.meta.get("val"), (tuple, list))
    return [source] if is_tuple and isinstance(source, fx.Node) else []


def _is_static_tensor(node: fx.Node) -> bool:
    value: Any = node.meta.get("val")
    return isinstance(value, Tensor) and all(type(size) is int for size in value.shape)


def _is_view(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, OpOverload):
        return False
    if target is torch.ops.aten.reshape.default or target is torch.ops.aten.detach.default:
        return True
    returned = target._schema.returns
    return bool(returned) and returned[0].alias_info is not None and not target._schema.is_mutable


def _meta(node: fx.Node) -> TensorMeta:
    return TensorMeta.of(node.meta["val"])
