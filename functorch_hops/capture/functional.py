"""In-place work on a body's own intermediates: what is left to do around torch's functionalization."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from .._torch import OpOverload
from ..errors import CaptureError, message
from .sizes import size_at
from .subgraph import detached, is_differentiable, untracked

__all__ = [
    "REPLACED",
    "bound_slice",
    "depends_on_input",
    "has_writes",
    "laid_out_zeros",
    "release_detached",
    "replace_empty_like",
    "running_statistics",
    "symbol_as_tensor",
    "unwrite_views",
    "without_statistics",
]


def has_writes(graph: fx.Graph) -> bool:
    return any(isinstance(node.target, OpOverload) and node.target._schema.is_mutable for node in graph.nodes)


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """``aten.copy`` has no derivative; it is ``source`` in the shape, dtype and layout of ``target``: what the body
    made of ``target`` may be views of that layout only.
    """
    expanded = torch.ops.aten.expand.default(source, target.shape)
    copied = torch.ops.aten._to_copy.default(expanded, dtype=target.dtype, device=target.device)
    if copied.stride() == target.stride():
        return copied
    order, inverse = _by_stride(target)
    packed = torch.ops.aten.permute.default(copied, order)
    packed = torch.ops.aten.clone.default(packed, memory_format=torch.contiguous_format)
    return torch.ops.aten.permute.default(packed, inverse)


def _by_stride(x: Tensor) -> tuple[list[int], list[int]]:
    """The dimensions as they lie in memory, and how to undo that order."""
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    return order, [order.index(d) for d in range(x.dim())]


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
    order, inverse = _by_stride(x)
    memory = torch.ops.aten.permute.default(x, order)
    if not memory.is_contiguous():
        problem = "a write through as_strided to a tensor whose memory has gaps"
        raise CaptureError(message("as_strided", problem, remedy="write by index, or to a contiguous copy"))
    places = torch.arange(x.numel(), device=x.device).as_strided(size, stride, offset or 0)
    flat = torch.ops.aten.reshape.default(memory, [-1])
    values = torch.ops.aten.reshape.default(source, [-1])
    written = torch.ops.aten.index_put.default(flat, [places.reshape(-1)], values)
    return torch.ops.aten.permute.default(written.reshape(memory.shape), inverse)


REPLACED: dict[Any, Callable[..., Tensor]] = {
    torch.ops.aten.copy.default: _copy,
    torch.ops.aten.select_scatter.default: _select_scatter,
    torch.ops.aten.slice_scatter.default: _slice_scatter,
    torch.ops.aten.as_strided_scatter.default: _as_strided_scatter,
}
"""What writes become in torch's functionalization, in operators whose derivatives and batching rules are right."""


def replace_empty_like(node: fx.Node) -> None:
    """``empty_like(x)`` takes no value of ``x``: what is drawn into it (dropout) can be the same for all lanes of x."""
    value = node.meta["val"]
    if all(isinstance(size, int) for size in value.shape):
        node.target = torch.ops.aten.empty.memory_format
        node.args, node.kwargs = (list(value.shape),), {"dtype": value.dtype, "device": value.device}


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


