"""Sizes and floats of enclosing captures, read in a capture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from .. import _torch
from ..ir.meta import TensorMeta
from ..ir.nodes import size_at

__all__ = ["Symbols"]


class Symbols:
    """The symbolic numbers of one capture.

    One of an enclosing capture travels as an operand, from which it is read again inside: a size as the size of an
    empty tensor, so that it remains a size in every graph derived from this one; a float as a 0-d tensor.
    """

    def __init__(self, capture: Any) -> None:
        self.capture = capture
        self.carriers: dict[Any, Tensor] = {}

    def lift(self, symbol: Any) -> Any | None:
        """The entry for the table of the tracer; None for a symbol of no enclosing capture."""
        capture, parent = self.capture, self.capture.parent
        entry = parent.tracer.sympy_expr_tracker.get(symbol) if parent is not None else None
        if entry is None:
            return None
        is_size = isinstance(entry.value, torch.SymInt)
        with _torch.without_torch_function(), _torch.below_transforms(), _torch.disable_proxy_modes_tracing():
            placeholder = capture.proxy_of(capture.lift(parent.symbols.carrier(symbol, entry)))
            target, rest = (size_at, (0,)) if is_size else (torch.ops.aten._local_scalar_dense.default, ())
            number = capture.tracer.create_proxy("call_function", target, (placeholder, *rest), {})
        number.node.meta["val"] = entry.value
        return _torch.symbol_entry(number, entry.value)

    def carrier(self, symbol: Any, entry: Any) -> Tensor:
        """A symbol of this capture as a tensor that can be an operand."""
        if symbol not in self.carriers:
            self.carriers[symbol] = self._new_carrier(entry.proxy.force(), entry.value)
        return self.carriers[symbol]

    def _new_carrier(self, number: fx.Proxy, value: Any) -> Tensor:
        is_size = isinstance(value, torch.SymInt)
        meta = TensorMeta((value, 0) if is_size else (), torch.bool if is_size else torch.float64, torch.device("cpu"))
        target: Any = torch.ops.aten.empty.memory_format if is_size else torch.ops.aten.scalar_tensor.default
        fake: Tensor = self.capture.new_fake(meta)
        tracer = self.capture.tracer
        args = ([number, 0] if is_size else number,)
        proxy = tracer.create_proxy("call_function", target, args, {"dtype": meta.dtype, "device": meta.device})
        _torch.track_tensor_tree(fake, proxy, constant=None, tracer=tracer)
        return fake
