"""The function mode of a capture, which sees the user's tensors before functorch unwraps anything.

A tensor that is not of this capture (closed-over, a parameter, a value of an enclosing capture, a wrapper of an
enclosing transform) is lifted: it becomes an operand, and a fresh fake of its logical shape stands for it inside.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .. import _torch
from ..ir.meta import TensorMeta
from .arrays import shared_memory
from .asking import OF_THE_TENSOR
from .capture import Capture
from .hooks import handlers
from .indexing import NARROW
from .refusals import (
    READS,
    backward_inside,
    check_collective,
    generator_inside,
    refused_of_tensor,
    unreadable,
    warn_of_saved_tensor_hooks,
)
from .regrouping import note_regrouped
from .replaced import replaced
from .sparse import MAKES_SPARSE, call_of_sparse, making_sparse, sparse_among

__all__ = ["Lifting"]

_AS_TENSOR = (torch.as_tensor, torch.asarray)
"""What reads numbers in a list, and gives a tensor as it is."""
_COPIES = (torch.tensor, Tensor.new_tensor)
"""What makes a tensor with memory of its own, whatever it is given."""
_SHOWN = (Tensor.__repr__, Tensor.__format__)
"""What makes text of a tensor, if it is given no more than the tensor."""
_DETACH = (Tensor.detach_, torch.detach_)
_DETACHED = (
    Tensor.detach,
    torch.detach,
    torch.ops.aten.detach,
    torch.ops.aten.detach.default,
    Tensor.data.__get__,  # type: ignore[attr-defined]
)

_RAVEL = (Tensor.ravel, torch.ravel)
"""What gives a view of a contiguous tensor, and a copy of another."""

_REGROUPING = (
    *_RAVEL,
    *(Tensor.reshape, torch.reshape, Tensor.flatten, torch.flatten, Tensor.reshape_as, Tensor.view_as),
)
"""What may give a view of a tensor or a copy, as its layout allows."""

_OF_AN_OPERAND = {*READS, *_COPIES, *OF_THE_TENSOR, *NARROW, *_DETACH, *_REGROUPING}
"""Of which the first argument is looked at."""
_OPERANDS = ("input", "data", "obj")
"""Names that torch gives to such an argument."""

_BACKWARD: dict[Any, str] = {
    torch.autograd.backward: "torch.autograd.backward()",
    Tensor.backward: ".backward()",
}


@functools.cache
def _detaches(func: Any) -> bool:
    """Whether a function of torch is ``detach``, or calls it in Python.

    Autograd calls it as well, without a function that the mode sees: of what an operator saves of its own result.
    """
    code = getattr(func, "__code__", None)
    return func in _DETACHED or (code is not None and not {"detach", "detach_", "data"}.isdisjoint(code.co_names))


def _is_unknown(x: Any) -> bool:
    """Whether the values of a traced tensor, or of those in a list of numbers, are unknown."""
    if isinstance(x, (list, tuple)):
        return any(map(_is_unknown, x))
    return isinstance(x, Tensor) and _torch.known_constant(_torch.base_tensor(x)) is None


def _is_copied(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call makes a tensor with memory of its own, whatever it is given or, as torch shows, of this array."""
    if func not in _AS_TENSOR or not hasattr(args[0], "__array_interface__"):
        return func in _COPIES
    with _torch.suspended(keep_autocast=False):
        return shared_memory(func(*args, **kwargs)) is None


def _tensors(given: Any) -> list[Tensor]:
    return [given] if isinstance(given, Tensor) else [t for t in given if isinstance(t, Tensor)]


def _shown(t: Tensor) -> str:
    with _torch.without_torch_function():
        return f"Traced({TensorMeta.of(t)})"


