"""All rules of a missing derivative: it raises when it runs, and so does each derivative of it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

from torch import Tensor

from ...ir.dependence import Pruned, Through
from ...ir.meta import Mask, TensorMeta, is_differentiable
from .op import MissingDerivativeParams, missing_derivative_op

__all__ = [
    "missing_derivative_abstract_eval",
    "missing_derivative_batch",
    "missing_derivative_dependent_outputs",
    "missing_derivative_impl",
    "missing_derivative_jvp",
    "missing_derivative_passthrough",
    "missing_derivative_prune",
    "missing_derivative_vjp_backward",
    "missing_derivative_vjp_forward",
]


def missing_derivative_impl(params: MissingDerivativeParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    raise params.missing.exception()


def missing_derivative_abstract_eval(params: MissingDerivativeParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return [meta.empty() for meta in params.outputs]


def missing_derivative_dependent_outputs(
    params: MissingDerivativeParams, sources: Mask, through: Through, trips: int | None = None
) -> Mask:
    by_value = through.is_of_values
    return tuple(any(sources) and (by_value or is_differentiable(meta.dtype)) for meta in params.outputs)


def missing_derivative_batch(
    params: MissingDerivativeParams, operands: Sequence[Tensor], mapped: Mask, size: int, randomness: str
) -> tuple[Sequence[Tensor], Mask]:
    batched = replace(params, outputs=tuple(meta.with_leading(size) for meta in params.outputs))
    return missing_derivative_op(batched, *operands), (True,) * params.n_outputs


def missing_derivative_jvp(
    params: MissingDerivativeParams, primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    """What is missing has no derivative that is known: it is missing too."""
    tangent_mask = missing_derivative_dependent_outputs(params, tuple(t is not None for t in tangents), Through.TANGENT)
    found = iter(missing_derivative_op(params, *primals, *(t for t in tangents if t is not None)))
    return missing_derivative_op(params, *primals), [t if m else None for t, m in zip(found, tangent_mask)]


def missing_derivative_vjp_forward(params: MissingDerivativeParams, active: Mask) -> MissingDerivativeParams:
    return params


def missing_derivative_vjp_backward(
    params: MissingDerivativeParams,
    active: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    metas = tuple(TensorMeta.of(x) for x, a in zip(operands, active) if a)
    asked = [ct for ct in cotangents if ct is not None]
    grads = iter(missing_derivative_op(replace(params, outputs=metas), *operands, *asked))
    return [next(grads) if a else None for a in active]


def missing_derivative_prune(params: MissingDerivativeParams, used: Mask) -> Pruned[MissingDerivativeParams] | None:
    return None


def missing_derivative_passthrough(params: MissingDerivativeParams, operands: Sequence[Hashable]) -> None:
    """Nothing is known of what is not computed."""
