"""Tapes as values of graphs: see NOTE [Tapes]. This file registers no kernel: nor does the import of the library."""

from __future__ import annotations

import ctypes
import operator
from typing import Any

import torch
from torch import Tensor, fx

from ...ir.subgraph import Subgraph

__all__ = ["empty_tape", "free_tape", "owner_of", "tapes_made"]


def tapes_made(body: Subgraph) -> tuple[int, ...]:
    """Which outputs of a graph are tapes that a kernel in it writes."""
    return body.derive("tapes", lambda: tuple(i for i, node in enumerate(body.output_nodes()) if _is_tape(node)))


_WRITERS = "functorch_hops.taped_kernel.default", "functorch_hops.effectful_taped_kernel.default"


def _is_tape(node: fx.Node) -> bool:
    kernel = node.args[0] if node.target is operator.getitem else None
    is_writer = isinstance(kernel, fx.Node) and str(kernel.target) in _WRITERS and kernel.args[1] is None
    return is_writer and node.args[1] == len(kernel.args[-1])  # type: ignore[union-attr, arg-type]


_c = ctypes.CDLL(None)
_c.free.argtypes, _c.free.restype = [ctypes.c_void_p], None


class _Memory(ctypes.Array):
    """Memory of ``malloc``, freed with the last tensor in it."""

    _type_, _length_ = ctypes.c_int64, 1 << 40

    def __del__(self, free: Any = _c.free, address: Any = ctypes.addressof) -> None:
        free(address(self))


def empty_tape() -> Tensor:
    """The place of no tape, for a kernel that hands one over."""
    return torch.zeros(2, dtype=torch.int64, device="cpu")


def owner_of(place: Tensor) -> Tensor:
    """The tape that a kernel handed over, as a value of a graph, which owns it."""
    address, size = place.tolist()
    return torch.frombuffer(_Memory.from_address(address), dtype=torch.int64, count=size // 8)[:2]


def free_tape(place: Tensor) -> None:
    """Free the tape, if one was handed over."""
    _c.free(place.tolist()[0])