class Lifting(_torch.ForwardRules):
    def __init__(self, capture: Capture) -> None:
        super().__init__()
        self.capture = capture

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            result = self._result(func, types, args, kwargs)
        except BaseException as error:
            self.capture.note_refusal(error)
            raise
        if _torch.top_interpreter() is not None:
            self.capture.note_wrapped(result)
        return result

    def _result(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        for cls in types:
            if not issubclass(cls, Tensor):
                with self:  # what an object of the user's calls is seen too
                    result = cls.__torch_function__(func, types, args, kwargs or {})
                if result is not NotImplemented:
                    return result
        _torch.raise_held_interrupts()
        capture = self.capture
        if not args and func in _OF_AN_OPERAND:
            name = next(name for name in kwargs if name in _OPERANDS)
            args, kwargs = (kwargs[name],), {k: v for k, v in kwargs.items() if k != name}
        if (sparse := sparse_among((*args, *(kwargs or {}).values()))) is not None:
            return call_of_sparse(capture, func, sparse, args, kwargs or {})
        if func in MAKES_SPARSE:
            raise making_sparse(capture.context)
        if func in _SHOWN and not any(args[1:]):
            return _shown(args[0])
        if func in _BACKWARD:
            raise backward_inside(capture.context, _BACKWARD[func])
        if func is torch.autograd.grad:
            if not capture.history.ask(*map(_tensors, args[:2])):
                raise backward_inside(capture.context, "torch.autograd.grad()")
            if not (kwargs and (kwargs.get("create_graph") or kwargs.get("retain_graph"))):
                for t in _tensors(args[1]):
                    capture.note_differentiated(capture.lift(t))
        if func in OF_THE_TENSOR:
            given = (a if type(a) is dict else capture.lift_tree(a) for a in args)  # deepcopy writes to a dict
            return OF_THE_TENSOR[func](capture, *given, **kwargs or {})
        args = tuple(capture.lift_tree(a) for a in args)
        kwargs = {k: capture.lift_tree(v) for k, v in kwargs.items()} if kwargs else {}
        if kwargs.get("generator") is not None:
            raise generator_inside(capture.context)
        if _torch.is_operator_of_torch(func) and func.name() in handlers.control_flow:
            with self:
                return handlers.control_flow[func.name()](*args, **kwargs)
        if func in handlers.layers:
            with self:
                result = handlers.layers[func](*args, **kwargs)
            if result is not NotImplemented:
                return result
        is_read = func in READS and not (func in _AS_TENSOR and isinstance(args[0], Tensor))
        if is_read and _is_unknown(args[0]):
            raise unreadable(capture.context, *READS[func], buffer=capture.path_of_buffer(args[0]))
        check_collective(capture.context, func, args)
        if _torch.has_saved_tensor_hooks():
            warn_of_saved_tensor_hooks(capture.context)
        capture.in_transform = _torch.top_interpreter() is not None
        form = _torch.right_form(func)
        capture.is_detaching = form is not func or _detaches(func)
        capture.is_copying = _is_copied(func, args, kwargs)
        last = next(iter(reversed(capture.graph.nodes)), None)
        try:
            return self._call(form, args, kwargs)
        except RuntimeError as error:
            # What vmap refuses to write to is the first operand; a normalisation writes to others.
            values = args[:1] if _torch.refused_write(error) else [*args, *kwargs.values()]
            if _torch.is_captured_write_error(error) and capture.lifted_among(values):
                raise capture.refuse_write(_torch.function_name(func), values) from error
            if _torch.is_refused_by_vmap(error):
                capture.erase_after(last)
                return handlers.on_lanes(func, args, kwargs, error)
            raise
        finally:
            capture.is_detaching = capture.is_copying = False

    def _check_level(self, primal: Tensor) -> None:
        """A graph holds values: a tangent for a level of plain forward mode around it is lost."""
        capture = self.capture
        if capture.is_of_user and capture.is_in_dual_level and not _torch.in_forward_level():
            remedy = "make the dual number outside, and pass it; for torch.func.linearize call fh.linearize"
            raise refused_of_tensor(
                capture.context, "make_dual() for a level that was entered outside", remedy, TensorMeta.of(primal)
            )

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        rows, result = self.capture.rows, None
        if func is _torch.MAKE_DUAL:
            self._check_level(args[0])
            if self.capture.session.has_open_sizes:
                return _torch.make_dual(*args)
        if func is Tensor.__getitem__:
            return rows.getitem(*args)
        if func in NARROW and (part := rows.narrow(*args, **kwargs)) is not None:
            return part
        if func is Tensor.__setitem__:
            rows.setitem(*args)
        elif (result := replaced(func, args, kwargs)) is not NotImplemented:
            pass
        elif _torch.in_gradient_level() and (operator := _torch.operator_with_rule(func, args, kwargs)) is not None:
            result = handlers.operator(operator, args, kwargs)
        elif self.capture.session.has_open_sizes:
            with _torch.kernels_of_open_sizes():
                result = func(*args, **kwargs)
        else:
            result = func(*args, **kwargs)
        if func in _DETACH:
            self._detach(args[0])
        if func in _RAVEL or "memory_format" in kwargs:
            self.capture.take_as_contiguous(result)
        if func in _REGROUPING:
            note_regrouped(self.capture, args[0], result)
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
