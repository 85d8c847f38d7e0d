"""In-place work on a body's own intermediates: what is left to do around torch's functionalization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from .._torch import OpOverload
from ..errors import CaptureError, message
from ..ir.nodes import by_stride, inverted, rebound
from .detached import BARRIERS, memory_chains, written

__all__ = ["FUNCTIONAL", "REPLACED", "has_writes", "restride_windows", "unwrite_views"]


def has_writes(graph: fx.Graph) -> bool:
    """Whether something is written to, or made to share memory, which no functional graph says."""
    targets = [node.target for node in graph.nodes]
    return rebound in targets or any(isinstance(t, OpOverload) and t._schema.is_mutable for t in targets)


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """``aten.copy`` has no derivative; it is ``source`` in the shape, dtype and layout of ``target``: what the body
    made of ``target`` may be views of that layout only.
    """
    expanded = torch.ops.aten.expand.default(source, target.shape)
    copied = torch.ops.aten._to_copy.default(expanded, dtype=target.dtype, device=target.device)
    if copied.stride() == target.stride():
        return copied
    order = by_stride(target)
    inverse = inverted(order)
    packed = torch.ops.aten.permute.default(copied, order)
    packed = torch.ops.aten.clone.default(packed, memory_format=torch.contiguous_format)
    return torch.ops.aten.permute.default(packed, inverse)


def _select_scatter(x: Tensor, source: Tensor, dim: int, index: int) -> Tensor:
    """A write to ``x[:, i]`` is one to the slice ``x[:, i:i + 1]``.

    torch's batching rule of ``select_scatter`` (2.13) scatters the same values to the same place many times over, and
    the gradient of that is the sum of as many.
    """
    dim = dim % x.dim()
    start = index if index >= 0 else index + x.shape[dim]
    row = torch.ops.aten.unsqueeze.default(source, dim)
    return _slice_scatter(x, row, dim, start, start + 1)


def _slice_scatter(x: Tensor, source: Tensor, dim: int = 0, *bounds: Any, **others: Any) -> Tensor:
    """torch knows no derivative of it for complex numbers: there it is one of their real and imaginary parts."""
    if not x.is_complex():
        return torch.ops.aten.slice_scatter.default(x, source, dim, *bounds, **others)
    parts = _slice_scatter(torch.view_as_real(x), torch.view_as_real(source), dim % x.dim(), *bounds, **others)
    return torch.view_as_complex(parts)


def _as_strided_scatter(x: Tensor, source: Tensor, size: Any, stride: Any, offset: int | None = None) -> Tensor:
    """A write to places of the memory of ``x``: torch's operator for it has a wrong derivative and can't batch."""
    order = by_stride(x)
    inverse = inverted(order)
    memory = torch.ops.aten.permute.default(x, order)
    if not memory.is_contiguous():
        problem = "a write through as_strided to a tensor whose memory has gaps"
        raise CaptureError(message("as_strided", problem, remedy="write by index, or to a contiguous copy"))
    places = torch.arange(x.numel(), device=x.device).as_strided(size, stride, offset or 0)
    flat = torch.ops.aten.reshape.default(memory, [-1])
    values = torch.ops.aten.reshape.default(source, [-1])
    written = torch.ops.aten.index_put.default(flat, [places.reshape(-1)], values)
    return torch.ops.aten.permute.default(written.reshape(memory.shape), inverse)


def _filled(x: Tensor, value: Any = 0) -> Tensor:
    """One value everywhere, which depends on ``x`` by a derivative of zero. torch's forward rule of ``zero`` (2.13)
    writes to the tangent that it is given, and ``fill`` has no batching rule.
    """
    if isinstance(value, Tensor):
        filling = torch.ops.aten._to_copy.default(value, dtype=x.dtype, device=x.device)
    else:
        filling = torch.ops.aten.full_like.default(x, value)
    return torch.ops.aten.where.self(torch.ops.aten.ones_like.default(x, dtype=torch.bool), filling, x)


def _drawn(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What is drawn into ``x`` does not depend on it; torch has no formula that says so."""
    return lambda x, *args, **kwargs: draw(torch.ops.aten.detach.default(x), *args, **kwargs)


def _rrelu(
    x: Tensor, noise: Tensor, lower: float = 0.125, upper: float = 1 / 3, training: bool = False, generator: Any = None
) -> tuple[Tensor, Tensor]:
    """torch's formula for the derivative reads the noise that was passed in, where eager has written the new one."""
    rrelu = torch.ops.aten.rrelu_with_noise_functional.default
    _, drawn = rrelu(torch.ops.aten.detach.default(x), noise, lower, upper, training, generator)
    if training:
        return x * drawn, drawn
    return torch.ops.aten.leaky_relu.default(x, (lower + upper) / 2), drawn


