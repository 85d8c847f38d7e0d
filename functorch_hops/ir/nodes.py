"""Nodes of a graph: those that stand for no ATen operator, and what is asked of any."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import Tensor, fx

from .._torch import dense, foreign_tracer_active, in_forward_level, is_batched
from .active import state
from .meta import TensorMeta

__all__ = [
    "assigned",
    "behind",
    "bernoulli_like",
    "by_stride",
    "conjugated",
    "frozen",
    "inverted",
    "meta_of",
    "packed",
    "rebound",
    "size_at",
    "unfilled",
    "untracked",
]


def untracked(x: Tensor) -> Tensor:
    """What ``torch.no_grad`` makes of a result, as a node: reverse mode stops here, forward mode does not. A graph that
    torch records holds operators and no mode: there it is the nearest operator, at which forward mode stops as well.

    Under forward mode the tangent, too, is computed without gradients: that of an alias would be shared, a copy has its
    own.
    """
    if state.capture is None and foreign_tracer_active():
        return torch.ops.aten.detach.default(x)
    with torch.no_grad():
        return torch.ops.aten.clone.default(x) if in_forward_level() else torch.ops.aten.alias.default(x)


class _Assigned(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, target: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, Tensor]:
        return None, cotangent

    @staticmethod
    def jvp(ctx: Any, of_value: Tensor, of_target: Tensor) -> Tensor:
        return of_value.clone()


def assigned(value: Tensor, target: Tensor) -> Tensor:
    """What ``torch.no_grad`` makes of a write, as a node: these values, with the gradient history of ``target``.

    Forward mode, which ``no_grad`` leaves on, follows the values.
    """
    result: Tensor = _Assigned.apply(value, target)
    return result


def rebound(value: Tensor, target: Tensor) -> Tensor:
    """What ``target.data = value`` makes of ``target``: the memory of ``value``, with the history that it had."""
    return assigned(value, target)


def conjugated(x: Tensor) -> Tensor:
    """``x.conj()`` as a value and not as a mark on ``x``. torch's operator for it (2.13) lacks a batching rule."""
    return torch.ops.aten._conj.default(x).resolve_conj()


def by_stride(x: Tensor) -> list[int]:
    """The dimensions as they lie in memory."""
    return sorted(range(x.dim()), key=x.stride, reverse=True)


def inverted(order: list[int]) -> list[int]:
    """The permutation that undoes another one."""
    return [order.index(d) for d in range(len(order))]


def behind(nodes: Iterable[fx.Node], is_end: Callable[[fx.Node], bool] = lambda node: False) -> set[fx.Node]:
    """These nodes and what they were computed from; not what is behind an end."""
    todo, seen = list(nodes), set[fx.Node]()
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo.extend(() if is_end(node) else node.all_input_nodes)
    return seen


def packed(x: Tensor, order: list[int]) -> Tensor:
    """``x`` with its dimensions in this order in memory, from its beginning; itself where it lies so already."""
    return dense(x.permute(order)).permute(inverted(order))


def frozen(a: Any, index: dict[fx.Node, int] | None = None) -> Hashable:
    """Arguments of a node as a key; other nodes by their place in ``index``, or as they are."""
    if isinstance(a, fx.Node):
        return ("%", a if index is None else index[a])
    if isinstance(a, (tuple, list)):
        return ("seq", *(frozen(v, index) for v in a))
    if isinstance(a, dict):
        return ("map", *((k, frozen(v, index)) for k, v in a.items()))
    if isinstance(a, slice):
        return ("slice", frozen(a.start, index), frozen(a.stop, index), frozen(a.step, index))
    return (type(a), repr(a) if isinstance(a, (float, complex)) else a)


def size_at(x: Tensor, dim: int) -> Any:
    """``x.shape[dim]``; torch's operator for it has no batching rule."""
    return x.shape[dim]


def unfilled(x: Tensor, **options: Any) -> Tensor:
    """``torch.empty_like(x, **options)``: numbers drawn into it have their turn by the layout of ``x``.

    It takes no value of ``x``, so it is one for all lanes of a vmap, which may get the same numbers (dropout); these
    are drawn in the order of indices.
    """
    if is_batched(x):
        options = {"dtype": options.get("dtype") or x.dtype, "device": options.get("device") or x.device}
        return torch.ops.aten.empty.memory_format(x.shape, **options)
    return torch.ops.aten.empty_like.default(x, **options)


def bernoulli_like(x: Tensor, p: float = 0.5) -> Tensor:
    """What ``x.bernoulli_(p)`` makes of ``x``: the numbers have their turn by the layout of ``x``, where those of
    ``torch.bernoulli(x, p)`` (torch 2.13) don't. Where a graph is recorded it is the latter, which transforms know; a
    capture makes this node of it.
    """
    if state.capture is not None or foreign_tracer_active():
        return torch.ops.aten.bernoulli.p(x, p)
    return torch.empty_like(x).bernoulli_(p)


def meta_of(node: fx.Node) -> TensorMeta:
    return TensorMeta.of(node.meta["val"])
