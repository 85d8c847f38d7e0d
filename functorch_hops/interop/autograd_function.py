"""``torch.autograd.Function`` inside a captured body.

A trace below autograd would keep what ``forward`` does and forget ``backward``. Here the call becomes a custom rule,
with a context object of our own that remembers what ``forward`` saved.

NOTE [Second derivatives of a Function] They follow torch: a saved input leads back to that input, a saved output leads
back through the Function itself, and anything else has no derivative. So the graph that emits the residuals calls the
Function, whose further outputs are what else it saved.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import _torch
from ..calls.output import Constant
from ..calls.static_values import static_key
from ..errors import TreeMismatchError, message
from ..ir.meta import Mask, TensorMeta, is_differentiable
from ..ops.custom_rule.call import call_custom_rule
from ..ops.custom_rule.flat_rule import FlatRule

__all__ = ["call_autograd_function"]

Function = torch.autograd.Function
Tensors = Sequence[Tensor]


class _Context:
    """What the staticmethods get as ``ctx``."""

    def __init__(self, needs_input_grad: Mask) -> None:
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
        """Everything that the derivatives may read, without repetition."""
        found: dict[int, Tensor] = {}
        _mapped(self.__dict__, lambda t: found.setdefault(id(t), t))
        return list(found.values())

    def replaced(self, old: Tensors, new: Tensors) -> _Context:
        """The same context with other tensors."""
        table = {id(a): b for a, b in zip(old, new, strict=True)}
        other = _Context(self.needs_input_grad)
        other.__dict__.update(_mapped(self.__dict__, lambda t: table[id(t)]))
        return other


def _mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """The value of an attribute with its tensors changed, in tuples, lists and dicts too."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)([_mapped(v, change) for v in value])
    if type(value) is dict:
        return {k: _mapped(v, change) for k, v in value.items()}
    return value


@dataclass(frozen=True)
class _Record:
    """What a run of ``forward`` showed: its context, the tensors that this may refer to, and the results."""

    context: _Context
    tensors: list[Tensor]
    results: list[TensorMeta | Constant]
    is_single: bool
    differentiable: Mask


class _FunctionRule(FlatRule):
    """One call of a Function. ``primal`` is its ``forward``; what else the context holds follows the outputs."""

    def __init__(self, cls: Any, args: Sequence[Any]) -> None:
        self.cls, self.args = cls, args
        self.name = cls.__name__
        self.places = [i for i, a in enumerate(args) if isinstance(a, Tensor)]
        self.identity = (cls, *(None if isinstance(a, Tensor) else static_key(a) for a in args))
        self.needs = tuple(isinstance(a, Tensor) and is_differentiable(a.dtype) for a in args)
        self.has_backward = cls.backward is not Function.backward
        self.has_tangent = cls.jvp is not Function.jvp
        self.has_setup = cls.setup_context is not Function.setup_context
        self.is_once = _torch.is_once_differentiable(cls.backward)
        self.metas = [TensorMeta.of(a) if isinstance(a, Tensor) else None for a in args]
        self.reverse_remedy = "define its backward staticmethod"
        self.forward_remedy = "define its jvp staticmethod, or use reverse mode"
        if cls.vmap is not Function.vmap:
            self.vmap = _UserBatching(self)

    # -- forward

    def values(self, tensors: Tensors) -> list[Any]:
        """The arguments with these tensors in them."""
        values = list(self.args)
        for place, tensor in zip(self.places, tensors, strict=True):
            values[place] = tensor
        return values

    def primal(self, *inputs: Tensor) -> Tensors:
        values, context = self.values(inputs), _Context(self.needs)
        if self.has_setup:
            result = self.cls.forward(*values)
            # What it saves is saved anew for the derivatives; here it says which outputs have none.
            self.set_up(context, values, result)
        else:
            result = self.cls.forward(context, *values)
        is_single = not isinstance(result, (tuple, list))
        results = [result] if is_single else list(result)
        outs = [o for o in results if isinstance(o, Tensor)]
        known = {id(t) for t in (*inputs, *outs)}
        others = [] if self.has_setup else [t for t in context.tensors() if id(t) not in known]
        self.learned = _Record(
            context=context,
            tensors=[*inputs, *outs, *others],
            results=[TensorMeta.of(o) if isinstance(o, Tensor) else Constant(o) for o in results],
            is_single=is_single,
            differentiable=tuple(
                is_differentiable(o.dtype) and not any(o is t for t in context.non_differentiable) for o in outs
            ),
        )
        return [*outs, *others]

    @property
    def record(self) -> _Record:
        assert isinstance(self.learned, _Record)
        return self.learned

    def is_differentiable(self, i: int, dtype: torch.dtype) -> bool:
        return i < len(self.record.differentiable) and self.record.differentiable[i]

    def set_up(self, context: _Context, values: Sequence[Any], result: Any) -> None:
        with torch.no_grad():
            self.cls.setup_context(context, tuple(values), result)

    def result(self, outs: Tensors) -> Any:
        """What ``apply`` returns."""
        given = iter(outs)
        results = tuple(o.value if isinstance(o, Constant) else next(given) for o in self.record.results)
        return results[0] if self.record.is_single else results

    def call(self, inputs: Tensors) -> tuple[Tensors, _Context]:
        """The outputs, by a call of the Function itself, and the context that belongs to them."""
        outs = call_custom_rule(self, inputs)
        if not self.has_setup:
            return outs, self.record.context.replaced(self.record.tensors, [*inputs, *outs])
        context = _Context(self.needs)
        self.set_up(context, self.values(inputs), self.result(outs))
        return outs, context

    # -- derivatives

    def forward(self, *inputs: Tensor) -> tuple[Tensors, Tensors]:
        outs, self.saved = self.call(inputs)
        self.residuals = self.saved.tensors()
        return outs, self.residuals

    def backward(self, residuals: Tensors, cotangents: Tensors) -> Sequence[Tensor | None]:
        context = self.saved.replaced(self.residuals, residuals)
        self.knows_absence = not context.materialize_grads
        given, has_cotangent = iter(cotangents), iter(self.record.differentiable)
        cts = [
            None if isinstance(o, Constant) else next(given) if next(has_cotangent) else o for o in self.record.results
        ]
        zeros = lambda meta: meta.zeros() if context.materialize_grads else None
        cts = [zeros(ct) if isinstance(ct, TensorMeta) else ct for ct in cts]
        grads = getattr(self.cls.backward, "__wrapped__", self.cls.backward) if self.is_once else self.cls.backward
        grads = grads(context, *cts)
        grads = grads if isinstance(grads, (tuple, list)) else (grads,)
        grads = [self.gradient(grads, i) for i in self.places if self.needs[i]]
        return _once(self.name, grads) if self.is_once else grads

    def gradient(self, grads: Sequence[Any], i: int) -> Tensor | None:
        """The i-th gradient; as in torch, one that was broadcast is summed up."""
        if len(grads) < len(self.args):
            expected = f"{len(self.args)}, one for each argument of forward"
            remedy = "return None for an argument without gradient"
            raise TreeMismatchError(
                message(
                    self.name,
                    "too few gradients",
                    parameter="backward",
                    expected=expected,
                    got=len(grads),
                    remedy=remedy,
                )
            )
        meta, grad = self.metas[i], grads[i]
        assert meta is not None
        return grad if grad is None or tuple(grad.shape) == meta.shape else grad.sum_to_size(meta.shape)

    def tangent(self, inputs: Tensors, tangents: Tensors) -> tuple[Tensors, Tensors]:
        outs, context = self.call(inputs)
        context.saved_tensors = context.saved_for_forward or context.saved_tensors
        given = iter(tangents)
        result = self.cls.jvp(context, *(next(given) if needed else None for needed in self.needs))
        result = result if isinstance(result, (tuple, list)) else (result,)
        of_tensors = [(o, t) for o, t in zip(self.record.results, result) if isinstance(o, TensorMeta)]
        return outs, [o.zeros() if t is None else t for (o, t), m in zip(of_tensors, self.record.differentiable) if m]


