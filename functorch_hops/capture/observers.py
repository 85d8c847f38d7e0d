"""What watches a capture: :class:`Lifting` the calls of torch's functions, :class:`Effects` the ATen operators.

Lifting sees the user's tensors, before functorch unwraps anything. A tensor that is not of this capture (closed-over, a
parameter, a value of an enclosing capture, a wrapper of an enclosing transform) is lifted: it becomes an operand, and a
fresh fake of its logical shape stands for it inside. Effects works below every transform that the body itself applies:
writes to inputs are refused, and what ran without gradients is detached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .. import _torch
from .functional import (
    REPLACED,
    depends_on_input,
    laid_out_zeros,
    running_statistics,
    symbol_as_tensor,
    without_statistics,
)
from .refusals import READS, backward_inside, generator_inside, unreadable, write_past_history
from .subgraph import TensorMeta, is_differentiable, untracked
from .zeros import Zeros

if TYPE_CHECKING:
    from .speculate import Capture

__all__ = ["Effects", "Lifting"]

_SHOWN = (Tensor.__repr__, Tensor.__format__)
"""What makes text of a tensor, if it is given no more than the tensor."""
_SIZES = (torch.ops.aten.size.default, torch.ops.aten.sym_size.default, torch.ops.aten.sym_size.int)
"""Asked of what a transform wraps, if a size is a symbol: the wrapper itself is no value of the capture."""
_DETACH = (Tensor.detach_, torch.detach_)
_BACKWARD: dict[Any, str] = {
    torch.autograd.grad: "torch.autograd.grad()",
    torch.autograd.backward: "torch.autograd.backward()",
    Tensor.backward: ".backward()",
}


def _is_unknown(x: Any) -> bool:
    """Whether the values of a traced tensor, or of those in a list of numbers, are unknown."""
    if isinstance(x, (list, tuple)):
        return any(map(_is_unknown, x))
    return isinstance(x, Tensor) and _torch.known_constant(_torch.base_tensor(x)) is None


def _has_history(outputs: Any) -> bool:
    """Whether something to be differentiated can be: where torch.func differentiates, that is so."""
    with _torch.without_torch_function():
        return any(t.requires_grad for t in ([outputs] if isinstance(outputs, Tensor) else outputs))


def _shown(t: Tensor) -> str:
    with _torch.without_torch_function():
        return f"Traced({TensorMeta.of(t)})"


class Lifting(TorchFunctionMode):
    def __init__(self, capture: Capture) -> None:
        super().__init__()
        self.capture = capture

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        capture = self.capture
        if func in _SHOWN and not any(args[1:]):
            return _shown(args[0])
        if func in _BACKWARD and not _has_history(args[0]):
            raise backward_inside(capture.caller, _BACKWARD[func])
        args = tuple(capture.lift_tree(a) for a in args)
        kwargs = {k: capture.lift_tree(v) for k, v in kwargs.items()} if kwargs else {}
        if kwargs.get("generator") is not None:
            raise generator_inside(capture.caller)
        if func in READS and _is_unknown(args[0]):
            raise unreadable(capture.caller, *READS[func])
        capture.in_transform = _torch.top_interpreter() is not None
        try:
            return self._call(func, args, kwargs)
        except RuntimeError as error:
            values = [*args, *kwargs.values()]
            if _torch.is_captured_write_error(error) and capture.lifted_among(values):
                raise capture.refuse_write(_torch.function_name(func), values) from error
            raise

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        rows, result = self.capture.rows, None
        if func is _torch.MAKE_DUAL and self.capture.session.has_open_sizes:
            return _torch.make_dual(*args)
        if func is Tensor.__getitem__:
            return rows.getitem(*args)
        if func is Tensor.__setitem__:
            rows.setitem(*args)
        elif _torch.in_gradient_level() and (operator := _torch.operator_with_rule(func, args, kwargs)) is not None:
            from ..ops.custom_rule.library_operator import call_library_operator

            result = call_library_operator(operator, args, kwargs)
        else:
            result = func(*args, **kwargs)
        if func in _DETACH:
            self._detach(args[0])
        rows.write_through()
        return result

    def _detach(self, x: Tensor) -> None:
        """``x.detach_()`` never arrives at any mode: from here on ``x`` is what ``detach`` makes of it. A level that
        differentiates has its own say.
        """
        capture = self.capture
        while _torch.is_wrapped(x):
            if not _torch.is_batched_wrapper(x):
                return
            x = _torch.unwrap_once(x)
        with _torch.without_torch_function(), _torch.below_transforms():
            capture.check_write(torch.ops.aten.detach_.default, x)
            proxy = capture.tracer.create_proxy(
                "call_function", torch.ops.aten.detach.default, (capture.proxy_of(x),), {}
            )
            _torch.track_tensor_tree(x, proxy, constant=None, tracer=capture.tracer)


class Effects(_torch.TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self, capture: Capture) -> None:
        super().__init__()
        self.capture = capture
        self.zeros = Zeros()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.capture.is_quiet:
            return func(*args, **kwargs)
        if func in _SIZES:
            args = (_torch.without_gradient_levels(args[0]), *args[1:])
        detached = not torch.is_grad_enabled()
        out = self.zeros.result(func, args, kwargs)
        if out is None and self.capture.session.has_open_sizes:
            out = self._with_open_sizes(func, args, kwargs)
        if out is not None:
            return self._untracked(out) if detached else out
        pure = without_statistics(func, args)
        if pure is not None:
            return self._batch_norm(func, pure, args, detached)
        if isinstance(func, _torch.OpOverload) and func._schema.is_mutable:
            self._check_writes(func, args, kwargs, detached)
            if detached:
                args, kwargs = self._without_history(func, args, kwargs)
            return func(*args, **kwargs)
        out = REPLACED.get(func, func)(*args, **kwargs)
        return self._untracked(out) if detached else out

    def _with_open_sizes(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """The result of a call whose kernel (torch 2.13) knows no symbols."""
        for kernel in (symbol_as_tensor, laid_out_zeros):
            out = kernel(func, args, kwargs)
            if out is not None:
                return out
        return None

    def _untracked(self, out: Any) -> Any:
        """What ran without gradients, as a value that reverse mode does not look behind."""
        if isinstance(out, (tuple, list)):
            return type(out)(self._untracked(o) for o in out)
        if not isinstance(out, Tensor) or not is_differentiable(out.dtype):
            return out
        tracer = self.capture.tracer
        target: Any = torch.ops.aten.detach.default if _torch.in_no_mode_of_gradients() else untracked
        proxy = tracer.create_proxy("call_function", target, (self.capture.proxy_of(out),), {})
        with _torch.disable_proxy_modes_tracing():
            alias = out.detach()
        return _torch.track_tensor_tree(alias, proxy, constant=None, tracer=tracer)

    def _batch_norm(self, func: _torch.OpOverload, pure: Any, args: Any, detached: bool) -> Any:
        """The normalisation without running statistics, and the update of these as if the user had written it."""
        x, weight, bias, mean, var, training, momentum, eps = args
        out = pure(x, weight, bias, None, None, training, momentum, eps)
        new = running_statistics(x, out[1], out[2], mean, var, momentum, eps)
        for target, value in zip((mean, var), new):
            self.capture.check_write(func, target)
            torch.ops.aten.copy_.default(target, self._untracked(value))
        return self._untracked(out) if detached else out

    def _without_history(self, func: _torch.OpOverload, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """What is written under no_grad carries no gradient into the target."""
        names = [a.name for a in func._schema.arguments if a.alias_info is None]
        read = {name: self._untracked(kwargs[name]) for name in names if name in kwargs}
        places = {a.name: i for i, a in enumerate(func._schema.arguments)}
        new = list(args)
        for name in names:
            if places[name] < len(new) and isinstance(new[places[name]], (Tensor, list)):
                new[places[name]] = self._untracked(new[places[name]])
        return tuple(new), {**kwargs, **read}

    def _check_writes(self, func: _torch.OpOverload, args: Any, kwargs: Any, detached: bool) -> None:
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            for target in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(target, Tensor):
                    self.capture.check_write(func, target)
                    self.capture.rows.note_write(target)
                    if detached and is_differentiable(target.dtype):
                        self._check_untracked_write(func, target)

    def _check_untracked_write(self, func: _torch.OpOverload, target: Tensor) -> None:
        """A write under no_grad keeps the target's gradient history, which a functional graph cannot say."""
        slot = _torch.get_proxy_slot(target, self.capture.tracer, None)
        if slot is not None and depends_on_input(slot.proxy.node):
            raise write_past_history(self.capture.caller, "under no_grad on", func, TensorMeta.of(target))
