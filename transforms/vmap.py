"""vmap: a function of one example as a function of a batch, over trees."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from functorch_hops import _torch, pytree
from functorch_hops.calls.arguments import P, R
from functorch_hops.calls.spelling import spelled
from functorch_hops.calls.validate import kind_of
from functorch_hops.errors import ArgumentTypeError, ArgumentValueError, ErrorContext, message
from functorch_hops.interop.vmap_refusals import OnLanes
from functorch_hops.trace.capture import current_capture
from functorch_hops.trace.refusals import in_our_words
from functorch_hops.transforms.flat import (
    Recipe,
    leaf_path,
    require_callable,
    require_chunk_size,
    transformed,
)

__all__ = ["vmap"]


@overload
def vmap(
    func: Callable[P, R],
    in_dims: Any = 0,
    out_dims: Any = 0,
    randomness: str = "error",
    *,
    chunk_size: int | None = None,
) -> Callable[P, R]: ...
@overload
def vmap(
    func: None = None,
    in_dims: Any = 0,
    out_dims: Any = 0,
    randomness: str = "error",
    *,
    chunk_size: int | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
@spelled(
    in_axes="write in_dims=",
    out_axes="write out_dims=",
    axis_size="leave it out: a tensor among the arguments says how many examples there are",
    spmd_axis_name="leave it out: dimensions have no names, and shards are those of torch.distributed",
    axis_name="leave it out: dimensions have no names; reduce over the examples outside of vmap",
)
def vmap(
    func: Any = None,
    in_dims: Any = 0,
    out_dims: Any = 0,
    randomness: str = "error",
    *,
    chunk_size: int | None = None,
) -> Any:
    """Map a function over a dimension of its arguments, all examples at once.

    ::

        vmap : ((a, ...) -> b) -> ((batch of a, ...) -> batch of b)

    Equivalent, for one argument, to ``lambda xs: torch.stack([func(x) for x in xs])``.

    Arguments:
        func: a function of one example. It returns a tree of tensors.
        in_dims: the dimension that is mapped, an integer or None (not mapped), for all positional arguments;
            or a tuple or list with an entry for each of them, which may be a prefix of the argument's tree.
            Keyword arguments are not mapped.
        out_dims: where the mapped dimension comes out; an integer or None, or a prefix of the output's tree.
            What gets None must not depend on the example, and may be any object.
        randomness: ``"error"``, ``"same"`` or ``"different"`` random numbers for all examples.
        chunk_size: how many examples to compute at once; None for all.

    Without `func` it is a decorator: ``@vmap(in_dims=(0, None))``.

    Returns:
        A function of batched arguments, that returns a tree like the output of `func`, in which every leaf
        has the additional dimension.

    Raises:
        ArgumentTypeError: a leaf that is to be mapped, or an output with an `out_dims`, is no tensor.
        ArgumentValueError: nothing is mapped, sizes differ, there is no such dimension, or `in_dims` or
            `out_dims` is no prefix of its tree.

    Cost: that of `func` on batched operators; the memory for one chunk.

    Source: ``torch.func.vmap``.

    >>> vmap(lambda p: {"sum": p["x"].sum() + p["y"]}, in_dims=({"x": 0, "y": None},))(
    ...     {"x": torch.ones(2, 3), "y": torch.tensor(1.0)}
    ... )
    {'sum': tensor([4., 4.])}
    """
    chunk_size = require_chunk_size("vmap", chunk_size)
    _require_randomness(randomness)
    if func is None:
        return functools.partial(vmap, in_dims=in_dims, out_dims=out_dims, randomness=randomness, chunk_size=chunk_size)
    require_callable("vmap", func)
    _refuse_arguments(in_dims)
    in_dims = tuple(in_dims) if isinstance(in_dims, list) else in_dims

    options = {"in_dims": in_dims, "out_dims": out_dims, "randomness": randomness, "chunk_size": chunk_size}

    @transformed(Recipe(vmap, func, options))
    def batched(*args: Any, **kwargs: Any) -> Any:
        inputs = _BatchedInputs(args, in_dims)
        outputs = _BatchedOutputs(out_dims)

        def lane(*tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
            capture = current_capture()
            with OnLanes() if capture is None else capture.rows.of_lanes() as lanes:
                flat = lanes.up_to_date(outputs.split(func(*inputs.replaced(tensors), **kwargs)))
            return flat[0] if len(flat) == 1 else flat

        # torch.func.vmap fails on an empty batch in chunks, and spends most of its time on tuples.
        chunk = chunk_size if inputs.size else None
        dims = inputs.dims if len(set(inputs.dims)) > 1 else inputs.dims[0]
        with in_our_words(ErrorContext("vmap", "func")):
            result = torch.func.vmap(lane, dims, randomness=randomness, chunk_size=chunk)(*inputs.tensors)
        return outputs.tree((result,) if isinstance(result, Tensor) else result)

    return batched


class _BatchedInputs:
    """The positional arguments of one call; ``tensors`` are the mapped leaves, ``dims`` their dimensions."""

    def __init__(self, args: tuple[Any, ...], in_dims: Any) -> None:
        self.args = args
        self.leaves, self.spec = pytree.flatten(args)
        dims = pytree.broadcast_prefix(in_dims, self.spec, "in_dims")
        self.places = [place for place, dim in enumerate(dims) if dim is not None]
        self.tensors = [self.leaves[place] for place in self.places]
        self.dims = tuple(dim for dim in dims if dim is not None)
        if not self.tensors:
            text = message(
                "vmap",
                "there is nothing to map over",
                parameter="in_dims",
                expected="at least one tensor among the positional arguments with an integer",
                got=repr(in_dims),
                remedy="keyword arguments are not mapped: pass by position what is",
            )
            raise ArgumentValueError(text)
        for place, leaf, dim in zip(self.places, self.tensors, self.dims, strict=True):
            if not isinstance(leaf, Tensor) or not -leaf.ndim <= dim < leaf.ndim:
                self._fail(place, dim)
        self.size = self.tensors[0].shape[self.dims[0]]
        for place, leaf, dim in zip(self.places, self.tensors, self.dims, strict=True):
            if leaf.shape[dim] != self.size:
                self._fail_sizes(place, leaf.shape[dim])

    def replaced(self, tensors: Sequence[Tensor]) -> Sequence[Any]:
        """The arguments with other tensors in the places of ``tensors``."""
        if len(tensors) == len(self.leaves):
            return tuple(self.spec.unflatten(tensors))
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        result = list(self.spec.unflatten(leaves))
        # What holds nothing mapped is handed on as it is, not as a copy with the same leaves.
        stop = 0
        for number, spec in enumerate(self.spec.children()):
            start, stop = stop, stop + spec.num_leaves
            if not any(start <= place < stop for place in self.places):
                result[number] = self.args[number]
        return result

    def _fail(self, place: int, dim: int) -> None:
        leaf = self.leaves[place]
        path = leaf_path(self.spec, place, "args")
        if isinstance(leaf, Tensor):
            text = message(
                "vmap",
                "an argument has no such dimension",
                path=path,
                expected=f"in_dims from {-leaf.ndim} to {leaf.ndim - 1}" if leaf.ndim else "in_dims None",
                got=f"in_dims {dim} for {kind_of(leaf)}",
                remedy="set in_dims to None for what is the same for all examples",
            )
            raise ArgumentValueError(text)
        text = message(
            "vmap",
            "only tensors can be mapped over",
            path=path,
            expected="a tensor",
            got=kind_of(leaf),
            remedy="set in_dims to None for it, or pass it by keyword",
        )
        raise ArgumentTypeError(text)

    def _fail_sizes(self, place: int, size: int) -> None:
        first, other = (leaf_path(self.spec, index, "args") for index in (self.places[0], place))
        text = message(
            "vmap",
            "the mapped dimensions have different sizes",
            path=other,
            expected=f"{self.size}, as in {first}",
            got=size,
            remedy="give in_dims None for what is the same for all examples",
        )
        raise ArgumentValueError(text)


class _BatchedOutputs:
    """What the function returned for a lane: tensors for torch.func.vmap to unwrap, and the rest.

    The mapped dimension comes out first, and then moves to its place. `out_dims` may depend on the output's
    tree, an object with None in `out_dims` need not be a tensor, and torch.func.vmap (2.13) expands an output
    that does not depend on the example along the wrong dimension unless that is the first.
    """

    leaves: pytree.Leaves
    spec: pytree.Spec
    dims: list[int | None]

    def __init__(self, out_dims: Any) -> None:
        self.out_dims = out_dims

    def split(self, out: Any) -> tuple[Tensor, ...]:
        """Take the output of a lane apart; what is returned goes through torch.func.vmap."""
        self.leaves, self.spec = pytree.flatten(out)
        out_dims = self.out_dims
        if isinstance(out_dims, tuple) and len(out_dims) == 1 and self.spec.is_leaf():
            (out_dims,) = out_dims  # as in torch.func.vmap
        self.dims = pytree.broadcast_prefix(out_dims, self.spec, "out_dims", root="out")
        for place, (leaf, dim) in enumerate(zip(self.leaves, self.dims, strict=True)):
            if dim is not None and not isinstance(leaf, Tensor):
                self._fail(
                    ArgumentTypeError,
                    place,
                    "an output is no tensor",
                    "a tensor",
                    "set out_dims to None for it",
                )
            if dim is None and isinstance(leaf, Tensor) and _torch.is_batched_here(leaf):
                self._fail(
                    ArgumentValueError,
                    place,
                    "an output with None in out_dims depends on the example",
                    "the same value for all examples",
                    "give it an integer in out_dims",
                )
        return tuple(leaf for leaf, dim in zip(self.leaves, self.dims, strict=True) if dim is not None)

    def tree(self, tensors: tuple[Tensor, ...]) -> Any:
        """The output tree, from tensors whose mapped dimension is the first."""
        remaining = iter(tensors)
        leaves = list(self.leaves)
        for place, dim in enumerate(self.dims):
            if dim is None:
                continue
            tensor = leaves[place] = next(remaining)
            if not -tensor.ndim <= dim < tensor.ndim:
                expected = f"out_dims from {-tensor.ndim} to {tensor.ndim - 1}"
                remedy = "choose a dimension of the output, counting the mapped one"
                self._fail(ArgumentValueError, place, f"an output has no dimension {dim}", expected, remedy)
            if dim != 0:
                leaves[place] = tensor.movedim(0, dim)
        return self.spec.unflatten(leaves)

    def _fail(self, error: type[Exception], place: int, problem: str, expected: str, remedy: str) -> None:
        path = leaf_path(self.spec, place, "out")
        got = kind_of(self.leaves[place])
        raise error(message("vmap", problem, path=path, expected=expected, got=got, remedy=remedy))


def _refuse_arguments(in_dims: Any) -> None:
    if isinstance(in_dims, Tensor):
        remedy = "write vmap(func)(*args): its arguments are passed to what it returns"
        expected = "an int, None, or a tree of these"
        text = message(
            "vmap",
            "not a dimension",
            parameter="in_dims",
            expected=expected,
            got=kind_of(in_dims),
            remedy=remedy,
        )
        raise ArgumentTypeError(text)


def _require_randomness(randomness: str) -> None:
    allowed = ("error", "same", "different")
    if randomness not in allowed:
        text = message(
            "vmap",
            "there is no such behaviour",
            parameter="randomness",
            expected=f"one of {allowed}",
            got=repr(randomness),
            remedy="write 'different' for numbers of each lane's own",
        )
        raise ArgumentValueError(text)
