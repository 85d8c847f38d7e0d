"""The parameters of a custom rule: what was captured, what follows from it, and how a rule names itself.

NOTE [Recursion] A rule calls its own function: ``f_fwd`` returns ``f(x)``, the derivative of ``exp`` is ``exp``. Its
graphs would be infinite. So the call of a rule inside itself is a :class:`Recursion`, a reference to the rule around it
(its ``binder``), and whoever uses a graph of the rule unfolds it once: :meth:`CustomRule.unfolded` replaces the
reference by the rule itself. A graph without such references is closed; only closed graphs leave this module.

NOTE [Batching is lazy] For the same reason a batched rule is not made of batched graphs, which would have to hold the
batched rule again: :class:`Batched` remembers what to do, and batches a graph when a derivative asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from ...derive.batch import batched
from ...derive.joint import joint
from ...derive.linear import is_transposable
from ...derive.partition import partition
from ...derive.rewrite import rewritten
from ...ir.build import copy_graph
from ...ir.dependence import Through, dependent_outputs
from ...ir.meta import Mask, TensorMeta, count, is_differentiable
from ...ir.subgraph import Params, Subgraph
from ..missing_derivative.op import FailedRule, MissingDerivative

__all__ = [
    "Batched",
    "CustomRule",
    "CustomRuleParams",
    "Inlined",
    "Layout",
    "Recursion",
    "Reverse",
    "Rule",
    "materializing",
]


@dataclass(frozen=True)
class Reverse:
    """``forward: operands -> outputs, residuals``; ``backward: residuals, operands, cotangents of the differentiable
    outputs -> gradients`` of the operands that ``gradients`` marks.
    """

    forward: Subgraph
    backward: Subgraph
    gradients: Mask


@dataclass(frozen=True)
class Layout:
    """What the flat values of a custom rule are.

    ``n_inputs``: the operands before the closed-over values. ``differentiable_inputs``: those with tangents.
    ``gradients``: those for which ``backward`` has a gradient. ``differentiable``: the outputs with tangents and
    cotangents. ``knows_absence``: ``backward`` is told which cotangents are there, and returns none for others.
    ``has_backward``, ``has_tangent``: which graphs there are. ``constant_closure``: what the function closes over
    counts as constant; else it is an error to differentiate it. ``missing_reverse``, ``missing_tangent``: what to say
    where a derivative is asked for that there is not. ``transposes_tangent``: reverse mode is made of forward mode, and
    ``transposes_backward`` the other way round. ``is_ordinary``: the function is differentiated as it is. ``vmap``: a
    batching rule of the user's.
    """

    name: str
    n_inputs: int
    differentiable_inputs: Mask
    gradients: Mask
    differentiable: Mask
    has_backward: bool
    has_tangent: bool
    constant_closure: bool
    knows_absence: bool
    missing_reverse: MissingDerivative | FailedRule
    missing_tangent: MissingDerivative | FailedRule
    transposes_tangent: bool
    vmap: Any = None
    transposes_backward: bool = False
    is_ordinary: bool = False

    def mark_operands(self, inputs: Mask, n_operands: int) -> Mask:
        return (*inputs, *(False,) * (n_operands - self.n_inputs))


@dataclass(frozen=True, eq=False)
class CustomRuleParams(Params):
    """What a call computes: ``function: operands -> outputs``.

    Operands: the flat inputs, then everything that the function and its derivatives close over.
    """

    function: Subgraph

    @property
    def n_outputs(self) -> int:
        return len(self.function.outputs)

    @property
    def run_bodies(self) -> tuple[Subgraph, ...]:
        return (self.function,)

    @property
    def lost_when_exported(self) -> str | None:
        return f"{self.public_name} has a derivative of its own, for which torch's programs have no place"


@dataclass(frozen=True, eq=False)
class CustomRule(CustomRuleParams):
    """A function with derivatives of its own, as captured. ``derivatives``: as far as the rule has them, ``operands ->
    outputs, residuals`` and ``residuals, operands, cotangents -> gradients``, then ``operands, tangents -> outputs,
    tangents``.
    """

    derivatives: tuple[Subgraph, ...]
    binder: int
    layout: Layout

    @property
    def public_name(self) -> str:
        return self.layout.name

    @property
    def lost_when_exported(self) -> str | None:
        return None if self.layout.is_ordinary else super().lost_when_exported

    def unfolded(self, body: Subgraph) -> Subgraph:
        """``body`` with its references to this rule replaced by the rule (NOTE [Recursion]), in the variant whose
        forward mode is the transpose of its ``backward``.
        """
        return _substituted(body, self.binder, self.variant(transposes_backward=self.layout.has_backward))

    def variant(self, **changes: Any) -> CustomRule:
        """This rule with another layout."""
        layout = replace(self.layout, **changes)
        if layout == self.layout:
            return self
        return self.derive(("variant", layout), lambda: replace(self, layout=layout))

    def reverse(self, active: Mask) -> Reverse | None:
        """The graphs of reverse mode for the active operands, if the rule has any."""
        return self.derive(("reverse", active), lambda: self._reverse(active))

    def _reverse(self, active: Mask) -> Reverse | None:
        layout, n = self.layout, len(self.function.inputs)
        if layout.is_ordinary:
            return _ordinary(self.function, active)
        if layout.has_backward:
            forward, backward = (self.unfolded(body) for body in self.derivatives[:2])
            return Reverse(forward, backward, layout.mark_operands(layout.gradients, n))
        return _transposed(self, active) if layout.transposes_tangent else None

    def leading_back(self) -> tuple[Mask, ...]:
        """For each output, the inputs to which its cotangent leads: as it flows through ``backward``, if that is told
        which cotangents are there; else all that have gradients.
        """
        return self.derive("leading back", self._leading_back)

    def _leading_back(self) -> tuple[Mask, ...]:
        layout, backward = self.layout, self.derivatives[1]
        n_ct = count(layout.differentiable)
        before = (False,) * (len(backward.inputs) - n_ct)

        def led_to(place: int) -> Mask:
            if not layout.knows_absence:
                return layout.gradients
            alone = tuple(i == place for i in range(n_ct))
            found = iter(dependent_outputs(backward, (*before, *alone), Through.VALUE))
            return tuple(g and next(found) for g in layout.gradients)

        led = map(led_to, range(n_ct))
        return tuple(next(led) if d else (False,) * layout.n_inputs for d in layout.differentiable)

    def tangent(self) -> Subgraph | None:
        """``operands, tangents of the differentiable inputs -> outputs, tangents of the differentiable outputs``."""
        if self.layout.has_tangent:
            return self.derive("tangent", lambda: self.unfolded(self.derivatives[-1]))
        if self.layout.transposes_backward:
            return self.derive("tangent", lambda: _tangent_of(self))
        return None


@dataclass(frozen=True, eq=False)
class Recursion(CustomRuleParams):
    """A call of a rule inside its own graphs (see NOTE [Recursion])."""

    binder: int


@dataclass(frozen=True, eq=False)
class Batched(CustomRuleParams):
    """The rule ``of`` over a batch of size ``size`` at dimension 0 of the ``mapped`` operands, and of the outputs in
    ``out`` (see NOTE [Batching is lazy]).
    """

    of: CustomRuleParams
    mapped: Mask
    size: Any
    randomness: str
    out: Mask

    def _rule(self) -> Rule:
        """Inside the graphs of its own rule, where ``of`` is none yet, nothing is differentiated."""
        assert isinstance(self.of, (CustomRule, Batched))
        return self.of

    @property
    def layout(self) -> Layout:
        return self._rule().layout

    def leading_back(self) -> tuple[Mask, ...]:
        return self._rule().leading_back()

    @property
    def public_name(self) -> str:
        return self.of.public_name

    @property
    def random(self) -> bool:
        return self.of.random

    @property
    def draws(self) -> bool:
        return self.of.draws

    @property
    def has_effects(self) -> bool:
        return self.of.has_effects

    @property
    def holds_effects(self) -> bool:
        return self.of.holds_effects

    def _batched(self, body: Subgraph, mapped: Mask, rest: Mask) -> tuple[Subgraph, Mask]:
        """A graph that begins with the outputs, over the batch; ``rest``: what else has it at least."""
        out = self.out
        graph, found = batched(body, mapped, self.size, self.randomness, (*out, *rest))
        if found[: len(out)] == out:
            return graph, found

        def run(*args: Tensor) -> list[Tensor]:
            """All lanes have the same value where the function's outputs have no lanes."""
            values = graph(*args)
            shared = [v.select(0, 0) if f and not o else v for v, f, o in zip(values, found, out)]
            return [*shared, *values[len(out) :]]

        key = ("shared outputs", out, found)
        return graph.derive(key, lambda: rewritten(run, graph.inputs, "vmap")), (*out, *found[len(out) :])

    def reverse(self, active: Mask) -> Reverse | None:
        return self.derive(("reverse", active), lambda: self._reverse(active))

    def _reverse(self, active: Mask) -> Reverse | None:
        inner = self._rule().reverse(active)
        if inner is None:
            return None
        mapped, n = self.mapped, self.n_outputs
        n_residuals = len(inner.forward.outputs) - n
        forward, out = self._batched(inner.forward, mapped, (False,) * n_residuals)
        cotangents = (True,) * count(self.layout.differentiable)
        everywhere = (True,) * len(inner.backward.outputs)
        over = (*out[n:], *mapped, *cotangents)
        backward, _ = batched(inner.backward, over, self.size, self.randomness, everywhere)
        shared = [not m for m, g in zip(mapped, inner.gradients) if g]
        return Reverse(forward, _summed(backward, shared), inner.gradients)

    def tangent(self) -> Subgraph | None:
        return self.derive("tangent", self._tangent)

    def _tangent(self) -> Subgraph | None:
        inner = self._rule().tangent()
        if inner is None:
            return None
        mapped, layout = self.mapped, self.layout
        tangents = tuple(m for m, d in zip(mapped, layout.differentiable_inputs) if d)
        return self._batched(inner, (*mapped, *tangents), (True,) * count(layout.differentiable))[0]