def release_detached(graph: fx.Graph) -> fx.Node | None:
    """Let functionalization write through what ``detach`` made: as a view it would detach what is written as well.

    Returns a write that can't be said in a functional graph, if there is one: to a detached alias of a value that
    carries gradients and that is used later, with a new value and its old history.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    chains: dict[fx.Node, list[fx.Node]] = {}  # from a value to the one whose memory it shares
    for node in graph.nodes:
        source = _shares_memory_of(node)
        chains[node] = [node, *chains[source]] if source is not None else [node]
    through = [(w, barrier) for w in order for t in _written(w) for barrier in chains[t] if barrier.target in _BARRIERS]
    for write, barrier in through:
        if depends_on_input(barrier.args[0]):  # type: ignore[arg-type]
            others = (n for n, c in chains.items() if c[-1] is chains[barrier][-1] and barrier not in c)
            users = [user for n in others for user in n.users if user.target not in _BARRIERS]
            if any(order[user] > order[barrier if _written(user) else write] for user in users):
                return write
    for _, barrier in through:
        if barrier.target is torch.ops.aten.detach.default:
            barrier.target = detached
    return None


_BARRIERS = (torch.ops.aten.detach.default, untracked)


def _shares_memory_of(node: fx.Node) -> fx.Node | None:
    source = node.args[0] if node.args else None
    is_view = node.target in (untracked, operator.getitem) or (
        isinstance(node.target, OpOverload) and any(r.alias_info is not None for r in node.target._schema.returns)
    )
    return source if is_view and isinstance(source, fx.Node) else None


def _written(node: fx.Node) -> list[fx.Node]:
    if not isinstance(node.target, OpOverload):
        return []
    arguments = zip(node.target._schema.arguments, node.args)
    written = [value for a, value in arguments if a.alias_info is not None and a.alias_info.is_write]
    return [value for value in written if isinstance(value, fx.Node)]


def depends_on_input(node: fx.Node) -> bool:
    todo, seen = [node], set()
    while todo:
        node = todo.pop()
        if node in seen or node.target in _BARRIERS:
            continue
        seen.add(node)
        if node.op == "placeholder" and is_differentiable(node.meta["val"].dtype):
            return True
        todo.extend(node.all_input_nodes)
    return False


_NO_END = 2**63 - 1
_SLICES: dict[Any, int] = {torch.ops.aten.slice.Tensor: 1, torch.ops.aten.slice_scatter.default: 2}


def bound_slice(node: fx.Node) -> None:
    """``x[-2:]`` lies between two places of ``x``: some batching rules compute with the bounds as they are given, among
    them the largest integer.
    """
    place = _SLICES.get(node.target)
    if place is None or len(node.args) < place + 2:
        return
    source, dim, bounds = node.args[0], node.args[place], node.args[place + 1 : place + 3]
    assert isinstance(source, fx.Node)
    assert isinstance(dim, int)
    size = source.meta["val"].shape[dim]
    if isinstance(size, int) and all(b is None or isinstance(b, int) for b in bounds):
        start, end, _ = slice(*bounds, *[None] * (2 - len(bounds))).indices(size)
        node.args = (*node.args[: place + 1], start, end, *node.args[place + 3 :])
    elif not isinstance(size, int) and bounds[1:] == (_NO_END,):
        with node.graph.inserting_before(node):
            end_of_x = node.graph.call_function(size_at, (source, dim))
        end_of_x.meta["val"] = size
        node.args = (*node.args[: place + 2], end_of_x, *node.args[place + 3 :])


_aten = torch.ops.aten
_BATCH_NORMS = {
    _aten.native_batch_norm.default: _aten.native_batch_norm.default,
    _aten._native_batch_norm_legit.default: _aten.native_batch_norm.default,
    _aten.cudnn_batch_norm.default: _aten.cudnn_batch_norm.default,
    _aten.miopen_batch_norm.default: _aten.miopen_batch_norm.default,
}
"""Operators that update running statistics, which not all of their schemas admit, with one that can do without."""


def symbol_as_tensor(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """A number of an open size as a tensor, if that is what this call converts: vmap gives a number beside a 0-d lane
    the dtype of the result so, and torch's kernel (2.13) knows no symbols.
    """
    if func is not _aten._to_copy.default or not isinstance(args[0], (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return None
    made: Tensor = _aten.scalar_tensor.default(args[0], dtype=kwargs.get("dtype"), device=kwargs.get("device"))
    return made


def laid_out_zeros(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Zeros laid out like another tensor, to which torch copies a tangent whose layout is not that of its primal, if
    that is what this call makes: torch's kernel (2.13) reads a concrete offset.
    """
    if func is not _aten._new_zeros_with_same_feature_meta.default or not args[1].is_contiguous():
        return None
    x, other = args
    shape = [*x.shape[: kwargs.get("self_num_batch_dims", 0)], *other.shape]
    zeros: Tensor = _aten.zeros.default(shape, dtype=x.dtype, device=x.device)
    return zeros


def without_statistics(func: Any, args: tuple[Any, ...]) -> Any:
    """What computes the same as this batch normalisation if it updates running statistics, else None."""
    return _BATCH_NORMS.get(func) if func in _BATCH_NORMS and isinstance(args[3], Tensor) and args[5] else None


def running_statistics(
    x: Tensor, batch_mean: Tensor, invstd: Tensor, mean: Tensor, var: Tensor, momentum: float, eps: float
) -> tuple[Tensor, Tensor]:
    """The new running statistics, from what batch normalisation saves: ``invstd = (batch_var + eps) ** -0.5``.

    The batch's variance there is the biased one, and the running one is unbiased.
    """
    n = x.numel() // x.shape[1]
    batch_var = (invstd.square().reciprocal() - eps) * (n / (n - 1))
    return mean + momentum * (batch_mean - mean), var + momentum * (batch_var - var)
