"""``torch.autograd.Function`` inside a captured body.

A trace below autograd would keep what ``forward`` does and forget ``backward``. Here each staticmethod is captured as a
graph, with a context object of our own that remembers what ``forward`` saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...capture.speculate import speculate_subgraph
from ...capture.subgraph import TensorMeta, is_differentiable
from .rules import Layout, custom_rule_static

__all__ = ["call_autograd_function"]


class _Context:
    """What ``forward`` and ``backward`` get as ``ctx``."""

    def __init__(self, needs_input_grad: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs_input_grad
        self.saved_tensors: tuple[Tensor | None, ...] = ()
        self.saved_for_forward: tuple[Tensor | None, ...] = ()
        self.materialize_grads = True
        self.non_differentiable: tuple[Tensor, ...] = ()

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors

    def save_for_forward(self, *tensors: Tensor | None) -> None:
        self.saved_for_forward = tensors

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        self.non_differentiable = tensors

    def mark_dirty(self, *tensors: Tensor) -> None:
        """A write to an input was refused already where it happened."""

    def set_materialize_grads(self, value: bool) -> None:
        self.materialize_grads = value

    def tensors(self) -> list[Tensor]:
        """Everything that the graphs of the derivatives read, without repetition."""
        found: dict[int, Tensor] = {}
        for value in self.__dict__.values():
            for t in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(t, Tensor):
                    found.setdefault(id(t), t)
        return list(found.values())

    def replaced(self, old: Sequence[Tensor], new: Sequence[Tensor]) -> _Context:
        """The same context with other tensors."""
        table = {id(a): b for a, b in zip(old, new)}

        def swap(value: Any) -> Any:
            if isinstance(value, Tensor):
                return table[id(value)]
            return type(value)(map(swap, value)) if type(value) in (tuple, list) else value

        other = _Context(self.needs_input_grad)
        other.__dict__.update({name: swap(value) for name, value in self.__dict__.items()})
        return other


class _Recorded:
    """One call: its context, and what of its outputs is a tensor."""

    def __init__(self, cls: Any, args: Sequence[Any]) -> None:
        self.cls, self.args = cls, args
        self.places = [i for i, a in enumerate(args) if isinstance(a, Tensor)]
        self.context = _Context(tuple(isinstance(a, Tensor) and is_differentiable(a.dtype) for a in args))
        self.outputs: tuple[Any, ...] = ()
        self.is_single = False
        self.sources: list[tuple[str, int]] = []
        self.residuals: list[Tensor] = []

    def forward(self, *flat: Tensor) -> list[Tensor]:
        values = list(self.args)
        for place, value in zip(self.places, flat):
            values[place] = value
        if self.cls.setup_context is not torch.autograd.Function.setup_context:
            result = self.cls.forward(*values)
            self.cls.setup_context(self.context, tuple(values), result)
        else:
            result = self.cls.forward(self.context, *values)
        self.is_single = not isinstance(result, (tuple, list))
        self.outputs = (result,) if self.is_single else tuple(result)
        outs = self.tensor_outputs()
        self.residuals = self.context.tensors()
        self.sources = [_source(r, flat, outs) for r in self.residuals]
        self.differentiable = tuple(
            is_differentiable(o.dtype) and not any(o is t for t in self.context.non_differentiable) for o in outs
        )
        return [*outs, *self.residuals]

    def tensor_outputs(self) -> list[Tensor]:
        return [o for o in self.outputs if isinstance(o, Tensor)]

    def backward(self, *flat: Tensor) -> list[Tensor]:
        """``residuals, cotangents of the differentiable outputs -> gradients``, zeros for None."""
        context = self.context.replaced(self.residuals, flat[: len(self.residuals)])
        given = iter(flat[len(self.residuals) :])
        marks = iter(self.differentiable)
        cts = [next(given) if isinstance(o, Tensor) and next(marks) else self._no_cotangent(o) for o in self.outputs]
        grads = self.cls.backward(context, *cts)
        grads = grads if isinstance(grads, (tuple, list)) else (grads,)
        return [self._gradient(grads, i) for i in self.places if self.context.needs_input_grad[i]]

    def _no_cotangent(self, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor) or not self.context.materialize_grads:
            return None
        return TensorMeta.of(output).zeros()

    def _gradient(self, grads: Sequence[Any], i: int) -> Tensor:
        grad = grads[i] if i < len(grads) else None
        return TensorMeta.of(self.args[i]).zeros() if grad is None else grad

    def forward_mode(self, *flat: Tensor) -> list[Tensor]:
        """``residuals, tangents of the marked inputs -> tangents of the differentiable outputs``."""
        context = self.context.replaced(self.residuals, flat[: len(self.residuals)])
        context.saved_tensors = context.saved_for_forward or context.saved_tensors
        given = iter(flat[len(self.residuals) :])
        tangents = [next(given) if needed else None for needed in self.context.needs_input_grad]
        result = self.cls.jvp(context, *tangents)
        result = result if isinstance(result, (tuple, list)) else (result,)
        tensors = [(o, t) for o, t in zip(self.outputs, result) if isinstance(o, Tensor)]
        return [TensorMeta.of(o).zeros() if t is None else t for (o, t), d in zip(tensors, self.differentiable) if d]


def _source(residual: Tensor, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[str, int]:
    for kind, values in (("input", inputs), ("output", outputs)):
        for i, value in enumerate(values):
            if residual is value:
                return kind, i
    return "other", 0


def call_autograd_function(cls: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """``cls.apply(*args)`` as a node with graphs for its derivatives."""
    from . import custom_rule_op

    args = [*args, *kwargs.values()]
    call = _Recorded(cls, args)
    inputs = [TensorMeta.of(args[i]) for i in call.places]
    name = cls.__name__
    forward, lifted = speculate_subgraph(call.forward, inputs, operation=name, parameter="forward")
    n_outs, n_residuals = len(call.differentiable), len(call.residuals)
    residuals = list(forward.outputs[n_outs : n_outs + n_residuals])
    cts = [m for m, d in zip(forward.outputs, call.differentiable) if d]
    marked = tuple(call.context.needs_input_grad[i] for i in call.places)
    backward, backward_lifted = _closing_between(call.backward, residuals, cts, name, "backward")
    bodies = [forward, backward]
    forward_lifted: list[Tensor] = []
    if cls.jvp is not torch.autograd.Function.jvp:
        moving = [m for m, needed in zip(inputs, marked) if needed]
        body, forward_lifted = _closing_between(call.forward_mode, residuals, moving, name, "jvp")
        bodies.append(body)
    layout = Layout(
        n_inputs=len(forward.inputs),
        marked=marked,
        differentiable=call.differentiable,
        sources=tuple(call.sources),
        n_backward=len(backward_lifted),
        n_forward_mode=len(forward_lifted),
    )
    operands = [*(args[i] for i in call.places), *lifted, *backward_lifted, *forward_lifted]
    outs = iter(custom_rule_op(custom_rule_static(name, bodies, layout), *operands))
    result = tuple(next(outs) if isinstance(o, Tensor) else o for o in call.outputs)
    return result[0] if call.is_single else result


def _closing_between(
    function: Any, residuals: list[TensorMeta], given: list[TensorMeta], name: str, parameter: str
) -> tuple[Any, list[Tensor]]:
    """Capture a derivative; what it closes over comes between the residuals and the given values."""
    from ...capture.derive import rewritten

    body, lifted = speculate_subgraph(function, [*residuals, *given], operation=name, parameter=parameter)
    if not lifted:
        return body, lifted
    r, g = len(residuals), len(given)
    k = len(lifted)

    def reordered(*args: Tensor) -> Sequence[Tensor]:
        return body(*args[:r], *args[r + k :], *args[r : r + k])

    metas = [*residuals, *body.inputs[r + g :], *given]
    return body.derive(("closing between", r, g), lambda: rewritten(reordered, metas, name)), lifted