_WITHOUT_FORMULA: tuple[Any, ...] = (
    torch.ops.aten.normal_functional.default,
    torch.ops.aten.bernoulli.Tensor,
)
REPLACED: dict[Any, Callable[..., Any]] = {
    **{draw: _drawn(draw) for draw in _WITHOUT_FORMULA},
    torch.ops.aten.rrelu_with_noise_functional.default: _rrelu,
    torch.ops.aten.copy.default: _copy,
    torch.ops.aten.zero.default: _filled,
    torch.ops.aten.fill.Scalar: _filled,
    torch.ops.aten.fill.Tensor: _filled,
    torch.ops.aten.select_scatter.default: _select_scatter,
    torch.ops.aten.slice_scatter.default: _slice_scatter,
    torch.ops.aten.as_strided_scatter.default: _as_strided_scatter,
}
"""What writes become in torch's functionalization, in operators whose derivatives and batching rules are right."""


FUNCTIONAL: dict[Any, Callable[..., Any]] = {torch.ops.aten.view.default: torch.ops.aten.reshape.default}
"""Where nothing is written any more, a view may be a copy: what it is of may lie in memory as a new value does."""


def unwrite_views(graph: fx.Graph) -> None:
    """``squeeze_`` and its like change no data, and later users read their result: the pure twin means the same.

    torch uses them on its own intermediates (a matrix-vector product), so this saves most bodies a second trace.
    """
    for node in graph.nodes:
        target = node.target
        if isinstance(target, OpOverload) and torch.Tag.inplace_view in target.tags:
            twin = getattr(torch.ops.aten, target._schema.name.removeprefix("aten::").removesuffix("_"), None)
            if twin is not None and target._overloadname in twin.overloads():
                node.target = getattr(twin, target._overloadname)


def restride_windows(graph: fx.Graph) -> None:
    """Windows (``unfold``) that are written to, and ``as_strided`` of what is, as views of the memory that they are.

    torch's functionalization puts windows back into zeros, and what no window covers would be lost; ``as_strided`` it
    knows of what was allocated as a whole (autograd writes so to the gradients of views).
    """
    chains = memory_chains(graph)
    targets = [target for node in graph.nodes for target in written(node)]
    changing = {n for target in targets for n in chains[target]}
    changed = {chains[target][-1] for target in targets}
    for node, chain in chains.items():
        is_read = node.target is torch.ops.aten.as_strided.default and chain[-1] in changed
        if is_read or (node.target is torch.ops.aten.unfold.default and node in changing):
            base = next((n for n in chain if n.target in BARRIERS), chain[-1])
            if base is not chain[-1] and not _is_all_of_its_memory(base.meta["val"]):
                problem = f"{node.target} of a detached part of a value, where memory that they share is written to"
                raise CaptureError(message("as_strided", problem, remedy="take it of a copy, by clone()"))
            layout = _layout(graph, node)
            node.target = torch.ops.aten.as_strided.default
            node.args = (base, *layout)


def _layout(graph: fx.Graph, node: fx.Node) -> tuple[list[Any], list[Any], Any]:
    """Sizes, strides and offset of the value of a node; open ones are read of a node like it."""
    value, alike = node.meta["val"], list[fx.Node]()

    def number(known: Any, query: OpOverload, *dim: int) -> Any:
        if isinstance(known, int):
            return known
        with graph.inserting_before(node):
            if not alike:
                alike.append(graph.node_copy(node))
            read = graph.call_function(query, (*alike, *dim))
        read.meta["val"] = known
        return read

    sizes = [number(size, torch.ops.aten.sym_size.int, dim) for dim, size in enumerate(value.shape)]
    strides = [number(stride, torch.ops.aten.sym_stride.int, dim) for dim, stride in enumerate(value.stride())]
    return sizes, strides, number(value.storage_offset(), torch.ops.aten.sym_storage_offset.default)


def _is_all_of_its_memory(value: Tensor) -> bool:
    """Whether a copy lies in memory as the value does, see NOTE [Each alias has a history of its own]."""
    step = 1
    for dim in reversed(by_stride(value)):
        if value.shape[dim] != 1 and value.stride(dim) != step:
            return False
        step *= value.shape[dim]
    return value.storage_offset() == 0
