"""Eigenvalues and singular values inside a loop: LAPACK, which torch's library exports, as torch calls it (torch 2.13).

Their vectors have no sign of their own: another algorithm would find others than eager does.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from .forms import Refused
from .headers import header
from .linear import LINEAR
from .sizes import number, size_of
from .source import c_type

__all__ = ["LAPACK", "LAPACK_STATEMENTS"]

LAPACK = f"{LINEAR}\n{header('lapack')}"

_LARGEST = 256
"""Rows or columns from which on torch, which may use more threads, is no slower."""

aten = torch.ops.aten


def _eigen(
    node: fx.Node, tensors: Sequence[Tensor], results: Sequence[Tensor], a: str, values: str, vectors: str
) -> str:
    (m,) = tensors
    n, _ = _sizes(m, "syevd")
    part, has_vectors = _arguments(node, "L", True)
    places = f"{a}, {values}, {vectors if has_vectors else 'nullptr'}"
    return f"fh::eigen<{c_type(m.dtype)}>({n}, '{part[0].upper()}', {_count(m)}, {places}, {_is_matrix(m)});"


def _singular(
    node: fx.Node, tensors: Sequence[Tensor], results: Sequence[Tensor], a: str, u: str, values: str, vh: str
) -> str:
    (m,) = tensors
    rows, columns = _sizes(m, "gesdd")
    if node.kwargs.get("driver") is not None:
        raise Refused("torch has a choice of drivers on CUDA only, and says so")
    is_full, has_vectors = _arguments(node, False, True)
    places = f"{a}, {u}, {values}, {vh}" if has_vectors else f"{a}, nullptr, {values}, nullptr"
    sizes = f"{rows}, {columns}, {min(rows, columns)}, {str(is_full).lower()}, {_count(m)}"
    return f"fh::singular<{c_type(m.dtype)}>({sizes}, {places}, {_is_matrix(m)});"


def _sizes(m: Tensor, function: str) -> tuple[int, int]:
    rows, columns = map(number, m.shape[-2:])
    if max(rows, columns) > _LARGEST:
        raise Refused(f"torch computes with a matrix of {rows} x {columns}")
    if m.dtype not in (torch.float32, torch.float64) or not _is_exported(f"{'sd'[m.dtype.itemsize == 8]}{function}_"):
        raise Refused(f"this build of torch has no {function} of {m.dtype}")
    return rows, columns


def _arguments(node: fx.Node, *defaults: Any) -> tuple[Any, ...]:
    given = node.args[1:]
    return *given, *defaults[len(given) :]


def _count(m: Tensor) -> Any:
    return math.prod(map(size_of, m.shape[:-2]))


def _is_matrix(m: Tensor) -> str:
    return str(m.dim() == 2).lower()


@functools.cache
def _is_exported(symbol: str) -> bool:
    libraries = Path(torch.__file__).parent.joinpath("lib").glob("libtorch_cpu.*")
    return any(hasattr(ctypes.CDLL(str(library)), symbol) for library in libraries)


LAPACK_STATEMENTS: dict[Any, Callable[..., str]] = {
    aten._linalg_eigh.default: _eigen,
    aten._linalg_svd.default: _singular,
}
