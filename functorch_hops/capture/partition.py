"""Split a body and its vector-Jacobian product into a forward graph that emits residuals and a backward graph.

NOTE [Partition] The joint graph computes outputs and gradients from inputs and cotangents. What depends on a cotangent
is backward; the rest is forward. A forward value that backward reads is passed again, if it is an input; or saved, as
an output of the forward graph (a residual); or computed again. Which of them is decided for all values at once, by a
minimum cut: the saved values are those of the fewest bytes from which the others follow

- without computing again what is not cheap (see ``is_cheap``), and never a random number, so the backward pass sees
  those that the forward pass drew;
- values that follow from ``free`` inputs only (those that a loop does not stack) take nothing: they are never saved;
- an input takes nothing, since it is there anyway, but for a ``carried`` one, which a loop would have to stack;
- values of data-dependent shape can't be stacked: they are computed again.

A policy (``fh.checkpoint``) leaves no choice: what it saves is not computed again, and nothing else is saved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from .._torch import storage_key
from ..errors import CaptureError, message
from .derive import joint
from .mincut import Cost, least_saved
from .saving import Policy, bytes_of, is_cheap, is_random, is_saved, is_storable, is_view
from .subgraph import Mask, Subgraph, TensorMeta, is_random_node

__all__ = ["Partition", "backward_operands", "partition"]


@dataclass(frozen=True)
class Partition:
    """``forward: inputs -> outputs + residuals``; ``backward: residuals + kept inputs + cotangents -> gradients``.

    ``returned``: for each residual the output of which it has the value, if there is one.
    """

    forward: Subgraph
    backward: Subgraph
    kept: Mask
    residuals: tuple[TensorMeta, ...]
    returned: tuple[int | None, ...]


def partition(
    body: Subgraph,
    active: Mask,
    cotangents: Mask,
    *,
    free: Mask = (),
    carried: Mask = (),
    policy: Policy | None = None,
) -> Partition:
    """The partition of ``body`` for gradients of its ``active`` inputs, given cotangents of the marked outputs.

    The masks ``free`` and ``carried`` are of the inputs; an empty one marks none.
    """
    key = ("partition", active, cotangents, free, carried, policy)
    return body.derive(key, lambda: _Splitter(body, active, cotangents, free, carried, policy).split())


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
    def __init__(
        self, body: Subgraph, active: Mask, cotangents: Mask, free: Mask, carried: Mask, policy: Policy | None
    ) -> None:
        self.body, self.policy = body, policy
        self.module = joint(body, active, cotangents).module
        nodes = list(self.module.graph.nodes)
        placeholders = [n for n in nodes if n.op == "placeholder"]
        self.inputs, self.cts = placeholders[: len(active)], placeholders[len(active) :]
        outputs = nodes[-1].args[0]
        self.outputs, self.grads = outputs[: len(body.outputs)], outputs[len(body.outputs) :]
        self.backward = _closure(nodes, set(self.cts))
        invariant = {p for p, f in zip(self.inputs, free) if f}
        random = {n for n in nodes if is_random_node(n, self.module)}
        self.varying = _closure(nodes, set(self.inputs) - invariant | random)
        self.carried = {p for p, c in zip(self.inputs, carried) if c}
        self.residuals: dict[fx.Node, None] = {}
        self.kept: set[fx.Node] = set()
        self.copied: set[fx.Node] = set()

    def split(self) -> Partition:
        late = self.backward | set(self.cts)
        read = [n for node in self.backward for n in node.all_input_nodes]
        needed = [n for n in (*read, *self.grads) if n not in late]
        saved = least_saved(needed, self._cost)
        if saved is None:
            raise _unsaved_random_numbers()
        self._provide(needed, saved)
        return Partition(
            forward=self._forward(),
            backward=self._backward(),
            kept=tuple(p in self.kept for p in self.inputs),
            residuals=tuple(_meta(n) for n in self.residuals),
            returned=tuple(self.outputs.index(n) if n in self.outputs else None for n in self.residuals),
        )

    def _cost(self, node: fx.Node) -> Cost | None:
        """What it takes to save a value; None for one that is there anyway."""
        if node in self.carried:
            return Cost(bytes_of(node), is_fixed=True)
        if node.op in ("placeholder", "get_attr") or node not in self.varying:
            return None
        size = bytes_of(node) if is_storable(node) else None
        if is_random(node, self.module):
            return Cost(size, is_fixed=not _is_tuple(node))
        if size is None:
            return Cost(None, is_fixed=False)
        if self.policy is None:
            # To save a view is to copy it: where it is no smaller, what it is a view of is the better choice.
            return Cost(size + is_view(node, self.module), is_fixed=not is_cheap(node, self.module))
        is_chosen = is_saved(self.policy, node, self.module)
        return Cost(size if is_chosen else None, is_fixed=is_chosen)

    def _provide(self, needed: Iterable[fx.Node], saved: set[fx.Node]) -> None:
        """Arrange that the backward graph has the values of the needed nodes."""
        todo = list(needed)
        while todo:
            node = todo.pop()
            if node in self.inputs:
                self.kept.add(node)
            elif node in saved:
                self.residuals[node] = None
            elif node not in self.copied:
                self.copied.add(node)
                todo.extend(node.all_input_nodes)

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
        return Subgraph.intern(module, self.inputs, [_meta(n) for n in results])


def _closure(nodes: Iterable[fx.Node], sources: set[fx.Node]) -> set[fx.Node]:
    """The nodes that depend on ``sources``, these included where they are no placeholders of cotangents."""
    reached = set(sources)
    for node in nodes:
        if node.op != "output" and any(n in reached for n in node.all_input_nodes):
            reached.add(node)
    return reached


def _is_tuple(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (tuple, list))


def _meta(node: fx.Node) -> TensorMeta:
    return TensorMeta.of(node.meta["val"])


def _unsaved_random_numbers() -> CaptureError:
    return CaptureError(
        message(
            "grad",
            "random numbers drawn in a while_loop can't be kept for reverse mode, as nothing bounds their number",
            remedy="draw them before the loop, or use scan or fori_loop with a trip count that is known",
        )
    )
