"""Split a body and its vector-Jacobian product into a forward graph that emits residuals and a backward graph.

NOTE [Partition] The joint graph computes outputs and gradients from inputs and cotangents. What depends on a cotangent
is backward; the rest is forward. A forward value that backward reads is passed again, if it is an input; or saved, as
an output of the forward graph (a residual); or computed again. Which of them is decided for all values at once, by a
minimum cut: the saved values are those of the fewest bytes from which the others follow

- without computing again what is not cheap (see ``is_cheap``), and never a random number, so the backward pass sees
  those that the forward pass drew; loops that drew what can't be saved are redrawn first (the rule ``redraw``);
- values that follow from ``free`` inputs only (those that a loop does not stack) take nothing: they are never saved;
- an input takes nothing, since it is there anyway, but for a ``carried`` one, which a loop would have to stack;
- what a loop carries on takes nothing where it stacks what it carried before (``shifts``): one stack, a step apart;
- values of data-dependent shape can't be stacked: they are computed again.

A policy (``fh.checkpoint``) leaves no choice: what it saves is not computed again, and nothing else is saved.

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

from .._torch import OpOverload, size_hint, suspended
from ..errors import CaptureError, message
from ..ir.build import Builder
from ..ir.meta import Mask, TensorMeta, is_differentiable
from ..ir.nodes import meta_of
from ..ir.subgraph import Subgraph, has_effect, is_pinned, is_random_node, params_of
from ..passes.cleaning import close
from ..passes.effects import silent
from ..passes.redrawing import redrawing_loops
from .absent import without_cotangents
from .joint import joint
from .mincut import Cost, least_saved
from .saving import Policy, bytes_of, is_cheap, is_random, is_saved, is_storable, is_view, maker

__all__ = ["Partition", "partition", "partition_of_joint"]


@dataclass(frozen=True)
class Partition:
    """``forward: inputs -> outputs + residuals``; ``backward: residuals + kept inputs + cotangents -> gradients``.

    It is that of ``body`` for gradients of its ``active`` inputs, given the marked ``cotangents`` of outputs.
    ``returned``: for each residual the output of which it has the value, if there is one.
    """

    body: Subgraph
    active: Mask
    cotangents: Mask
    forward: Subgraph
    backward: Subgraph
    kept: Mask
    residuals: tuple[TensorMeta, ...]
    returned: tuple[int | None, ...]

    def pull(
        self,
        run: Callable[[Subgraph, list[Tensor]], Iterable[Tensor]],
        operands: Sequence[Tensor],
        residuals: Sequence[Tensor],
        cotangents: Sequence[Tensor | None],
    ) -> list[Tensor | None]:
        """The gradients of a call of ``body``, one for each operand; ``run`` runs the backward graph that it gets. A
        cotangent that is None is absent.
        """
        sizes = self.body.bind(operands)
        given = [(ct, meta) for ct, meta, has in zip(cotangents, self.body.outputs, self.cotangents) if has]
        cts = [meta.at(sizes).zeros() if ct is None else ct for ct, meta in given]
        backward = self.backward_without(tuple(ct is None for ct, _ in given))
        grads = iter(run(backward, [*residuals, *(x for x, k in zip(operands, self.kept) if k), *cts]))
        return [next(grads) if a else None for a in self.active]

    def backward_without(self, absent: Mask) -> Subgraph:
        """The backward graph where these of its cotangents are absent, see NOTE [Absent cotangents]."""
        others = (False,) * (len(self.backward.inputs) - len(absent))
        cotangents = (*others, *[True] * len(absent))
        return without_cotangents(self.backward, cotangents, (*others, *absent))


def partition(
    body: Subgraph,
    active: Mask,
    cotangents: Mask,
    *,
    free: Mask = (),
    carried: Mask = (),
    shifts: bool = False,
    policy: Policy | None = None,
) -> Partition:
    """The partition of ``body`` for gradients of its ``active`` inputs, given cotangents of the marked outputs.

    The masks ``free`` and ``carried`` are of the inputs; an empty one marks none. ``shifts``: the i-th output is the
    i-th input of the next step, for carried ones, and a loop that returns it with the residuals need not stack both.
    """
    key = ("partition", active, cotangents, free, carried, shifts, policy)
    return body.derive(key, lambda: _partition(body, active, cotangents, free, carried, shifts, policy))


def partition_of_joint(body: Subgraph, graph: Subgraph, active: Mask, cotangents: Mask) -> Partition | None:
    """The partition of a graph that computes the same as the joint graph, by operators that have no derivative."""
    return _Splitter(graph, body, active, cotangents, (), (), False, None).split()


def _partition(
    body: Subgraph, active: Mask, cotangents: Mask, free: Mask, carried: Mask, shifts: bool, policy: Policy | None
) -> Partition:
    options = active, cotangents, free, carried, shifts, policy
    found = _split(body, *options) or _split(redrawing_loops(body), *options)
    if found is None:
        raise _unsaved_random_numbers()
    return found


def _split(body: Subgraph, active: Mask, cotangents: Mask, *options: Any) -> Partition | None:
    return _Splitter(joint(body, active, cotangents), body, active, cotangents, *options).split()


class _Splitter:
    def __init__(
        self,
        graph: Subgraph,
        body: Subgraph,
        active: Mask,
        cotangents: Mask,
        free: Mask,
        carried: Mask,
        shifts: bool,
        policy: Policy | None,
    ) -> None:
        self.body, self.active, self.cotangents = body, active, cotangents
        self.shifts, self.policy = shifts, policy
        self.module = graph.module
        nodes = list(self.module.graph.nodes)
        placeholders = [n for n in nodes if n.op == "placeholder"]
        self.inputs, self.cts = placeholders[: len(active)], placeholders[len(active) :]
        outputs = nodes[-1].args[0]
        self.outputs, self.grads = outputs[: len(body.outputs)], outputs[len(body.outputs) :]
        self.backward = _closure(nodes, set(self.cts))
        self.tracked = _closure(nodes, {p for p, a in zip(self.inputs, active) if a})
        invariant = {p for p, f in zip(self.inputs, free) if f}
        random = {n for n in nodes if is_random_node(n, self.module)}
        self.varying = _closure(nodes, set(self.inputs) - invariant | random)
        self.carried = {p for p, c in zip(self.inputs, carried) if c}
        self.stacked: set[fx.Node] = set()
        self.residuals: dict[fx.Node, None] = {}
        self.kept: set[fx.Node] = set()
        self.copied: set[fx.Node] = set()

    def split(self) -> Partition | None:
        """The partition; None if there are random numbers that can't be saved."""
        after_cotangents = self.backward | set(self.cts)
        read = [n for node in self.backward for n in node.all_input_nodes]
        needed = [n for n in (*read, *self.grads) if n not in after_cotangents]
        saved = least_saved(needed, self._cost)
        if saved is None:
            return None
        if self.shifts and self.policy is None:
            self.stacked = {
                o for i, o in zip(self.inputs, self.outputs) if i in self.carried & saved and is_storable(o)
            }
            saved = least_saved(needed, self._cost) or saved
        self._provide(needed, saved)
        return Partition(
            body=self.body,
            active=self.active,
            cotangents=self.cotangents,
            forward=self._forward(),
            backward=self._backward(),
            kept=tuple(p in self.kept for p in self.inputs),
            residuals=tuple(meta_of(n) for n in self.residuals),
            returned=tuple(self.outputs.index(n) if n in self.outputs else None for n in self.residuals),
        )

    def _cost(self, node: fx.Node) -> Cost | None:
        """What it takes to save a value; None for one that is there anyway."""
        if node in self.stacked - set(self.inputs):
            return Cost(0, is_fixed=True)
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
            return Cost(size + is_view(node), is_fixed=not is_cheap(node, self.module))
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

    def _is_constant(self, node: fx.Node) -> bool:
        """Whether autograd gives this element of a tuple no gradient: see NOTE [Constant residuals]."""
        source = maker(node)
        is_element = node.target is operator.getitem and isinstance(source.target, OpOverload)
        return is_element and node.args[1] in _constant_outputs(source, self.tracked)

    def _forward(self) -> Subgraph:
        builder = Builder(self.module)
        for node, meta in zip(self.inputs, self.body.inputs):
            builder.placeholder(node, meta)
        pinned = [n for n in self.module.graph.nodes if is_pinned(n, self.module) and n not in self.backward]
        return close(builder, [*self.outputs, *self.residuals], also=pinned)

    def _backward(self) -> Subgraph:
        builder = Builder(self.module)
        for node in self.residuals:
            builder.placeholder(node, meta_of(node))
            if self._is_constant(node):
                builder.stop_gradient(node)
        for node in (n for n in self.inputs if n in self.kept):
            builder.placeholder(node, meta_of(node))
        for node in self.cts:
            builder.placeholder(node, meta_of(node))
        backward = close(builder, self.grads, also=[n for n in self.backward if has_effect(n, self.module)])
        return backward if any(map(self._holds_effects, self.backward)) else silent(backward)

    def _holds_effects(self, node: fx.Node) -> bool:
        params = params_of(node, self.module)
        return params is not None and params.holds_effects


def _closure(nodes: Iterable[fx.Node], sources: set[fx.Node]) -> set[fx.Node]:
    """The nodes that depend on ``sources``, these included where they are no placeholders of cotangents."""
    reached = set(sources)
    for node in nodes:
        if node.op != "output" and any(n in reached for n in node.all_input_nodes):
            reached.add(node)
    return reached


def _constant_outputs(node: fx.Node, tracked: set[fx.Node]) -> list[int]:
    """The outputs to which autograd gives no gradient, if some inputs are ``tracked``; asked without data, and with the
    sizes of the call that was traced: open ones would learn what an operator asks of them.
    """

    def sample(argument: fx.Node) -> Any:
        value: Any = argument.meta["val"]
        if not isinstance(value, Tensor):
            return size_hint(value)
        sizes = tuple(map(size_hint, value.shape))
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


def _is_tuple(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (tuple, list))


def _unsaved_random_numbers() -> CaptureError:
    return CaptureError(
        message(
            "grad",
            "random numbers drawn in a while_loop can't be kept for reverse mode, as nothing bounds their number",
            remedy="draw them before the loop, or use scan or fori_loop with a trip count that is known",
        )
    )
