"""The rules of a call with derivatives of its own.

NOTE [Derivatives are ordinary code] At the level that differentiates it, the call is replaced by its forward graph,
whose gradient is the backward graph; or, in forward mode, by its tangent graph. Every level below differentiates
these as it does any code: so the second derivative is that of the rule, residuals included, as in JAX. (jax
``custom_derivatives.py``; Radul et al., "You only linearize once", 2023.)
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from ... import _torch
from ...derive.batch import batched
from ...derive.partition import Partition, partition
from ...derive.tangent import with_tangents
from ...errors import CaptureError, message
from ...ir.dependence import Pruned, Through, dependent_outputs
from ...ir.meta import Mask, TensorMeta
from ...ir.subgraph import Subgraph
from ..missing_derivative.op import FailedRule, MissingDerivative, absent_derivatives, closed_over
from .op import custom_rule_op
from .parameters import Batched, CustomRuleParams, Inlined, Recursion, Rule, materializing

__all__ = [
    "custom_rule_abstract_eval",
    "custom_rule_batch",
    "custom_rule_dependent_outputs",
    "custom_rule_impl",
    "custom_rule_jvp",
    "custom_rule_lower",
    "custom_rule_passthrough",
    "custom_rule_prune",
    "custom_rule_vjp_backward",
    "custom_rule_vjp_forward",
]


def custom_rule_impl(params: CustomRuleParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return params.function(*operands)


def custom_rule_abstract_eval(params: CustomRuleParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return [meta.empty() for meta in params.function.outputs]


def custom_rule_lower(params: CustomRuleParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    """What is lowered has been differentiated already."""
    return params.function(*operands)


def custom_rule_passthrough(params: CustomRuleParams, operands: Sequence[Hashable]) -> None:
    """The derivative is the user's, who sees all operands and outputs: they stay as they are."""


def custom_rule_prune(params: CustomRuleParams, used: Mask) -> Pruned[CustomRuleParams] | None:
    """The rule is about all operands and outputs of the call."""
    return None


# ---------------------------------------------------------------------------------------------------------------------
# reverse mode


def custom_rule_vjp_forward(params: CustomRuleParams, active: Mask) -> CustomRuleParams:
    if isinstance(params, Inlined):
        return Inlined(_residual_partition(params, active).forward, params.of)
    rule = _require_rule(params)
    reverse = rule.reverse(active)
    return rule if reverse is None else Inlined(reverse.forward, rule)


