"""Sparse matrices in a captured function.

NOTE [Sparse matrices] A graph holds dense tensors only. So a captured function is given a sparse matrix itself, which a
trace remembers by identity, and what it does with the matrix is done with its parts: indices and values are operands
like any tensor that a function closes over, and share the memory of the matrix. A product is then a gather and a sum
at places, which every transform and every backend knows. What is not written here in terms of the parts is refused by
name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .. import _torch
from ..errors import CaptureError, ErrorContext, message

__all__ = ["MAKES_SPARSE", "call_of_sparse", "making_sparse", "refuse_sparse", "sparse_among"]

_Tensor: Any = Tensor
_OUTSIDE = "do it before the call and pass the result, or pass a dense tensor"


def sparse_among(values: Iterable[Any]) -> Tensor | None:
    """The first of these arguments, or of lists among them, that is a tensor and not dense."""
    for value in values:
        if isinstance(value, Tensor):
            if not _torch.is_dense(value):
                return value
        elif isinstance(value, (list, tuple)) and (found := sparse_among(value)) is not None:
            return found
    return None


def call_of_sparse(capture: Any, func: Any, sparse: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A function of a sparse matrix, and of traced values."""
    with _torch.without_torch_function():
        handler = None if sparse.is_nested else _HANDLERS.get(func)
        result = NotImplemented
        if handler is not None and _takes(handler, args, kwargs):
            result = handler(Parts(capture), func, *args, **kwargs)
        kind = "nested" if sparse.is_nested else "sparse"
    if result is NotImplemented:
        what = f"{_torch.function_name(func)} of a {kind} tensor"
        remedy = f"products of a matrix (COO, CSR, CSC) with a dense one and to_dense() are captured; {_OUTSIDE}"
        raise refuse_sparse(capture.context, what, remedy)
    return result


