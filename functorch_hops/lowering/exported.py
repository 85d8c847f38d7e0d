"""What torch.export makes of an operator, as far as torch's derivatives of it matter.

NOTE [Training of exported programs] An exported program is differentiated by torch, which knows nothing of our rules.
Its derivatives of its own operators (2.13) are right at first order with exceptions, most of them silent:

- what a ``while_loop`` does in its first step counts where it takes none; a carry whose initial value has no gradient
  has none in later steps;
- integers among the results of a ``scan``, ``map`` or ``cond`` end the backward pass, and of a ``scan`` the forward
  pass too, as do those that a ``scan`` in a ``scan`` runs over; in torch 2.11 a carry of a ``scan`` is like that of a
  ``while_loop``;
- the derivative of a ``cond`` is a ``cond`` whose results must have the same strides in both branches, and be no
  expanded tensors; that of a ``while_loop`` is one whose carries, the gradients, must keep their strides;
- a ``scan`` that stacks nothing, and whose derivative reads nothing of its steps, has none; nor has one in a ``scan``
  whose step returns a tensor that the derivative reads: two results of a step, of one memory;
- the derivative of a determinant in a ``scan`` is that of the transposed matrix where the matrix was not contiguous
  (`trace/normalize.py` sees to it that it is);
- none has a derivative over complex numbers or a second one, and a ``while_loop`` in a ``scan`` has no first;
- the derivative of a custom rule is that of the function.

Where a tensor of the export requires a gradient, an operator takes a form for which torch is right (`is_training`), if
there is one: a ``while_loop`` is a branch of a ``cond`` on its first condition. So do operators that are torch's but
for integers among their results, of whose derivative torch asks even in the forward pass, once an input requires one.
Where there is none, the program is for inference: a warning says so, and a backward pass through the operator raises.
The latter takes an operator that torch has no derivative of, since the program runs without this library.

``no_grad`` around a whole export is no part of the program, as it is none for torch's own operators
(`calls/recording.py`). But there a tensor that is no parameter never requires a gradient. What the model itself runs
under ``no_grad`` is detached, since torch's graph forgets ``no_grad`` around its operators.

A program that becomes one of ONNX is never differentiated, and ONNX has nothing to put in the place of these forms.
What an operator takes is detached there: to decompose the program torch runs it once more, with gradients, and would
look for derivatives.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _torch
from ..errors import message, warn
from ..ir.meta import TensorMeta, is_differentiable
from ..ir.subgraph import Params, params_of

__all__ = [
    "as_declared",
    "as_floats",
    "as_real",
    "exported",
    "is_training",
    "native_cond",
    "tied",
    "with_dense_gradients",
]

Lower = Callable[[Sequence[Any]], Sequence[Tensor]]


class _Inside(threading.local):
    training: bool | None = None
    """In an operator that is being exported: whether it takes the form for training."""


_inside = _Inside()


def is_training() -> bool:
    """Whether what is exported now takes the form of which torch's derivatives are right."""
    return bool(_inside.training)


@contextlib.contextmanager
def _exporting(training: bool) -> Iterator[None]:
    _inside.training = training
    try:
        yield
    finally:
        _inside.training = None


def exported(params: Params, operands: Sequence[Any], lower: Lower) -> Sequence[Tensor]:
    """``lower(operands)`` as a program that is exported holds it: see NOTE [Training of exported programs]."""
    why = params.lost_when_exported
    if _inside.training is not None or (why is None and not params.is_native):
        return lower(operands)  # inside, or an operator that dissolves: what it holds comes here itself
    if _torch.is_exporting_to_onnx():
        with _exporting(training=False):
            return lower(_detached(operands))
    if not torch.is_grad_enabled():
        with _exporting(training=False):
            return _detached(lower(_detached(operands)))
    has_gradient = any(isinstance(x, Tensor) and x.requires_grad for x in operands)
    parts = list(_within(params))
    why = why or next((part.lost_when_exported for part in parts if part.lost_when_exported), None) or _nested(params)
    if why is not None:
        if has_gradient:
            _warn(params, why)
        with _exporting(training=False):
            results = lower(_detached(operands))
        return _underivable(results, operands)
    trains_otherwise = any(part.trains_otherwise for part in parts)
    with _exporting(has_gradient or not trains_otherwise):
        results = lower(operands)
    if has_gradient:
        for x in results:
            if is_differentiable(x.dtype) and not x.requires_grad:
                x.requires_grad_()  # which torch does not know while it traces
    elif trains_otherwise:
        return _underivable(results, operands)
    return results


