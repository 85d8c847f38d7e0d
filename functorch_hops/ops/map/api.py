"""``map``: one element at a time, or in vmapped chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import pytree
from ...calls.leaf import one_node
from ...calls.numbers import numbers_as_tensors
from ...calls.output import OutputSpec
from ...calls.spelling import spelled
from ...calls.validate import as_int, check_agreement, check_callable, check_tensor_leaves
from ...errors import ArgumentTypeError, ErrorContext, message
from ...trace.refusals import in_our_words
from ..loops.weak_carry import InitialCarry
from ..scan.api import run_scan, trip_count

__all__ = ["map"]


@one_node
@spelled(
    chunk_size="write batch_size=",
)
def map(f: Callable[[Any], Any], xs: Any, /, *, batch_size: int | None = None) -> Any:
    """Apply a function to each element along dimension 0, one after the other.

    ``map : ((a -> b), [a]) -> [b]``. Equivalent to::

        def map(f, xs):
            return stack([f(x) for x in xs])

    Arguments:
        f: a function of one element, which may close over anything. A tuple ``xs`` arrives as one tuple.
        xs: a tree of tensors, all of the same size at dimension 0.
        batch_size: vmap chunks of so many elements, the shorter remainder included: more memory, fewer steps. Random
            numbers then differ between the elements, as they do without it.

    Returns:
        The results, Python numbers too, stacked at dimension 0, leaf by leaf. Any other leaf comes back once.

    Raises:
        ArgumentTypeError, ArgumentValueError: ``f`` is not callable, ``xs`` is empty or its sizes disagree,
            ``batch_size < 1``.

    Cost: one call of ``f`` per element, or per chunk. A captured map is one node.

    Source: ``jax.lax.map``.

    >>> import torch, functorch_hops as fh
    >>> fh.map(torch.sum, torch.ones(3, 2))
    tensor([2., 2., 2.])
    """
    check_callable("map", "f", f)
    leaves, spec = check_tensor_leaves("map", "xs", numbers_as_tensors(xs))
    if not leaves:
        remedy = "for a number of steps without xs, write fh.scan(f, init, length=n)"
        text = message("map", "there is no tensor to map over", parameter="xs", expected="a tensor", remedy=remedy)
        raise ArgumentTypeError(text)
    size = trip_count("map", leaves, spec)
    if batch_size is None:
        return _each(f, leaves, spec, size)
    return _in_chunks(f, leaves, spec, size, as_int("map", "batch_size", batch_size, at_least=1))


_CONTEXT = ErrorContext("map", "f", output="output")
_NO_CARRY = InitialCarry(None, (), ())


def _each(f: Callable[[Any], Any], leaves: list[Tensor], spec: pytree.Spec, size: Any) -> Any:
    _, ys = run_scan(_CONTEXT, lambda _, x: (None, f(x)), _NO_CARRY, leaves, spec, size)
    return ys


def _in_chunks(f: Callable[[Any], Any], leaves: list[Tensor], spec: pytree.Spec, size: Any, batch_size: int) -> Any:
    chunks, rest = size // batch_size, size % batch_size  # open sizes know no divmod
    batched = _vmapped(f)
    # The remainder is a loop of one step: where torch traces, its vmap may not stand there by itself.
    split = [(0, chunks, batch_size)] if chunks or not rest else []
    split += [(chunks * batch_size, 1, rest)] if rest else []
    parts = []
    for start, n, lanes in split:
        elements = [x[start : start + n * lanes].unflatten(0, (n, lanes)) for x in leaves]
        ys = _each(batched, elements, spec, n)
        parts.append(pytree.map(lambda y: y.flatten(0, 1) if isinstance(y, Tensor) else y, ys))
    if len(parts) == 1:
        return parts[0]
    return pytree.map(lambda a, b: torch.cat((a, b)) if isinstance(a, Tensor) else a, *parts)


def _vmapped(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``f`` over a chunk: torch's vmap knows its own trees and no constants, so it gets tensors."""
    outputs: list[OutputSpec] = []

    def chunk(xs: Any) -> Any:
        leaves, spec = pytree.flatten(xs)

        def flat(*values: Tensor) -> tuple[Tensor, ...]:
            tensors, output = OutputSpec.of_body(f(pytree.unflatten(spec, values)))
            outputs.append(output)
            sides = ("the first chunk", outputs[0]), ("another chunk", output)
            check_agreement("map", "the outputs", *sides, parameter="f", path="output")
            # Something to map even where every output is a constant.
            return (*tensors, values[0])

        with in_our_words(_CONTEXT):
            outs = torch.func.vmap(flat, randomness="different")(*leaves)
        return outputs[-1].unflatten(outs[:-1])

    return chunk