def _takes(handler: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the call has the arguments that are written here: torch's functions have further ones."""
    try:
        inspect.signature(handler).bind(None, None, *args, **kwargs)
    except TypeError:
        return False
    return True


def making_sparse(context: ErrorContext) -> CaptureError:
    return refuse_sparse(context, "making a sparse tensor", _OUTSIDE)


def refuse_sparse(context: ErrorContext, what: str, remedy: str = _OUTSIDE) -> CaptureError:
    problem = f"{what} can't be part of a captured function"
    return CaptureError(message(context.operation, problem, parameter=context.parameter, remedy=remedy))


class Parts:
    """The parts of sparse matrices as values of a capture."""

    def __init__(self, capture: Any) -> None:
        self.capture, self.session = capture, capture.session

    def part(self, s: Tensor, name: str) -> Tensor:
        """What ``s.name()`` gives, as an operand."""
        if ask(s, _Tensor.requires_grad.__get__):
            remedy = "make it of values that require one: pass indices and values, and multiply by index_add"
            raise refuse_sparse(self.capture.context, "a sparse tensor that requires a gradient", remedy)
        known = self.session.parts
        if (id(s), name) not in known:
            known[id(s), name] = s, ask(s, getattr(Tensor, name))
        _, part = known[id(s), name]
        self.capture.constants.add(id(part))
        lifted: Tensor = self.capture.lift(part)
        return lifted

    def entries(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Rows, columns and values of a matrix; None of other tensors."""
        if id(s) in self.session.transposed:
            entries = self.entries(self.session.transposed[id(s)][1])
            return None if entries is None else (entries[1], entries[0], entries[2])
        if s.layout is torch.sparse_coo and s.dim() == 2 and ask(s, Tensor.sparse_dim) == 2:
            rows, cols = self.part(s, "_indices").unbind()
            return rows, cols, self.part(s, "_values")
        if s.layout is torch.sparse_csr and s.dim() == 2 and ask(s, Tensor.dense_dim) == 0:
            rows, cols = self.expanded(s, "crow_indices", "col_indices")
            return rows, cols, self.part(s, "values")
        if s.layout is torch.sparse_csc and s.dim() == 2 and ask(s, Tensor.dense_dim) == 0:
            cols, rows = self.expanded(s, "ccol_indices", "row_indices")
            return rows, cols, self.part(s, "values")
        return None

    def expanded(self, s: Tensor, compressed: str, plain: str) -> tuple[Tensor, ...]:
        compressed_indices, indices = self.part(s, compressed), self.part(s, plain)
        return torch.ops.aten._convert_indices_from_csr_to_coo.default(compressed_indices, indices).unbind()

    def transpose_of(self, s: Tensor) -> Tensor:
        transposed = self.session.transposed
        if id(s) in transposed:
            source: Tensor = transposed[id(s)][1]
            return source
        result: Tensor = ask(s, Tensor.t)
        transposed[id(result)] = result, s
        return result


def ask(s: Tensor, question: Callable[[Tensor], Any]) -> Any:
    """What a real tensor says of itself."""
    with _torch.suspended(keep_autocast=False):
        return question(s)


def _answer(parts: Parts, func: Any, s: Tensor, *args: Any) -> Any:
    return ask(s, lambda s: func(s, *args))


def _part(parts: Parts, func: Any, s: Tensor) -> Any:
    return NotImplemented if id(s) in parts.session.transposed else parts.part(s, func.__name__)


def _itself(parts: Parts, func: Any, s: Tensor) -> Any:
    return s


def _coalesce(parts: Parts, func: Any, s: Tensor) -> Any:
    return s if ask(s, Tensor.is_coalesced) else NotImplemented


def _transpose(parts: Parts, func: Any, s: Tensor, *dims: int) -> Any:
    is_of_matrix = s.dim() == 2 and {d % 2 for d in dims} in (set(), {0, 1})
    return parts.transpose_of(s) if is_of_matrix else NotImplemented


def _product(parts: Parts, func: Any, a: Tensor, b: Tensor) -> Any:
    """Of a matrix and a dense matrix or vector, in either order."""
    if _torch.is_dense(b):
        return _times(parts, a, parts.capture.lift_tree(b))
    if not _torch.is_dense(a):
        return NotImplemented
    a = parts.capture.lift_tree(a)
    if a.dim() == 1:
        return _times(parts, parts.transpose_of(b), a)
    result = _times(parts, parts.transpose_of(b), a.mT)
    return result if result is NotImplemented else result.mT


def _times(parts: Parts, s: Tensor, x: Tensor) -> Any:
    if x.dim() not in (1, 2):
        return NotImplemented
    if x.shape[0] != s.shape[1] or x.dtype != s.dtype:
        torch.empty(s.shape, dtype=s.dtype, device=s.device) @ x  # raises what eager raises
    entries = parts.entries(s)
    if entries is None:
        return NotImplemented
    rows, cols, values = entries
    terms = x.index_select(0, cols) * (values if x.dim() == 1 else values.unsqueeze(-1))
    return x.new_zeros((s.shape[0], *x.shape[1:])).index_add(0, rows, terms)


def _to_dense(parts: Parts, func: Any, s: Tensor) -> Any:
    entries = parts.entries(s)
    if entries is None:
        return NotImplemented
    rows, cols, values = entries
    return values.new_zeros(tuple(s.shape)).index_put((rows, cols), values, accumulate=True)


_GETTERS = ("shape", "dtype", "device", "layout", "is_sparse", "is_sparse_csr", "ndim", "is_cuda", "requires_grad")
_QUESTIONS = (
    *(getattr(Tensor, name).__get__ for name in _GETTERS),
    *(_Tensor.size, _Tensor.dim, _Tensor.numel, _Tensor.nelement, _Tensor.__len__, _Tensor.is_floating_point),
    *(_Tensor.is_complex, _Tensor.is_coalesced, _Tensor._nnz, _Tensor.sparse_dim, _Tensor.dense_dim),
)
_PARTS = ("indices", "values", "_indices", "_values", "crow_indices", "col_indices", "ccol_indices", "row_indices")
_PRODUCTS = (torch.matmul, torch.mm, torch.mv, _Tensor.matmul, _Tensor.__matmul__, _Tensor.mm, _Tensor.mv)
_HANDLERS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(_QUESTIONS, _answer),
    **{getattr(Tensor, name): _part for name in _PARTS},
    **dict.fromkeys((*_PRODUCTS, torch.sparse.mm), _product),
    **dict.fromkeys((_Tensor.t, torch.t, _Tensor.T.__get__, _Tensor.mT.__get__), _transpose),
    **dict.fromkeys((_Tensor.transpose, torch.transpose), _transpose),
    Tensor.to_dense: _to_dense,
    Tensor.coalesce: _coalesce,
    Tensor.detach: _itself,
}
"""``handler(parts, func, *arguments)``; NotImplemented for tensors and arguments that it does not know."""

MAKES_SPARSE = frozenset(
    {
        *(getattr(torch, f"sparse_{kind}_tensor") for kind in ("coo", "csr", "csc", "bsr", "bsc", "compressed")),
        *(getattr(Tensor, name) for name in dir(Tensor) if name.startswith("to_sparse")),
        _Tensor.sparse_mask,
    }
)