def _underivable(results: Sequence[Tensor], operands: Sequence[Any]) -> list[Tensor]:
    return [_torch.underivable(x) if is_differentiable(x.dtype) else x for x in tied(results, operands)]


def _detached(values: Sequence[Any]) -> list[Any]:
    return [x.detach() if isinstance(x, Tensor) else x for x in values]


def _within(params: Params) -> Iterator[Params]:
    yield params
    for body in params.run_bodies:
        for node in body.module.graph.nodes:
            inner = params_of(node, body.module)
            if inner is not None:
                yield from _within(inner)


def _nested(params: Params) -> str | None:
    """Why torch has no derivative of what is inside, if it has none."""
    for part in _within(params):
        metas = (meta for body in part.run_bodies for meta in (*body.inputs, *body.outputs))
        if part.is_native and any(meta.dtype.is_complex for meta in metas):
            return "torch has no derivative of it over complex numbers"
        is_scan = part.is_native and not part.trains_otherwise and part.operator.rules.native_loop(part) is not None
        if is_scan and any(inner.trains_otherwise for inner in _within(part)):
            return "torch has no derivative of a while loop in the step of a scan"
    return None


def _warn(params: Params, why: str) -> None:
    origin = params.origin
    text = message(
        "export",
        f"the program is for inference: a backward pass through {params.public_name} will raise, since {why}",
        remedy="train the module itself, or freeze its parameters (requires_grad_(False)) where it is exported",
        at=None if origin is None else (origin.file, origin.line),
    )
    warn(text)


def native_cond(
    predicate: Tensor,
    true_fn: Callable[..., tuple[Tensor, ...]],
    false_fn: Callable[..., tuple[Tensor, ...]],
    operands: Sequence[Tensor],
) -> Sequence[Tensor]:
    """torch's ``cond`` in a form of which its derivative is right."""
    if is_training():
        operands = [_torch.dense(x) if _is_float(x) else x for x in operands]
        true_fn, false_fn = with_dense_gradients(true_fn), with_dense_gradients(false_fn)
    return _torch.native_cond(predicate, true_fn, false_fn, tuple(operands))


def with_dense_gradients(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """The gradient of a part of a tensor is written into zeros, hence that of all of it into a tensor of its own."""
    all_of = lambda x: x.reshape(-1)[:].reshape(x.shape) if _is_float(x) and x.dim() else x
    return lambda *args: function(*map(all_of, args))


def tied(results: Sequence[Tensor], operands: Sequence[Any]) -> list[Tensor]:
    """The same values, with gradients wherever an operand has one: of the results of each, times a one that is the
    product of one and nothing of theirs. (ONNX joins no tensors that are all empty. Of what AOTInductor knows to be a
    number, Inductor (2.13) can make an expanded tensor and no view.)
    """
    nothing = [_numbers(x) for x in operands if _is_float(x)]
    if not nothing:
        return list(results)
    numbers = [x.expand(0, *x.shape).reshape(0).to(torch.float64) for x in nothing]
    one = torch.cat([numbers[0].new_ones(1), *numbers]).prod()
    return [_times(x, one) if _is_float(x) else x for x in results]


def _is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and is_differentiable(x.dtype)


def _numbers(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def _times(x: Tensor, one: Tensor) -> Tensor:
    """Of complex numbers each part by itself, since infinity times i is not a number."""
    numbers = _numbers(x)
    product = numbers * one.to(numbers.dtype)
    return torch.complex(product.select(-1, 0), product.select(-1, 1)) if x.is_complex() else product


# ---------------------------------------------------------------------------------------------------------------------
# how values travel through torch's operators


def as_real(tensors: Sequence[Any]) -> list[Any]:
    """Complex numbers as pairs of real ones."""
    return [torch.view_as_real(t.resolve_conj()) if isinstance(t, Tensor) and t.is_complex() else t for t in tensors]


def as_floats(tensors: Sequence[Tensor]) -> list[Tensor]:
    """What has no derivatives by its bits, as numbers that have."""
    return [t if is_differentiable(t.dtype) else t.to(torch.int64).view(torch.float64) for t in tensors]


def as_declared(tensors: Sequence[Any], metas: Sequence[TensorMeta]) -> list[Any]:
    """What travelled as other numbers, as what it is."""
    return [_declared(t, meta.dtype) for t, meta in zip(tensors, metas)]


def _declared(t: Any, dtype: torch.dtype) -> Any:
    if not isinstance(t, Tensor) or t.dtype == dtype:
        return t
    return torch.view_as_complex(t) if dtype.is_complex else t.view(torch.int64).to(dtype)
