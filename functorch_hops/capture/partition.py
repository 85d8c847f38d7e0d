"""Split a body and its vector-Jacobian product into a forward graph that emits residuals and a backward graph.

NOTE [Partition] The joint graph computes outputs and gradients from inputs and cotangents. What depends on a cotangent
is backward; the rest is forward. A forward value that backward reads is

- passed again, if it is an input;
- recomputed, if that takes no stored value: views, sizes, constants, chains over ``free`` inputs (those that a loop
does
  not stack), and values of data-dependent shape, which no loop could stack;
- else a residual: an output of the forward graph.

Random numbers are residuals always, so the backward pass sees those that the forward pass drew.

NOTE [Constant residuals] Some operators save what has no derivative of its own, because the operator's second
derivative accounts for it already: a normalisation the mean and the standard deviation, ``nll_loss`` the total weight.
The backward graph takes such a residual as a constant.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from .._torch import OpOverload, is_unbacked, suspended
from .builder import Builder, meta_of
from .derive import joint
from .memory import is_view
from .subgraph import Mask, Subgraph, TensorMeta, is_differentiable, is_random_node

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
    body: Subgraph,
    reached: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> list[Tensor]:
    """What the backward graph of a call takes; ``reached`` are the outputs with cotangents, None being zero."""
    sizes = body.bind(operands)
    given = zip(cotangents, body.outputs, reached)
    cts = [meta.at(sizes).zeros() if ct is None else ct for ct, meta, r in given if r]
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
        self.tracked = _closure(nodes, {p for p, a in zip(self.inputs, active) if a})
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
            residuals=tuple(meta_of(n) for n in self.residuals),
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
                self.copied.add(node)
                todo.extend(node.all_input_nodes)
            else:
                self.residuals[node] = None

    def _is_recomputed(self, node: fx.Node) -> bool:
        if node.op == "get_attr" or not _is_static_tensor(node):
            return True
        if is_random_node(node, self.module) or any(is_random_node(n, self.module) for n in _producer(node)):
            return False
        return node not in self.stored or is_view(node) or not self.save(node)

    def _is_constant(self, node: fx.Node) -> bool:
        """Whether autograd gives this element of a tuple no gradient: see NOTE [Constant residuals]."""
        sources = [p for p in _producer(node) if node.target is operator.getitem and isinstance(p.target, OpOverload)]
        return any(node.args[1] in _constant_outputs(p, self.tracked) for p in sources)

    def _forward(self) -> Subgraph:
        builder = Builder(self.module)
        for node, meta in zip(self.inputs, self.body.inputs):
            builder.placeholder(node, meta)
        # A draw keeps its place in the stream, used or not.
        draws = [n for n in self._random(self.module.graph.nodes) if n not in self.backward]
        return builder.finish([*self.outputs, *self.residuals], also=draws)

    def _backward(self) -> Subgraph:
        builder = Builder(self.module)
        for node in self.residuals:
            builder.placeholder(node, meta_of(node))
            if self._is_constant(node):
                builder.bar(node)
        for node in (n for n in self.inputs if n in self.kept):
            builder.placeholder(node, meta_of(node))
        for node in self.cts:
            builder.placeholder(node, meta_of(node))
        return builder.finish(self.grads)


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


def _constant_outputs(node: fx.Node, tracked: set[fx.Node]) -> list[int]:
    """The outputs to which autograd gives no gradient, if some inputs are ``tracked``; asked without data."""

    def sample(argument: fx.Node) -> Any:
        value: Any = argument.meta["val"]
        if not isinstance(value, Tensor):
            return value
        sizes = tuple(value.shape)
        needs = argument in tracked and is_differentiable(value.dtype)
        return torch.empty(sizes, dtype=value.dtype, device="meta", requires_grad=needs)

    with suspended(keep_autocast=False):
        try:
            args, kwargs = fx.map_arg(node.args, sample), fx.map_arg(node.kwargs, sample)
            outs = node.target(*args, **kwargs)  # type: ignore[operator]
        except (RuntimeError, NotImplementedError, ValueError, TypeError):
            return []  # no kernel for tensors without data, or sizes that only a run knows
    has_gradient = [isinstance(o, Tensor) and o.requires_grad for o in outs]
    return [i for i, has in enumerate(has_gradient) if not has] if any(has_gradient) else []


def _is_static_tensor(node: fx.Node) -> bool:
    value: Any = node.meta.get("val")
    return isinstance(value, Tensor) and not any(map(is_unbacked, value.shape))
