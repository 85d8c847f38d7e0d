"""Whole Jacobians and Hessians, over trees."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from functorch_hops import _torch
from functorch_hops.calls.arguments import Function, P
from functorch_hops.calls.spelling import derivative
from functorch_hops.errors import ArgumentValueError, message
from functorch_hops.ir.generator import RandomState
from functorch_hops.ir.subgraph import is_random_node
from functorch_hops.trace.capture import current_capture
from functorch_hops.transforms.flat import (
    DifferentiableArguments,
    FlatFunction,
    Recipe,
    is_real,
    is_tensor,
    require_argnums,
    require_callable,
    require_chunk_size,
    transformed,
)

__all__ = ["hessian", "jacfwd", "jacrev"]


@overload
def jacrev(
    func: Callable[P, Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    chunk_size: int | None = None,
) -> Callable[P, Any]: ...
@overload
def jacrev(
    func: None = None,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    chunk_size: int | None = None,
) -> Callable[[Callable[P, Any]], Callable[P, Any]]: ...
@derivative()
def jacrev(
    func: Any = None,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    chunk_size: int | None = None,
) -> Any:
    """The Jacobian of a function, row by row, by reverse mode.

    ::

        jacrev : ((a, ...) -> b) -> ((a, ...) -> b of a)

    Equivalent, for one tensor argument and a vector as output, to::

        def jacobian_of(x):
            out, pull = vjp(func, x)
            return torch.stack([pull(row)[0] for row in torch.eye(out.numel())])

    Arguments:
        func: returns a tree of floating-point tensors; with `has_aux` a pair of it and any tree.
        argnums: which positional arguments to differentiate, an integer or several; negative ones count from
            the right. Their leaves are floating-point tensors; a Python float counts as a 0-d tensor.
        has_aux: whether `func` returns ``(output, aux)``.
        chunk_size: how many rows to compute at once; None for all. With 1 there is no vmap at all.

    Returns:
        A function of the arguments of `func`. It returns a tree like the output of `func`, in which there is
        in the place of each leaf a tree like the differentiated argument (a tuple of them if `argnums` has
        several), whose leaves have the shape ``out.shape + in.shape``. With `has_aux` it returns ``(jacobian,
        aux)``.

    Raises:
        ArgumentTypeError: a differentiated leaf or an output is no real tensor.
        ArgumentValueError: `argnums` names no positional argument; `chunk_size` is less than 1.

    Cost: one evaluation of `func` and one batched backward pass per chunk. Prefer it when there are fewer
    outputs than inputs.

    Source: ``torch.func.jacrev``.

    >>> jacrev(lambda x: {"square": x**2})(torch.tensor([1.0, 3.0]))
    {'square': tensor([[2., 0.],
            [0., 6.]])}
    """
    if func is None:
        return functools.partial(jacrev, argnums=argnums, has_aux=has_aux, chunk_size=chunk_size)
    require_callable("jacrev", func)
    require_argnums("jacrev", argnums)
    chunk_size = require_chunk_size("jacrev", chunk_size)
    recipe = Recipe(jacrev, func, {"argnums": argnums, "has_aux": has_aux, "chunk_size": chunk_size})
    return _by_rows(recipe, func, argnums, has_aux, chunk_size)


def _by_rows(
    recipe: Recipe, func: Callable[P, Any], argnums: int | Sequence[int], has_aux: bool, chunk_size: int | None
) -> Callable[P, Any]:
    operation = recipe.transform.__name__

    @transformed(recipe)
    def jacobian_of(*args: Any, **kwargs: Any) -> Any:
        arguments = DifferentiableArguments(operation, args, kwargs, argnums, real=True)
        flat = FlatFunction(operation, func, arguments, has_aux, is_real)
        with _torch.differentiated_again():
            outputs, pull, *aux = _torch.vjp(flat, arguments.tensors, arguments.indices, has_aux)
        gradients = _rows(pull, outputs, arguments.inputs, chunk_size)
        sizes = [math.prod(out.shape) for out in outputs]
        blocks = [
            [part.reshape((*out.shape, *t.shape)) for part, out in zip(gradient.split(sizes), outputs, strict=True)]
            for gradient, t in zip(gradients, arguments.inputs, strict=True)
        ]
        rows = zip(*blocks, strict=True) if blocks else [()] * len(outputs)
        jacobian = flat.spec.unflatten([arguments.tree(row) for row in rows])
        return (jacobian, flat.aux.tree(*aux)) if has_aux else jacobian

    return jacobian_of


def _rows(pull: Function, outputs: Sequence[Tensor], inputs: Sequence[Tensor], chunk_size: int | None) -> list[Tensor]:
    """The gradient of each input from every unit vector of the outputs, stacked on dim 0."""
    if sum(math.prod(out.shape) for out in outputs) == 0:
        return [t.new_zeros(0, *t.shape) for t in inputs]
    chunks = [
        _in_lanes(lambda *cotangents: (pull(cotangents)[: len(inputs)], ()), basis, chunk_size)[0]
        for basis in _unit_vectors(outputs, chunk_size)
    ]
    return _concatenated(chunks)


@overload
def jacfwd(
    func: Callable[P, Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    chunk_size: int | None = None,
) -> Callable[P, Any]: ...
@overload
def jacfwd(
    func: None = None,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    chunk_size: int | None = None,
) -> Callable[[Callable[P, Any]], Callable[P, Any]]: ...
@derivative(randomness="draw the numbers outside, and pass them: a Jacobian is that of one function")
def jacfwd(
    func: Any = None,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    chunk_size: int | None = None,
) -> Any:
    """The Jacobian of a function, column by column, by forward mode.

    ::

        jacfwd : ((a, ...) -> b) -> ((a, ...) -> b of a)

    Equivalent, for a vector as argument, to::

        def jacobian_of(x):
            columns = [jvp(func, (x,), (column,))[1] for column in torch.eye(x.numel())]
            return torch.stack(columns, dim=-1)

    Arguments:
        func: as for ``jacrev``, and draws no random numbers. The derivative of an output with integer dtype is zero.
        argnums: as for ``jacrev``.
        has_aux: whether `func` returns ``(output, aux)``.
        chunk_size: how many columns to compute at once; None for all. With 1 there is no vmap at all.

    Returns: as ``jacrev``.

    Raises: as ``jacrev``.
        ArgumentValueError: `func` draws random numbers.

    Cost: one batched evaluation of the jvp of `func` per chunk. Prefer it when there are fewer inputs than
    outputs.

    Source: ``torch.func.jacfwd``; `chunk_size` as in ``torch.func.jacrev``.

    >>> jacfwd(torch.sin)(torch.zeros(2))
    tensor([[1., 0.],
            [0., 1.]])
    """
    if func is None:
        return functools.partial(jacfwd, argnums=argnums, has_aux=has_aux, chunk_size=chunk_size)
    require_callable("jacfwd", func)
    require_argnums("jacfwd", argnums)
    chunk_size = require_chunk_size("jacfwd", chunk_size)
    recipe = Recipe(jacfwd, func, {"argnums": argnums, "has_aux": has_aux, "chunk_size": chunk_size})
    return _by_columns(recipe, func, argnums, has_aux, chunk_size)


def _by_columns(
    recipe: Recipe, func: Callable[P, Any], argnums: int | Sequence[int], has_aux: bool, chunk_size: int | None
) -> Callable[P, Any]:
    operation = recipe.transform.__name__

    @transformed(recipe)
    def jacobian_of(*args: Any, **kwargs: Any) -> Any:
        arguments = DifferentiableArguments(operation, args, kwargs, argnums, real=True)
        flat = FlatFunction(operation, func, arguments, has_aux, is_tensor)
        inputs = arguments.inputs
        sizes = [math.prod(t.shape) for t in inputs]
        columns, aux = _columns(flat, chunk_size)
        leaves = [
            [
                part.reshape((*column.shape[1:], *t.shape))
                for part, t in zip(column.movedim(0, -1).split(sizes, dim=-1), inputs, strict=True)
            ]
            for column in columns
        ]
        jacobian = flat.spec.unflatten([arguments.tree(row) for row in leaves])
        return (jacobian, flat.aux.tree(aux)) if has_aux else jacobian

    return jacobian_of


def _columns(flat: FlatFunction, chunk_size: int | None) -> tuple[list[Tensor], list[Tensor]]:
    """The derivative of each output along every unit vector, stacked on dim 0, and the auxiliary tensors."""
    arguments = flat.arguments
    if sum(math.prod(t.shape) for t in arguments.inputs) == 0:
        result = flat(*arguments.tensors)
        outputs, tensors = result if flat.has_aux else (result, ())
        return [out.new_zeros(0, *out.shape) for out in outputs], list(tensors)
    rest = arguments.tensors[len(arguments.inputs) :]
    aux: list[Tensor] = []
    places: list[int] = []

    def push(*tangents: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        # The tangents are batched and the primals are not, so neither is what accompanies the output, and it
        # can leave the vmap as it is. But a HOP's batching rule may batch all of its outputs when one of them
        # is.
        nonlocal aux, places
        _, derivatives, *tensors = _torch.jvp(
            lambda *duals: flat(*duals, *rest), arguments.inputs, tangents, has_aux=flat.has_aux
        )
        aux = [tensor for group in tensors for tensor in group]
        places = [place for place, tensor in enumerate(aux) if _torch.is_batched_here(tensor)]
        return derivatives, tuple(aux[place] for place in places)

    column_by_column = chunk_size == 1
    with _drawing_nothing(flat.operation, arguments.tensors) if column_by_column else contextlib.nullcontext():
        chunks = [_in_lanes(push, basis, chunk_size) for basis in _unit_vectors(arguments.inputs, chunk_size)]
    for place, lanes in zip(places, chunks[-1][1], strict=True):
        aux[place] = lanes[0]
    return _concatenated([derivatives for derivatives, _ in chunks]), aux


@contextlib.contextmanager
def _drawing_nothing(operation: str, tensors: Sequence[Tensor]) -> Iterator[None]:
    """Each column runs the function anew, which would be another one. Under vmap torch says so itself."""
    capture = current_capture()
    if capture is None:
        random = RandomState(tensors)
        yield
        random.note_use()
        is_drawn = random.is_used
    else:
        last = next(reversed(capture.graph.nodes), None)
        yield
        recorded = itertools.takewhile(lambda node: node is not last, reversed(capture.graph.nodes))
        is_drawn = any(is_random_node(node, capture.root) for node in recorded)
    if is_drawn:
        raise ArgumentValueError(
            message(
                operation,
                "a function that draws random numbers has no Jacobian",
                parameter="func",
                remedy="draw the numbers outside, and pass them, or write jacrev, which runs it once",
            )
        )


def _concatenated(chunks: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return list(chunks[0]) if len(chunks) == 1 else [torch.cat(parts) for parts in zip(*chunks, strict=True)]


def _in_lanes(function: Function, basis: tuple[Tensor, ...], chunk_size: int | None) -> Any:
    """The derivatives along the vectors of `basis`, and what accompanies them, each stacked on dim 0."""
    if chunk_size == 1:
        derivatives, aux = function(*(vector.squeeze(0) for vector in basis))
        return tuple(t.unsqueeze(0) for t in derivatives), tuple(t.unsqueeze(0) for t in aux)
    return _torch.outside_inference(torch.func.vmap(function))(*basis)


def _unit_vectors(tensors: Sequence[Tensor], chunk_size: int | None) -> Iterator[tuple[Tensor, ...]]:
    """The unit vectors of the space of all tensors together, `chunk_size` at a time, stacked on dim 0."""
    sizes = [math.prod(t.shape) for t in tensors]
    total = sum(sizes)
    # Without chunks no size is read, so that it may stay open while tracing.
    spans = (
        [(0, total)] if chunk_size is None else [(i, min(chunk_size, total - i)) for i in range(0, total, chunk_size)]
    )
    for start, count in spans:
        chunk, offset = [], 0
        for t, size in zip(tensors, sizes, strict=True):
            row = torch.arange(count, device=t.device) + (start - offset)
            column = torch.arange(size, device=t.device)
            chunk.append((row[:, None] == column).to(t.dtype).reshape((count, *t.shape)))
            offset += size
        yield tuple(chunk)


@overload
def hessian(func: Callable[P, Any], argnums: int | Sequence[int] = 0) -> Callable[P, Any]: ...
@overload
def hessian(func: None = None, argnums: int | Sequence[int] = 0) -> Callable[[Callable[P, Any]], Callable[P, Any]]: ...
@derivative(has_aux="write jacfwd(jacrev(func, has_aux=True), has_aux=True): each order hands the auxiliary output on")
def hessian(func: Any = None, argnums: int | Sequence[int] = 0) -> Any:
    """The matrix of second derivatives of a function, forward over reverse.

    ::

        hessian : ((a, ...) -> b) -> ((a, ...) -> b of a of a)

    Equivalent to ``jacfwd(jacrev(func, argnums), argnums)``.

    Arguments:
        func: as for ``jacrev``.
        argnums: as for ``jacrev``.

    Returns:
        A function of the arguments of `func`. It returns a tree like the output of `func`, in which there is
        in the place of each leaf a tree of trees like the differentiated argument, whose leaves have the
        shape ``out.shape + in1.shape + in2.shape``.

    Raises: as ``jacrev``.

    Cost: for n inputs, about n times that of the gradient in time, batched; n times its memory.

    Source: ``torch.func.hessian``.

    >>> hessian(lambda x: (x**3).sum())(torch.tensor([1.0, 2.0]))
    tensor([[ 6.,  0.],
            [ 0., 12.]])
    """
    if func is None:
        return functools.partial(hessian, argnums=argnums)
    require_callable("hessian", func)
    require_argnums("hessian", argnums)
    recipe = Recipe(hessian, func, {"argnums": argnums})
    return _by_columns(recipe, _by_rows(recipe, func, argnums, False, None), argnums, False, None)
