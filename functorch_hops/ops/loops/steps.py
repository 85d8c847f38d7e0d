"""The carry and the outputs of a plain-eager loop: checked after each step, at a cost far below an operator's.

NOTE [Cheap checks] A step must cost little more than its own operators. A carry or an element that is one tensor is not
flattened at all; a tree goes through optree's C++ (``flatten_up_to``, which also compares the structure). Whatever
looks unusual falls through to the full check, which finds the words for the error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from ... import pytree
from ...calls.output import OutputSpec, number_as_tensor
from ...calls.static_values import same_static
from ...calls.validate import check_carry, kind_of
from ...errors import ErrorContext, MetadataMismatchError, TreeMismatchError, message

__all__ = ["carry_check", "elements", "stack_outputs"]


def carry_check(context: ErrorContext, init: Any) -> Callable[[Any], Any]:
    """A function from what a body returned to the next carry: Python numbers as tensors; raises if it is not like
    ``init``.
    """
    # Read now: where the steps are captured, reading them there would make operands of the initial values.
    _, carry = OutputSpec.flatten(init)
    spec, expected = carry.spec, carry.metas

    def check_fully(value: Any) -> Any:
        value = pytree.map(number_as_tensor, value)
        check_carry(context, carry, OutputSpec.flatten(value)[1])
        return value

    if type(init) is Tensor:
        ((shape, dtype, device),) = expected

        def check_tensor(value: Any) -> Any:
            if type(value) is Tensor and value.dtype is dtype and value.shape == shape and value.device == device:
                return value
            return check_fully(value)

        return check_tensor

    def check_tree(value: Any) -> Any:
        try:
            found = spec.flatten_up_to(value)
        except (ValueError, TypeError):
            return check_fully(value)
        for x, (shape, dtype, device) in zip(found, expected):
            if not (isinstance(x, Tensor) and x.dtype is dtype and x.shape == shape and x.device == device):
                return check_fully(value)
        return value

    return check_tree


def elements(leaves: Sequence[Tensor], spec: pytree.Spec, length: int, reverse: bool) -> Iterator[Any]:
    """The elements of ``xs``, one tree for each step."""
    slices = [reversed(x.unbind(0)) if reverse else x.unbind(0) for x in leaves]
    if len(leaves) == 1 and spec.is_leaf():
        return iter(slices[0])
    if not leaves:
        return (spec.unflatten(()) for _ in range(length))
    return map(spec.unflatten, zip(*slices, strict=True))


def stack_outputs(outputs: Sequence[Any], context: ErrorContext) -> Any:
    """The outputs of all steps, stacked leaf by leaf; a leaf that is no tensor must be the same in every step."""
    if all(type(y) is Tensor for y in outputs):
        return _stacked(list(outputs), context, context.output)
    first, spec = pytree.flatten(outputs[0])
    try:
        rows = [first, *map(spec.flatten_up_to, outputs[1:])]
    except (ValueError, TypeError):
        _refuse_changed_tree(spec, outputs, context)
    paths = pytree.leaf_paths(spec, context.output) if first else []
    return pytree.unflatten(spec, [_stacked(column, context, path) for column, path in zip(zip(*rows), paths)])


def _refuse_changed_tree(expected: pytree.Spec, outputs: Sequence[Any], context: ErrorContext) -> NoReturn:
    differences = (pytree.difference(expected, pytree.flatten(y)[1], context.output) for y in outputs)
    found = next(filter(None, differences), None)
    assert found is not None, "optree could not match the trees"
    where, left, right = found
    raise TreeMismatchError(
        message(
            context.operation,
            f"{context.output} changes its tree between steps",
            parameter=context.parameter,
            path=where,
            expected=f"{left} as in the first step",
            got=right,
            remedy="return the same tree in every step",
        )
    )


def _stacked(column: Sequence[Any], context: ErrorContext, path: str) -> Any:
    first = column[0]
    if not isinstance(first, Tensor):
        for value in column:
            if not same_static(first, value):
                _refuse_changed_leaf(first, value, context, path)
        return first
    shape, dtype, device = first.shape, first.dtype, first.device
    for x in column:
        if not (isinstance(x, Tensor) and x.dtype is dtype and x.shape == shape and x.device == device):
            _refuse_changed_leaf(first, x, context, path)
    return torch.stack(tuple(column))


def _refuse_changed_leaf(expected: Any, got: Any, context: ErrorContext, path: str) -> NoReturn:
    both = isinstance(expected, Tensor) and isinstance(got, Tensor)
    error = MetadataMismatchError if both else TreeMismatchError
    what = "changes its shape, dtype or device" if both else "that is no tensor changes"
    raise error(
        message(
            context.operation,
            f"a leaf of {context.output} {what} between steps",
            parameter=context.parameter,
            path=path,
            expected=f"{kind_of(expected)}, as in the first step",
            got=kind_of(got),
            remedy="return what the first step returned, or tensors of one shape, dtype and device",
        )
    )
