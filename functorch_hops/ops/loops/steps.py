"""The carry and the outputs of a plain-eager loop: checked after each step, at a cost far below an operator's.

NOTE [Cheap checks] A step must cost little more than its own operators. A carry or an element that is one tensor is not
flattened at all; a tree goes through optree's C++ (``flatten_up_to``, which also compares the structure). Whatever
looks unusual falls through to the full check, which finds the words for the error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from ... import pytree
from ...calls.numbers import number_as_tensor
from ...calls.output import OutputSpec
from ...calls.own_memory import InputVersions, with_own_memory
from ...calls.static_values import same_static
from ...calls.validate import kind_of
from ...errors import ErrorContext, MetadataMismatchError, TreeMismatchError, message
from ...lowering.loops.watching import state
from .weak_carry import InitialCarry, converted, next_carry, step_kinds

__all__ = ["PlainCarry", "elements", "stack_outputs"]


class PlainCarry:
    """The carry of a loop that runs as Python: ``follow`` takes what a body returned to the next carry, or raises."""

    __slots__ = (
        "_context",
        "_expected",
        "_init",
        "_of_first",
        "_spec",
        "_value",
        "_versions",
        "_watch",
        "follow",
        "goes_on",
        "settled_at",
        "steps",
    )

    def __init__(
        self,
        context: ErrorContext,
        init: InitialCarry,
        xs: Sequence[Tensor] = (),
        length: int | None = None,
    ) -> None:
        """``xs``: what the steps get rows of; ``length``: how many there are, if that is known."""
        self._versions = InputVersions([*pytree.flatten(init.tree)[0], *xs])
        self._context, self._init, self._value = context, init, init.tree
        self.steps = 0
        self.settled_at = 0
        """The step from which on the carry was of one kind."""
        self.goes_on = False
        """Whether the rest of the loop runs as a graph."""
        self._expect(init.spec)
        self.follow: Callable[[Any], Any] = self._follow_first
        self._watch = state.watch
        if self._watch is not None:
            self._watch.begin(self, length)

    def _expect(self, carry: OutputSpec) -> None:
        self._spec, self._expected = carry, carry.metas
        self._of_first = self._expected[0] if self._expected else None

    def _follow_first(self, value: Any) -> Any:
        self._versions.check(self._context)
        self.follow = self._follow_tensor if type(self._init.tree) is Tensor else self._follow_tree
        if self._watch is not None:
            self.follow = functools.partial(self._follow_watched, self.follow)
        return self.follow(value)

    def _follow_watched(self, follow: Callable[[Any], Any], value: Any) -> Any:
        value = follow(value)
        self._watch.at(self, self.steps)  # type: ignore[union-attr]
        return value

    def _follow_tensor(self, value: Any) -> Any:
        self.steps += 1
        shape, dtype, device = self._of_first  # type: ignore[misc]
        if type(value) is Tensor and value.dtype is dtype and value.shape == shape and value.device == device:
            return value
        return self._follow_checked(value)

    def _follow_tree(self, value: Any) -> Any:
        self.steps += 1
        try:
            found = self._spec.spec.flatten_up_to(value)
        except (ValueError, TypeError):
            return self._follow_checked(value)
        for x, (shape, dtype, device) in zip(found, self._expected):
            if not (isinstance(x, Tensor) and x.dtype is dtype and x.shape == shape and x.device == device):
                return self._follow_checked(value)
        self._value = value
        return value

    def _follow_checked(self, value: Any) -> Any:
        given = pytree.flatten(self._value)[0]
        tensors, following = next_carry(self._context, self._spec, self._init.weak, given, value)
        if following != self._spec:
            self._expect(following)
            self.settled_at = self.steps
        self._value = value = following.unflatten(tensors)
        return value

    @property
    def operation(self) -> str:
        """What the user called."""
        return self._context.operation

    @property
    def is_settled(self) -> bool:
        """Whether a step has shown what the numbers become: see NOTE [Numbers in a carry]."""
        return self.settled_at < self.steps or not any(self._init.weak)

    def final(self, made: list[Any], step: Callable[[Any, Any], Any], slices: Sequence[Tensor] = ()) -> Any:
        """The carry ``made`` by the last step, given a step as that of a scan over one tensor or none."""
        if not self.is_settled:
            spec = pytree.flatten(slices[0])[1] if slices else None
            made[0] = converted(made[0], step_kinds(self._context, step, self._init, slices, spec)[0])
        return self.own(made)

    def go_on(self) -> None:
        """The rest of the loop runs as a graph, a loop of its own for who watches."""
        self.goes_on = True
        self._end()

    def _end(self) -> None:
        if self._watch is not None:
            self._watch.end(self)

    def own(self, made: list[Any]) -> Any:
        """The carry, held by the list ``made`` alone, as memory that nobody else holds; the loop has ended."""
        self._end()
        self._value = None
        return with_own_memory(made)


def elements(leaves: Sequence[Tensor], spec: pytree.Spec, length: int, reverse: bool) -> Iterator[Any]:
    """The elements of ``xs``, one tree for each step."""
    slices = [reversed(x.unbind(0)) if reverse else x.unbind(0) for x in leaves]
    if len(leaves) == 1 and spec.is_leaf():
        return iter(slices[0])
    if not leaves:
        return (spec.unflatten(()) for _ in range(length))
    return map(spec.unflatten, zip(*slices, strict=True))


def stack_outputs(outputs: Sequence[Any], context: ErrorContext) -> Any:
    """The outputs of all steps, stacked leaf by leaf; what is neither tensor nor number must be the same in all."""
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
    column = [x if isinstance(x, Tensor) else number_as_tensor(x) for x in column]
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
