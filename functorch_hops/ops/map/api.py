"""``map``: one element at a time, or in vmapped chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import pytree
from ...capture.output import numbers_as_tensors
from ...capture.validate import check_callable, check_tensor_leaves
from ...errors import ArgumentTypeError, ArgumentValueError, message
from ..scan.api import scan

__all__ = ["map"]


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
    xs = numbers_as_tensors(xs)
    leaves, spec = check_tensor_leaves("map", "xs", xs)
    _check_sizes(leaves, spec)
    if batch_size is None:
        return _each(f, xs)
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        text = message("map", "not a positive size", parameter="batch_size", expected="an int >= 1", got=batch_size)
        raise ArgumentValueError(text)
    return _in_chunks(f, leaves, spec, batch_size)


def _each(f: Callable[[Any], Any], xs: Any) -> Any:
    _, ys = scan(lambda _, x: (None, f(x)), None, xs)
    return ys


def _in_chunks(f: Callable[[Any], Any], leaves: list[Tensor], spec: pytree.Spec, size: int) -> Any:
    chunks, rest = divmod(leaves[0].shape[0], size)
    batched = _vmapped(f)
    whole = [x[: chunks * size].unflatten(0, (chunks, size)) for x in leaves]
    parts = []
    if chunks or not rest:
        parts.append(pytree.map(lambda y: y.flatten(0, 1), _each(batched, pytree.unflatten(spec, whole))))
    if rest:
        parts.append(batched(pytree.unflatten(spec, [x[chunks * size :] for x in leaves])))
    if len(parts) == 1:
        return parts[0]
    return pytree.map(lambda a, b: torch.cat((a, b)), *parts)


def _vmapped(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``f`` over a chunk: torch's vmap knows its own trees only, so it gets leaves."""

    def chunk(xs: Any) -> Any:
        leaves, spec = pytree.flatten(xs)
        output: list[pytree.Spec] = []

        def flat(*values: Tensor) -> tuple[Tensor, ...]:
            out, out_spec = pytree.flatten(f(pytree.unflatten(spec, values)))
            output.append(out_spec)
            return tuple(out)

        outs = torch.func.vmap(flat, randomness="different")(*leaves)
        return pytree.unflatten(output[-1], outs)

    return chunk


def _check_sizes(leaves: list[Tensor], spec: pytree.Spec) -> None:
    paths = pytree.leaf_paths(spec, "xs")
    if not leaves:
        raise ArgumentTypeError(message("map", "there is no tensor to map over", parameter="xs", expected="a tensor"))
    for path, x in zip(paths, leaves):
        if x.dim() == 0 or x.shape[0] != leaves[0].shape[0]:
            got = "0-d" if x.dim() == 0 else x.shape[0]
            size = leaves[0].shape[0] if leaves[0].dim() else "at least 1-d"
            raise ArgumentValueError(
                message(
                    "map",
                    "sizes disagree",
                    path=path,
                    expected=f"{size} at dimension 0, as in {paths[0]}",
                    got=got,
                )
            )
