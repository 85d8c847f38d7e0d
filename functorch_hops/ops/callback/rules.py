"""All rules of callbacks. They have no derivative of their own: it is the user's, who puts them into a custom rule."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import pytree
from ...calls.notes import note_called_back
from ...errors import MetadataMismatchError, TreeMismatchError, message
from ...ir.dependence import Through
from ...ir.meta import Mask, TensorMeta, is_differentiable
from ...lowering.loops.forms import Refused
from ...trace.capture import outside_of_captures
from ..handles import number_of
from ..missing_derivative.op import absent_derivatives, missing
from .native import callback
from .op import CallbackParams, callback_op

__all__ = [
    "callback_abstract_eval",
    "callback_batch",
    "callback_dependent_outputs",
    "callback_form",
    "callback_impl",
    "callback_jvp",
    "callback_lower",
    "callback_passthrough",
    "callback_prune",
    "callback_vjp_backward",
    "callback_vjp_forward",
]

_MISSING = missing(
    "pure_callback",
    "a Python function has no derivative",
    "put the call into a function with a rule, fh.custom_vjp or fh.custom_jvp",
)


def callback_impl(params: CallbackParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    with outside_of_captures(), torch.no_grad():
        if params.at_once and params.lanes:
            lanes = params.lane_sizes(operands)
            full = [_expanded(x, mapped, lanes) for x, mapped in zip(operands, params.mapped)]
            return _called(params, full, params.all_outputs(operands))
        outs = [meta.empty() for meta in params.all_outputs(operands)]
        for lane in params.each_lane(operands):
            for out, value in zip(outs, _called(params, params.at_lane(operands, lane), params.outputs)):
                out[lane] = value
        return outs


def _expanded(x: Tensor, mapped: Mask, lanes: Sequence[int]) -> Tensor:
    sizes = [size if m else 1 for size, m in zip(lanes, mapped)]
    rest = x.shape[sum(mapped) :]
    return x.reshape(*sizes, *rest).expand(*lanes, *rest)


def _called(params: CallbackParams, values: Sequence[Tensor], metas: Sequence[TensorMeta]) -> list[Tensor]:
    """One call, of NumPy arrays."""
    arrays: list[Any] = [x.detach().cpu().numpy() for x in values]
    args, kwargs = params.call.unflatten(arrays)
    try:
        result = params.function(*args, **kwargs)
    except Exception as error:
        note_called_back(error, "pure_callback", params.place)
        raise
    leaves, _ = pytree.flatten(result)
    if len(leaves) != len(metas):
        raise TreeMismatchError(_refusal(params, "a result of another tree", f"{len(metas)} arrays", len(leaves)))
    return [_as_declared(params, leaf, meta) for leaf, meta in zip(leaves, metas)]


def _as_declared(params: CallbackParams, leaf: Any, meta: TensorMeta) -> Tensor:
    value = torch.as_tensor(leaf)
    if tuple(value.shape) != tuple(meta.shape) or not torch.can_cast(value.dtype, meta.dtype):
        got = TensorMeta.of(value)
        raise MetadataMismatchError(_refusal(params, "a result that is not what was declared", meta, got))
    return value.to(meta.device, meta.dtype)


def _refusal(params: CallbackParams, problem: str, expected: object, got: object) -> str:
    return message(
        "pure_callback",
        f"the function returned {problem}",
        parameter="f",
        expected=expected,
        got=got,
        remedy="describe in result_shape what the function returns",
        at=params.place,
    )


def callback_abstract_eval(params: CallbackParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return [meta.empty() for meta in params.all_outputs(operands)]


def callback_dependent_outputs(
    params: CallbackParams, sources: Mask, through: Through, trips: int | None = None
) -> Mask:
    return tuple(any(sources) and (through.is_of_values or is_differentiable(meta.dtype)) for meta in params.outputs)


def callback_batch(
    params: CallbackParams, operands: Sequence[Tensor], mapped: Mask, size: int, randomness: str
) -> tuple[Sequence[Tensor], Mask]:
    batched, operands = params.under_vmap(operands, mapped, size)
    outs = callback_op(batched, *operands)
    return outs, (True,) * params.n_outputs


def callback_jvp(
    params: CallbackParams, primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    reached = callback_dependent_outputs(params, tuple(t is not None for t in tangents), Through.TANGENT)
    metas = [meta for meta, r in zip(params.all_outputs(primals), reached) if r]
    asked = [*primals, *(t for t in tangents if t is not None)]
    found = iter(absent_derivatives(_MISSING, metas, asked) if metas else ())
    return callback_op(params, *primals), [next(found) if r else None for r in reached]


def callback_vjp_forward(params: CallbackParams, active: Mask) -> CallbackParams:
    return params


def callback_vjp_backward(
    params: CallbackParams,
    active: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    metas = [TensorMeta.of(x) for x, a in zip(operands, active) if a]
    grads = iter(absent_derivatives(_MISSING, metas, [*operands, *(ct for ct in cotangents if ct is not None)]))
    return [next(grads) if a else None for a in active]


def callback_prune(params: CallbackParams, used: Mask) -> None:
    return None


def callback_passthrough(params: CallbackParams, operands: Sequence[Hashable]) -> None:
    """Nothing is known of what a Python function returns."""


def callback_form(params: CallbackParams, operands: Sequence[Any]) -> None:
    raise Refused("it calls a Python function")


def callback_lower(params: CallbackParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    params.refuse_export("call Python", "fh.pure_callback")
    outs: Sequence[Tensor] = callback(list(operands), number_of(params))
    return outs
