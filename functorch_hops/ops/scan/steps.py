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
from ...capture.output import OutputSpec, number_as_tensor
from ...capture.validate import check_carry
from ...errors import TreeMismatchError, message

__all__ = ["carry_check", "elements", "stack_outputs"]


def carry_check(operation: str, parameter: str, init: Any) -> Callable[[Any], Any]:
    """A function from what a body returned to the next carry: Python numbers as tensors; raises if it is not like
    ``init``.
    """
    leaves, spec = pytree.flatten(init)
    expected = [(x.shape, x.dtype, x.device) for x in leaves]

    def check_fully(value: Any) -> Any:
        value = pytree.map(number_as_tensor, value)
        check_carry(operation, parameter, OutputSpec.flatten(init)[1], OutputSpec.flatten(value)[1])
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


def stack_outputs(outputs: Sequence[Any]) -> Any:
    """The ys of all steps, stacked leaf by leaf; a leaf that is no tensor must be the same in every step."""
    if all(type(y) is Tensor for y in outputs):
        return torch.stack(list(outputs))
    first, spec = pytree.flatten(outputs[0])
    try:
        rows = [first, *map(spec.flatten_up_to, outputs[1:])]
    except (ValueError, TypeError):
        _refuse_changed_tree(spec, outputs)
    return pytree.unflatten(spec, [_stacked(column) for column in zip(*rows)])


def _refuse_changed_tree(expected: pytree.Spec, outputs: Sequence[Any]) -> NoReturn:
    differences = (pytree.difference(expected, pytree.flatten(y)[1], "y") for y in outputs)
    where, left, right = next(filter(None, differences), ("y", "", ""))
    raise TreeMismatchError(
        message("scan", "y changes its tree between steps", parameter="f", path=where, expected=left, got=right)
    )


def _stacked(column: tuple[Any, ...]) -> Any:
    first = column[0]
    if all(isinstance(x, Tensor) for x in column):
        return torch.stack(column)
    for value in column:
        if type(value) is not type(first) or value != first:
            raise TreeMismatchError(
                message(
                    "scan",
                    "a leaf of y that is no tensor changes between steps",
                    parameter="f",
                    expected=repr(first),
                    got=repr(value),
                    remedy="return it as a tensor",
                )
            )
    return first
