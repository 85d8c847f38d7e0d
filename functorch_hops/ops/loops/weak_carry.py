"""The initial carry of a loop, the carries that follow it, and the kind (dtype and device) of the numbers in it.

NOTE [Numbers in a carry] A Python number says little of a dtype and nothing of a device, so in an initial carry it
takes those that the body returns for it, the dtype as ``torch.result_type`` has it: a float never becomes an int. They
may depend on the kinds in the carry, which are a fixed point: the body is captured with the kinds that it returned,
until it returns those that it got. A leaf that the body only hands on (in a queue, say) takes the kind of where it
comes from at once, however far that is.

Plain eager runs a step once, and starts with the numbers as tensors of their own dtype. So its first steps see other
kinds than later ones; what these steps stacked is converted. Where no step has shown the fixed point, the body is
captured to learn it. Numbers are tensors of their own dtype first in every mode, so that no digit depends on the mode.

The tensor that stands for such a number is marked: where a loop in the body begins with it, it is a number there too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ... import pytree
from ...calls.numbers import as_number, number_as_tensor, number_type, weak_dtype
from ...calls.output import OutputSpec
from ...calls.trace_cache import as_graph
from ...calls.validate import check_carry, check_tensor_leaves, kind_of
from ...errors import (
    ArgumentValueError,
    CaptureError,
    ErrorContext,
    InputMutationError,
    MetadataMismatchError,
    TreeMismatchError,
    message,
)
from ...ir.meta import TensorMeta
from ...ir.subgraph import Subgraph
from ...trace.history import Carried, Part, Source
from ...trace.speculate import speculate_subgraph

__all__ = [
    "InitialCarry",
    "Weak",
    "capture_step",
    "converted",
    "followed",
    "kinds_of",
    "next_carry",
    "pair_of",
    "step_kinds",
]

Weak = tuple[type | None, ...]
"""For each leaf of a carry the type of the number that it was, None for a tensor."""

Kind = tuple[torch.dtype, torch.device]

MOST_CALLS = 4
"""How often a body is called to find the kinds of the numbers in its carry."""

Captured = TypeVar("Captured")


class InitialCarry(NamedTuple):
    """The carry that the user gave, as tensors, and what tells its numbers."""

    tree: Any
    weak: Weak
    numbers: tuple[Any, ...]

    @classmethod
    def of(cls, operation: str, parameter: str, tree: Any) -> InitialCarry:
        leaves, spec = ([tree], None) if type(tree) is Tensor else pytree.flatten(tree)
        weak = tuple(_number_in(leaf) for leaf in leaves)
        if not any(weak):
            if spec is not None:
                check_tensor_leaves(operation, parameter, tree)
            return cls(tree, weak, weak)
        # Beside tensors of an accelerator: vmap makes tensors of several lanes of numbers, which torch does not mix.
        device = next((x.device for x in leaves if isinstance(x, Tensor) and x.device.type != "cpu"), None)
        tensors = [_marked(number_as_tensor(leaf, device), kind) for leaf, kind in zip(leaves, weak)]
        tree = tensors[0] if spec is None else pytree.unflatten(spec, tensors)
        check_tensor_leaves(operation, parameter, tree)
        return cls(tree, weak, tuple(None if isinstance(leaf, Tensor) else as_number(leaf) for leaf in leaves))

    def after(self, counter: Tensor) -> InitialCarry:
        """The carry of a loop that counts its steps."""
        return InitialCarry((counter, self.tree), (None, *self.weak), (None, *self.numbers))

    @property
    def spec(self) -> OutputSpec:
        return OutputSpec.flatten(self.tree)[1]

    def check_range(self, operation: str, parameter: str, result: Any) -> Any:
        """The final carry, if the dtypes that it shows hold the numbers that the loop began with."""
        if not any(self.weak):
            return result
        leaves, spec = pytree.flatten(result)
        for i, (number, leaf) in enumerate(zip(self.numbers, leaves)):
            if number is not None and not _holds(leaf.dtype, number):
                raise ArgumentValueError(
                    message(
                        operation,
                        "a number is out of the range of the dtype that the body returns for it",
                        path=pytree.leaf_paths(spec, parameter)[i],
                        expected=f"a number that {leaf.dtype} holds",
                        got=number,
                        remedy="pass a tensor of the dtype that the carry shall have",
                    )
                )
        return result


_MARK = "_stands_for_number"


def _number_in(leaf: Any) -> type | None:
    return getattr(leaf, _MARK, None) if isinstance(leaf, Tensor) else number_type(as_number(leaf))


def _marked(leaf: Any, number: type | None) -> Any:
    if number is not None:
        setattr(leaf, _MARK, number)
    return leaf


def _holds(dtype: torch.dtype, number: Any) -> bool:
    if type(number) is int and not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool):
        info = torch.iinfo(dtype)
        return info.min <= number <= info.max
    if type(number) is float and math.isfinite(number):
        return abs(number) <= torch.finfo(dtype).max
    return True


def next_carry(
    context: ErrorContext, carry: OutputSpec, weak: Weak, given: Sequence[Tensor], returned: Any
) -> tuple[list[Tensor], OutputSpec]:
    """The leaves that a body returned for a carry of the leaves ``given``, and the carry of the step after.

    That is ``carry`` but for the kinds of numbers; anything else is an error.
    """
    tensors, spec = OutputSpec.of_body(returned)
    if any(weak) and spec.spec == carry.spec and len(tensors) == len(weak):
        sources = [next((j for j, x in enumerate(given) if x is y), None) for y in tensors]
        kinds = _kinds(carry, weak, sources, tensors)
        handed_on = [kind is not None and source is not None for kind, source in zip(weak, sources)]
        tensors = [y.to(kind[1], kind[0]) if is_old else y for y, kind, is_old in zip(tensors, kinds, handed_on)]
        metas = tuple(TensorMeta(meta.shape, *kind) for meta, kind in zip(carry.metas, kinds))
        carry, (_, spec) = OutputSpec(carry.spec, metas), OutputSpec.flatten(pytree.unflatten(spec.spec, tensors))
    check_carry(context, carry, spec)
    return tensors, carry


def followed(context: ErrorContext, init: InitialCarry) -> Callable[[Any, Any], Any]:
    """For a loop inside another one: from a carry, and what the body returned for it, to the next carry."""
    carry, weak = init.spec, init.weak  # now: where the steps are captured, that would make operands of the values

    def follow(given: Any, returned: Any) -> Any:
        tensors, following = next_carry(context, carry, weak, pytree.flatten(given)[0], returned)
        return following.unflatten(tensors)

    return follow


def _kinds(carry: OutputSpec, weak: Weak, sources: Sequence[int | None], returned: Sequence[Tensor]) -> list[Kind]:
    """The kinds in the next carry; ``sources``: which leaf of the carry a returned one is."""
    kinds = kinds_of(carry)
    for _ in weak:  # as many rounds as a leaf may be handed on
        for i, (number, source) in enumerate(zip(weak, sources)):
            if number is not None:
                dtype, device = (returned[i].dtype, returned[i].device) if source is None else kinds[source]
                kinds[i] = weak_dtype(number, dtype), device
    return kinds


def kinds_of(spec: OutputSpec) -> list[Kind]:
    """The kinds of the tensors in a tree, in their order."""
    return [(meta.dtype, meta.device) for meta in spec.metas]


def settled(
    context: ErrorContext, carry: OutputSpec, capture: Callable[[OutputSpec], tuple[OutputSpec, Captured]]
) -> tuple[OutputSpec, Captured]:
    """The carry for which ``capture`` says that the next one is the same, and what it captured there."""
    for _ in range(MOST_CALLS):
        following, captured = capture(carry)
        if following == carry:
            return carry, captured
        before, carry = carry, following
    paths = carry.paths("carry")
    i = next(i for i, (a, b) in enumerate(zip(before.leaves, carry.leaves)) if a != b)
    raise MetadataMismatchError(
        message(
            context.operation,
            "what a number in the carry becomes changes with every step",
            parameter=context.parameter,
            path=paths[i],
            expected=f"a dtype and device that stay after {MOST_CALLS} steps",
            got=f"{carry.leaves[i]} after {before.leaves[i]}",
            remedy="pass a tensor of the dtype that the carry shall have",
        )
    )


class CapturedStep(NamedTuple):
    """A step ``f(carry, x) -> (carry, y)`` as a graph, and what it closes over."""

    body: Subgraph
    lifted: list[Tensor]
    output: OutputSpec


def capture_step(
    context: ErrorContext,
    f: Callable[[Any, Any], Any],
    carry: OutputSpec,
    weak: Weak,
    sources: Sequence[Source],
    slices: Sequence[TensorMeta] = (),
    xs_spec: pytree.Spec | None = None,
) -> tuple[OutputSpec, CapturedStep]:
    """The step at the fixed point of its kinds, and the carry that it has there. Without ``xs_spec`` x is None."""
    n = len(carry.metas)

    def capture(carry: OutputSpec) -> tuple[OutputSpec, CapturedStep]:
        seen: list[tuple[OutputSpec, OutputSpec]] = []

        def run(*flat: Tensor) -> list[Tensor]:
            x = None if xs_spec is None else pytree.unflatten(xs_spec, flat[n:])
            returned, y = pair_of(f(carry.unflatten(map(_marked, flat, weak)), x))
            carry_out, following = next_carry(context, carry, weak, flat[:n], returned)
            y_out, output = OutputSpec.of_body(y)
            seen.append((following, output))
            return [*carry_out, *y_out]

        inputs = [*carry.metas, *slices]
        body, lifted = speculate_subgraph(
            run, inputs, operation=context.operation, parameter=context.parameter, sources=sources
        )
        following, output = seen[-1]
        return following, CapturedStep(body, lifted, output)

    return settled(context, carry, capture)


def pair_of(result: Any) -> tuple[Any, Any]:
    """What the body of a scan returned, if it is a pair."""
    if not isinstance(result, tuple) or len(result) != 2:
        kind = f"a tuple of {len(result)}" if isinstance(result, tuple) else kind_of(result)
        raise TreeMismatchError(
            message(
                "scan",
                "the body returns no pair",
                parameter="f",
                expected="a pair (carry, y)",
                got=kind,
                remedy="return (carry, None) where there is no y",
            )
        )
    return result


def step_kinds(
    context: ErrorContext,
    f: Callable[[Any, Any], Any],
    init: InitialCarry,
    slices: Sequence[Tensor] = (),
    xs_spec: pytree.Spec | None = None,
) -> tuple[tuple[Kind, ...], tuple[Kind, ...]]:
    """The kinds of the tensors in the carry and in y, where no step has shown them; none if they can't be known."""
    operands, static = (init.tree, list(slices)), (context, init.weak, xs_spec)
    try:
        found: tuple[tuple[Kind, ...], tuple[Kind, ...]] = as_graph(
            context.operation, _captured_kinds, (f,), operands, *static
        )
    except (CaptureError, InputMutationError):
        return (), ()  # such a body runs as Python only: there is no other mode to agree with
    return found


def _captured_kinds(
    functions: Sequence[Callable[..., Any]],
    operands: tuple[Any, list[Tensor]],
    context: ErrorContext,
    weak: Weak,
    xs_spec: pytree.Spec | None,
) -> tuple[tuple[Kind, ...], tuple[Kind, ...]]:
    (f,), (init, slices) = functions, operands
    given, initial = OutputSpec.flatten(init)
    sources: list[Source] = [*(Carried(x, i) for i, x in enumerate(given)), *map(Part, slices)]
    carry, step = capture_step(context, f, initial, weak, sources, list(map(TensorMeta.of, slices)), xs_spec)
    return tuple(kinds_of(carry)), tuple(kinds_of(step.output))


def converted(tree: Any, kinds: Sequence[Kind]) -> Any:
    """The tree with its numbers as tensors, and its tensors of these kinds, in their order."""
    leaves, spec = pytree.flatten(tree)
    rest: Iterator[Kind] = iter(kinds)

    def of_its_kind(leaf: Any) -> Any:
        value = number_as_tensor(leaf)
        if not isinstance(value, Tensor):
            return value
        dtype, device = next(rest, (value.dtype, value.device))
        return value.to(device, dtype)

    return pytree.unflatten(spec, map(of_its_kind, leaves))