@dataclass(frozen=True, eq=False)
class Inlined(CustomRuleParams):
    """A call that dissolves into its graph, the forward graph of the rule ``of``."""

    of: Rule

    @property
    def public_name(self) -> str:
        return self.of.public_name


Rule = CustomRule | Batched


def materializing(rule: Rule, metas: tuple[TensorMeta, ...]) -> CustomRule:
    """A call that returns its operands, the cotangents that a ``backward`` of the user's is told: all are there as soon
    as one of them is. See NOTE [Absent cotangents].
    """
    every = (True,) * len(metas)
    layout = replace(
        rule.layout,
        n_inputs=len(metas),
        differentiable_inputs=every,
        gradients=every,
        differentiable=every,
        has_backward=False,
        has_tangent=True,
        constant_closure=True,
        vmap=None,
        transposes_backward=False,
        is_ordinary=True,
    )

    def made() -> CustomRule:
        identity, tangent = (rewritten(lambda *xs: list(xs), metas * n, "vjp") for n in (1, 2))
        return CustomRule(identity, (tangent,), -1, layout)

    return rule.derive(("materializing", metas), made)


def _transposed(rule: CustomRule, active: Mask) -> Reverse | None:
    """The reverse mode of a forward-mode rule: its tangents are linear in the given ones, wherever those are.

    A function that is linear itself has a rule that calls it on the tangents; there it is differentiated as it is.
    None for tangents that decide something: see NOTE [Only what is linear is transposed].
    """
    layout, binder = rule.layout, rule.binder
    ordinary = rule.variant(is_ordinary=True)
    tangent = _substituted(rule.derivatives[-1], binder, ordinary)
    n, n_outputs = len(active), len(layout.differentiable)
    has_tangent = [a for a, d in zip(active, layout.differentiable_inputs) if d]
    metas = tangent.inputs
    without = [meta for meta, m in zip(metas[n:], has_tangent) if not m]
    linear_inputs = [*metas[:n], *(meta for meta, m in zip(metas[n:], has_tangent) if m)]

    def linear(*args: Tensor) -> Sequence[Tensor]:
        given, zeros = iter(args[n:]), iter([meta.zeros() for meta in without])
        return tangent(*args[:n], *(next(given) if m else next(zeros) for m in has_tangent))

    body = rewritten(linear, linear_inputs, "vjp")
    sources = (*(False,) * n, *(True,) * (len(linear_inputs) - n))
    reached = dependent_outputs(body, sources, Through.GRADIENT)
    cotangents = (*(False,) * n_outputs, *reached[n_outputs:])
    if not is_transposable(body, sources, cotangents):
        return None
    part = partition(body, sources, cotangents)

    def everything(operands: Sequence[Tensor]) -> list[Tensor]:
        return [*operands, *(meta.zeros() for meta in linear_inputs[n:])]

    def forward(*operands: Tensor) -> list[Tensor]:
        outs = part.forward(*everything(operands))
        return [*outs[:n_outputs], *outs[len(body.outputs) :]]

    n_residuals = len(part.residuals)

    def backward(*args: Tensor) -> Sequence[Tensor]:
        operands = everything(args[n_residuals : n_residuals + n])
        cts = [ct for ct, r in zip(args[n_residuals + n :], reached[n_outputs:]) if r]
        return part.backward(*args[:n_residuals], *(x for x, k in zip(operands, part.kept) if k), *cts)

    cts = [meta for meta, d in zip(tangent.outputs, layout.differentiable) if d]
    graphs = (
        rewritten(forward, metas[:n], "vjp"),
        rewritten(backward, [*part.residuals, *metas[:n], *cts], "vjp"),
    )
    key = ordinary.key()
    restore = lambda params: rule if isinstance(params, CustomRule) and params.key() == key else None
    forward_graph, backward_graph = (_replaced(graph, restore) for graph in graphs)
    gradients = tuple(a and i < layout.n_inputs and layout.differentiable_inputs[i] for i, a in enumerate(active))
    return Reverse(forward_graph, backward_graph, gradients)