class _UserBatching:
    """The ``vmap`` staticmethod of a Function as the batching rule of a call."""

    def __init__(self, rule: _FunctionRule) -> None:
        self.rule, self.key = rule, rule.identity

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _UserBatching) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __call__(self, operands: Tensors, mapped: Mask, size: int, randomness: str) -> tuple[Tensors, Mask]:
        rule = self.rule
        n = len(rule.places)
        in_dims: list[int | None] = [None] * len(rule.args)
        for place, is_mapped in zip(rule.places, mapped):
            in_dims[place] = 0 if is_mapped else None
        info = _torch.VmapInfo(batch_size=size, randomness=randomness)
        outs, dims = rule.cls.vmap(info, tuple(in_dims), *rule.values(operands[:n]))
        outs, dims = ((outs,), (dims,)) if isinstance(outs, Tensor) else (outs, dims)
        dims = dims if isinstance(dims, (tuple, list)) else [dims] * len(outs)
        pairs = [(o, d) for o, d in zip(outs, dims, strict=True) if isinstance(o, Tensor)]
        moved = [o if d is None else o.movedim(d, 0) for o, d in pairs]
        return moved, tuple(d is not None for _, d in pairs)


class _OnceRule(FlatRule):
    """Gradients of a ``once_differentiable`` backward: they have no derivative."""

    reverse_remedy = forward_remedy = "differentiate once, or write a backward without once_differentiable"

    def __init__(self, name: str) -> None:
        self.name, self.identity = name, (_OnceRule, name)

    def primal(self, *inputs: Tensor) -> Tensors:
        return inputs


def _once(name: str, grads: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    given = iter(call_custom_rule(_OnceRule(f"{name}.backward"), [g for g in grads if g is not None]))
    return [None if g is None else next(given) for g in grads]


def call_autograd_function(cls: Any, args: Sequence[Any], kwargs: dict[str, Any], operator: str | None = None) -> Any:
    """``cls.apply(*args)`` as a node with graphs for its derivatives. ``operator``: whose derivative this is."""
    if cls.setup_context is not Function.setup_context:
        bound = inspect.signature(cls.forward).bind(*args, **kwargs)
        bound.apply_defaults()
        args, kwargs = bound.args, bound.kwargs
    args = [*args, *kwargs.values()]
    rule = _FunctionRule(cls, args)
    if operator is not None:
        rule.name, rule.forward_remedy = operator, "use reverse mode, the only one that torch.library knows"
    outs = call_custom_rule(rule, [args[i] for i in rule.places])
    return rule.result(outs)
