"""Sizes and floats of enclosing captures, and of torch's own trace around them, read in a capture."""

from __future__ import annotations

import operator
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
    empty tensor, so that it remains a size in every graph derived from this one; a float as a 0-d tensor. So does one
    of torch's trace (its export), which makes the tensor when this capture has ended and it records again.
    """

    def __init__(self, capture: Any, around: Any | None) -> None:
        """``around``: the table of symbols of torch's trace, where one goes on and no capture encloses this one."""
        self.capture = capture
        self.around = around
        self.carriers: dict[Any, Tensor] = {}
        self.from_around: dict[int, Any] = {}
        """Places of lifted tensors, and the numbers of torch's trace that they carry."""

    def lift(self, expression: Any) -> Any | None:
        """The entry for the table of the tracer; None for what nothing that encloses this capture knows. What is
        computed of symbols may be known as a whole, as the size of a tensor, and they may not.
        """
        if expression.is_Symbol:
            return self._lift_known(expression)
        tracer = self.capture.tracer
        return self._compute(expression) or _torch.entry_of(expression, tracer) or self._lift_known(expression)

    def _compute(self, expression: Any) -> Any | None:
        """The entry of what is computed from symbols."""
        table, known = self.capture.tracer.sympy_expr_tracker, {}
        for symbol in sorted(expression.free_symbols, key=str):  # in each process in the same order
            entry = table.get(symbol)
            if entry is None:
                return None
            known[symbol] = entry.proxy.force().node
            known[symbol].meta.setdefault("val", entry.value)
        with _torch.disable_proxy_modes_tracing():
            node = _torch.expression_node(self.capture.graph, expression, known)
        return _torch.symbol_entry(fx.Proxy(node, self.capture.tracer), node.meta["val"])

    def _lift_known(self, expression: Any) -> Any | None:
        capture, parent = self.capture, self.capture.parent
        known = parent.tracer.sympy_expr_tracker if parent is not None else self.around
        entry = known.get(expression) if known is not None else None
        if entry is None:
            return None
        with _torch.without_torch_function(), _torch.below_transforms(), _torch.disable_proxy_modes_tracing():
            if parent is not None:
                placeholder = capture.proxy_of(capture.lift(parent.symbols.carrier(expression, entry)))
            else:
                placeholder = capture.proxy_of(self._lift_from_around(entry.value))
            number = self._read(placeholder, _torch.shape_of_carrier(entry.value))
        number.node.meta["val"] = entry.value
        return _torch.symbol_entry(number, entry.value)

    def _read(self, carrier: fx.Proxy, shape: tuple[Any, ...]) -> fx.Proxy:
        create = self.capture.tracer.create_proxy
        if not shape:
            return create("call_function", torch.ops.aten._local_scalar_dense.default, (carrier,), {})
        if not _torch.is_shifted(shape):
            return create("call_function", size_at, (carrier, 0), {})
        shifted = create("call_function", size_at, (carrier, 1), {})
        shifted.node.meta["val"] = shape[1]
        return create("call_function", operator.sub, (shifted, _torch.SHIFT), {})

    def _lift_from_around(self, value: Any) -> Tensor:
        fake: Tensor = self.capture.new_input(_meta_of_carrier(value), None)
        self.from_around[len(self.capture.lifted)] = value
        self.capture.lifted.append(fake)
        return fake

    def make_carriers(self) -> None:
        """Where torch's trace records again: the tensors that this capture has lifted for its numbers."""
        for place, value in self.from_around.items():
            self.capture.lifted[place] = _torch.new_carrier(_torch.shape_of_carrier(value), value)

    def carrier(self, expression: Any, entry: Any) -> Tensor:
        """A number of this capture as a tensor that can be an operand."""
        if expression not in self.carriers:
            self.carriers[expression] = self._new_carrier(entry.proxy.force(), entry.value)
        return self.carriers[expression]

    def _new_carrier(self, number: fx.Proxy, value: Any) -> Tensor:
        create, shape, meta = self.capture.tracer.create_proxy, _torch.shape_of_carrier(value), _meta_of_carrier(value)
        content: Any = number
        if shape and _torch.is_shifted(shape):
            content = create("call_function", operator.add, (number, _torch.SHIFT), {})
            content.node.meta["val"] = shape[1]
        if shape:
            content = [size if isinstance(size, int) else content for size in shape]
        target: Any = torch.ops.aten.empty.memory_format if shape else torch.ops.aten.scalar_tensor.default
        fake: Tensor = self.capture.new_fake(meta)
        proxy = create("call_function", target, (content,), {"dtype": meta.dtype, "device": meta.device})
        _torch.track_tensor_tree(fake, proxy, constant=None, tracer=self.capture.tracer)
        return fake


def _meta_of_carrier(number: Any) -> TensorMeta:
    shape = _torch.shape_of_carrier(number)
    return TensorMeta(shape, torch.bool if shape else torch.float64, torch.device("cpu"))