def _ordinary(function: Subgraph, active: Mask) -> Reverse:
    """The reverse mode of the function's own operators."""
    reached = dependent_outputs(function, active, Through.GRADIENT)
    part = partition(function, active, reached)
    n, n_residuals = len(active), len(part.residuals)

    def backward(*args: Tensor) -> Sequence[Tensor]:
        operands, cts = args[n_residuals : n_residuals + n], args[n_residuals + n :]
        given = [ct for ct, r in zip(cts, differentiable_reached) if r]
        return part.backward(*args[:n_residuals], *(x for x, k in zip(operands, part.kept) if k), *given)

    differentiable = [is_differentiable(meta.dtype) for meta in function.outputs]
    differentiable_reached = [r for r, d in zip(reached, differentiable) if d]
    cts = [meta for meta, d in zip(function.outputs, differentiable) if d]
    inputs = [*part.residuals, *function.inputs, *cts]
    return Reverse(part.forward, rewritten(backward, inputs, "vjp"), active)


def _tangent_of(rule: CustomRule) -> Subgraph:
    """The forward mode of a reverse-mode rule, whose gradients are linear in the cotangents, wherever those are."""
    layout, metas = rule.layout, rule.function.inputs
    n, n_outputs = len(metas), rule.n_outputs
    reverse = rule.reverse((True,) * n)
    assert reverse is not None
    backward = reverse.backward
    cts = [meta for meta, d in zip(rule.function.outputs, layout.differentiable) if d]
    is_cotangent = (*(False,) * (len(backward.inputs) - len(cts)), *(True,) * len(cts))
    transposed = joint(backward, is_cotangent, (True,) * len(backward.outputs))

    def tangent(*args: Tensor) -> list[Tensor]:
        operands, tangents = args[:n], iter(args[n:])
        outs = reverse.forward(*operands)
        given = [(next(tangents), g) for g, m in zip(layout.gradients, layout.differentiable_inputs) if m]
        zeros = [meta.zeros() for meta in cts]
        found = transposed(*outs[n_outputs:], *operands, *zeros, *(t for t, g in given if g))
        return [*outs[:n_outputs], *found[len(backward.outputs) :]]

    tangents = [meta for meta, d in zip(metas, layout.differentiable_inputs) if d]
    return rewritten(tangent, [*metas, *tangents], "jvp")