def custom_rule_vjp_backward(
    params: CustomRuleParams,
    active: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    if isinstance(params, Inlined):
        return _second_derivative(params, active, operands, residuals, cotangents)
    rule = _require_rule(params)
    layout = rule.layout
    cts = [meta.or_zeros(ct) for ct, meta, d in zip(cotangents, rule.function.outputs, layout.differentiable) if d]
    reverse = rule.reverse(active)
    absence: MissingDerivative | FailedRule | None = _closed_over(rule, active, Through.GRADIENT)
    if reverse is None:
        absence = absence or layout.missing_reverse
    if reverse is None or absence is not None:
        assert absence is not None
        asking = [meta for meta, a in zip(rule.function.inputs, active) if a]
        absent = iter(absent_derivatives(absence, asking, [*operands, *cts]))
        return [next(absent) if a else None for a in active]
    with _torch.autocast_off():
        if layout.has_backward and len(cts) > 1:
            cts = list(custom_rule_op(materializing(rule, tuple(map(TensorMeta.of, cts))), *cts))
        grads = iter(reverse.backward(*residuals, *operands, *cts))
    return [next(grads) if g else None for g in reverse.gradients]


def _residual_partition(params: Inlined, active: Mask) -> Partition:
    """How the residuals of a forward graph are differentiated: as ordinary code."""
    graph, n_outputs = params.function, params.of.n_outputs
    reached = dependent_outputs(graph, active, Through.GRADIENT)
    cotangents = (*(False,) * n_outputs, *reached[n_outputs:])
    return partition(graph, active, cotangents)


def _second_derivative(
    params: Inlined,
    active: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    """A second derivative by plain autograd, whose cotangents arrive at the node of the first.

    Those of the outputs are the first derivative's business, and take the rule; those of the residuals are the
    second's.
    """
    rule, graph = params.of, params.function
    part = _residual_partition(params, active)
    grads = part.pull(lambda backward, given: backward(*given), operands, residuals, cotangents)
    n_outputs = rule.n_outputs
    if all(ct is None for ct in cotangents[:n_outputs]):
        return grads
    values = graph(*operands)[n_outputs:]
    first = custom_rule_vjp_backward(rule, active, operands, values, cotangents[:n_outputs])
    return [b if a is None else a if b is None else a + b for a, b in zip(grads, first)]


# ---------------------------------------------------------------------------------------------------------------------
# forward mode and vmap


def custom_rule_jvp(
    params: CustomRuleParams, primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    has_tangent = tuple(t is not None for t in tangents)
    if isinstance(params, Inlined):
        return _ordinary_jvp(params.function, primals, has_tangent, tangents)
    rule = _require_rule(params)
    layout, n = rule.layout, rule.n_outputs
    absence: MissingDerivative | FailedRule | None = _closed_over(rule, has_tangent, Through.TANGENT)
    if not any(t and d for t, d in zip(has_tangent, layout.differentiable_inputs)) and absence is None:
        return custom_rule_op(rule, *primals), [None] * n
    graph = rule.tangent()
    if graph is None and absence is None:
        absence = layout.missing_tangent
    if graph is None or absence is not None:
        assert absence is not None
        metas = [meta for meta, d in zip(rule.function.outputs, layout.differentiable) if d]
        found = iter(absent_derivatives(absence, metas, [*primals, *(t for t in tangents if t is not None)]))
        return custom_rule_op(rule, *primals), [next(found) if d else None for d in layout.differentiable]
    given = [
        torch.zeros_like(p) if t is None else t for p, t, m in zip(primals, tangents, layout.differentiable_inputs) if m
    ]
    with _torch.autocast_off():
        outs = [x.contiguous() for x in graph(*primals, *given)]
    found = iter(outs[n:])
    return outs[:n], [next(found) if d else None for d in layout.differentiable]


def _ordinary_jvp(
    graph: Subgraph, primals: Sequence[Tensor], active: Mask, tangents: Sequence[Tensor | None]
) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    """Forward mode of plain autograd, which meets the forward graph at the node of the first derivative."""
    both, reached = with_tangents(graph, active)
    with _torch.autocast_off():
        outs = [x.contiguous() for x in both(*primals, *(t for t in tangents if t is not None))]
    found = iter(outs[len(reached) :])
    return outs[: len(reached)], [next(found) if r else None for r in reached]


def custom_rule_dependent_outputs(
    params: CustomRuleParams, sources: Mask, through: Through, trips: int | None = None
) -> Mask:
    if isinstance(params, Inlined):
        return dependent_outputs(params.function, sources, through)
    rule, hit = _rule_of(params), any(sources) or (through is Through.LANE and params.draws)
    if rule is None or not hit:
        return (hit,) * params.n_outputs
    layout = rule.layout
    differentiable = layout.differentiable
    if through is Through.COTANGENT and layout.has_backward:
        closed_over = (not layout.constant_closure,) * (len(sources) - layout.n_inputs)  # the error of ``_closed_over``
        led = ((*inputs, *closed_over) for inputs in rule.leading_back())
        return tuple(d and any(s and m for s, m in zip(sources, mask)) for d, mask in zip(differentiable, led))
    if not through.is_of_values:
        return tuple(hit and d for d in differentiable)
    if layout.vmap is not None:
        return (True,) * params.n_outputs
    # The lanes of a differentiable output have cotangents of their own, even where its value is shared.
    reached = dependent_outputs(params.function, sources, through)
    return tuple(r or d for r, d in zip(reached, differentiable))


def custom_rule_batch(
    params: CustomRuleParams, operands: Sequence[Tensor], mapped: Mask, size: int, randomness: str
) -> tuple[Sequence[Tensor], Mask]:
    rule = _rule_of(params)
    if rule is not None and rule.layout.vmap is not None:
        found: tuple[Sequence[Tensor], Mask] = rule.layout.vmap(operands, mapped, size, randomness)
        return found
    reached = custom_rule_dependent_outputs(params, mapped, Through.of_vmap(randomness))
    out = tuple(r or size == 0 for r in reached)
    body, out = batched(params.function, mapped, size, randomness, out)
    return custom_rule_op(Batched(body, params, mapped, size, randomness, out), *operands), out


# ---------------------------------------------------------------------------------------------------------------------
# refusals


def _rule_of(params: CustomRuleParams) -> Rule | None:
    """The parameters as a rule; None inside the graphs of this rule itself (NOTE [Recursion])."""
    of = params
    while isinstance(of, Batched):
        of = of.of
    return params if isinstance(params, Rule) and not isinstance(of, Recursion) else None


def _require_rule(params: CustomRuleParams) -> Rule:
    rule = _rule_of(params)
    if rule is None:
        raise CaptureError(
            message(
                "custom rule",
                "a rule differentiates the function that it belongs to",
                remedy="write the rule in terms of other functions; it may call its own function, not differentiate it",
            )
        )
    return rule


def _closed_over(rule: Rule, active: Mask, through: Through) -> MissingDerivative | None:
    """Why there is no derivative, where a closed-over value is differentiated."""
    layout = rule.layout
    values = tuple(a and i >= layout.n_inputs for i, a in enumerate(active))
    if layout.constant_closure or not any(values):
        return None
    reached = dependent_outputs(rule.function, values, through)
    if not any(r and d for r, d in zip(reached, layout.differentiable)):
        return None
    return closed_over(layout.name, str(rule.function.inputs[values.index(True)]))