def _summed(backward: Subgraph, shared: Sequence[bool]) -> Subgraph:
    """The gradient of an operand that all lanes share is the sum over the lanes."""
    if not any(shared):
        return backward

    def run(*args: Tensor) -> list[Tensor]:
        return [g.sum(0) if s else g for g, s in zip(backward(*args), shared)]

    return backward.derive(("summed", tuple(shared)), lambda: rewritten(run, backward.inputs, "vmap"))


def _substituted(body: Subgraph, binder: int, rule: CustomRule) -> Subgraph:
    """The graph with ``rule`` in the place of its name."""

    def change(params: Params) -> Params | None:
        if isinstance(params, Recursion):
            return rule if params.binder == binder else params
        return params if isinstance(params, CustomRule) and params.binder == binder else None

    return _replaced(body, change)


def _replaced(body: Subgraph, change: Callable[[Params], Params | None]) -> Subgraph:
    """The graph with other parameters; where ``change`` gives None it goes on inside."""
    root, is_new = torch.nn.Module(), False
    for node in body.module.graph.nodes:
        if node.op == "get_attr":
            value = getattr(body.module, str(node.target))
            new = _changed(value, change) if isinstance(value, Params) else value
            setattr(root, str(node.target), new)
            is_new = is_new or new is not value
    if not is_new:
        return body
    return Subgraph.intern(fx.GraphModule(root, copy_graph(body)), body.inputs, body.outputs)


def _changed(params: Params, change: Callable[[Params], Params | None]) -> Params:
    new = change(params)
    if new is not None:
        return new
    if isinstance(params, Batched):
        of = _changed(params.of, change)
        assert isinstance(of, CustomRuleParams)
        return params if of is params.of else replace(params, of=of)
    return params.with_bodies(lambda body: _replaced(body, change))
