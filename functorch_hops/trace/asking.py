"""What a captured function asks of a tensor besides its values, and what it does to a tensor beside operators.

Each getter, setter or method of ``torch.Tensor`` that would reach the fake alone stands in one of the tables here; the
function mode of the capture (``lifting``) looks them up. See NOTE [A traced value answers as the real one].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _torch
from ..errors import CaptureError
from ..ir.meta import TensorMeta, is_differentiable
from ..ir.nodes import rebound
from .detached import depends_on_input, memory_chains
from .history import Question, layout_unknown
from .hooks import handlers
from .refusals import refused_of_tensor, write_to_view
from .regrouping import note_regrouped

__all__ = ["OF_THE_TENSOR"]


def _requires_grad(capture: Any, t: Tensor) -> bool:
    return capture.history.answer(Question.REQUIRES_GRAD, t)


def _is_leaf(capture: Any, t: Tensor) -> bool:
    return capture.history.answer(Question.IS_LEAF, t)


def _grad_fn(capture: Any, t: Tensor) -> Any:
    """None, or what autograd made inside of the capture; there is no other node of autograd yet."""
    with _torch.without_torch_function():
        own = t.grad_fn
    if own is None and _requires_grad(capture, t) and not _is_leaf(capture, t):
        raise refused_of_tensor(
            capture.context, "grad_fn", "ask requires_grad or is_leaf, which a traced value knows", TensorMeta.of(t)
        )
    return own


def _set_requires_grad(capture: Any, t: Tensor, value: bool = True) -> Any:
    """Of a value that is made inside, it begins a history of its own; of one from outside it must be so already."""
    if value and _torch.is_wrapped(t):
        capture.note_differentiated(t)  # torch's transforms call it of what they differentiate by
    if _is_from_outside(capture, t) and _requires_grad(capture, t) is not value:
        raise refused_of_tensor(
            capture.context,
            f"requires_grad_({value})" if not value else "requires_grad_()",
            "call it on value.detach() or value.clone(), or before the call",
            TensorMeta.of(t),
        )
    if value and (_is_from_outside(capture, t) or (not _torch.is_wrapped(t) and _requires_grad(capture, t))):
        return t
    if not value and not _is_from_outside(capture, t) and _requires_grad(capture, t):
        raise refused_of_tensor(capture.context, "requires_grad_(False)", "use value.detach()", TensorMeta.of(t))
    return t.requires_grad_(value)


def _set_data(capture: Any, t: Tensor, value: Tensor) -> None:
    """``t.data = value``: from now on ``t`` has the memory of ``value``, and the history that it had."""
    if _torch.is_wrapped(t) or _torch.is_wrapped(value):
        t.data = value
        return
    if _is_from_outside(capture, t):
        raise refused_of_tensor(
            capture.context, "`.data = ...`", "return the new value, and assign it after the call", TensorMeta.of(t)
        )
    has_history = is_differentiable(t.dtype) and depends_on_input(capture.node_of(t))
    if has_history and TensorMeta.of(value) != TensorMeta.of(t):
        remedy = "assign a value of the same shape and dtype, or bind the name anew"
        raise refused_of_tensor(capture.context, "`.data = ...`", remedy, TensorMeta.of(t))
    with torch.no_grad():
        new = value.detach()
    proxy = capture.proxy_of(new)
    if has_history:
        proxy = capture.tracer.create_proxy("call_function", rebound, (proxy, capture.proxy_of(t)), {})
    with _torch.without_torch_function(), _torch.disable_proxy_modes_tracing():
        t.data = new
        _torch.track_tensor_tree(t, proxy, constant=None, tracer=capture.tracer)


def _register_hook(capture: Any, t: Tensor, hook: Callable[[Tensor], Tensor | None]) -> Any:
    """A function of the cotangent, as a node whose reverse rule it is."""
    with _torch.without_torch_function():
        has_own = t.requires_grad
    if has_own or not _requires_grad(capture, t):
        return t.register_hook(hook)  # in a transform inside the capture; or torch's error
    if _is_from_outside(capture, t):
        remedy = "register it outside, or on a value that is made here: x = x.clone()"
        raise refused_of_tensor(capture.context, "register_hook of an input", remedy, TensorMeta.of(t))
    node = capture.node_of(t)
    earlier = list(node.users)
    if earlier or len(memory_chains(node.graph)[node]) > 1:
        remedy = "register it where the value is made, before it is used: x = x.clone(); x.register_hook(...)"
        raise refused_of_tensor(capture.context, "register_hook of a view or of a used value", remedy, TensorMeta.of(t))
    capture.rebind(t, handlers.function(_hooked(hook), (t,), {}))
    return _Handle(capture.context)


def _hooked(hook: Callable[[Tensor], Tensor | None]) -> type:
    """The identity, whose cotangent goes through a hook."""

    class Hooked(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, cotangent: Tensor) -> Tensor:
            replaced = hook(cotangent)
            return cotangent if replaced is None else replaced

        @staticmethod
        def jvp(ctx: Any, tangent: Tensor) -> Tensor:
            return tangent.clone()

    return Hooked


class _Handle:
    """Of a hook that is a part of a graph."""

    def __init__(self, context: Any) -> None:
        self.context = context

    def remove(self) -> None:
        raise refused_of_tensor(self.context, "removing a hook", "decide before it is registered", None)


def _stride(capture: Any, t: Tensor, dim: int | None = None) -> Any:
    stride = tuple(capture.history.answer(Question.STRIDE, t))
    return stride if dim is None else stride[dim]


def _storage_offset(capture: Any, t: Tensor) -> Any:
    return capture.history.answer(Question.OFFSET, t)


def _is_contiguous(capture: Any, t: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> bool:
    if capture.history.knows_layout(t):
        return t.is_contiguous(memory_format=memory_format)
    if memory_format is not torch.contiguous_format:
        raise layout_unknown(capture.context)
    expected = 1
    for size, stride in zip(reversed(t.shape), reversed(_stride(capture, t))):
        if size != 1 and stride != expected:
            return t.numel() == 0
        expected *= size
    return True


def _is_conj(capture: Any, t: Tensor) -> bool:
    return bool(capture.history.answer(Question.IS_CONJ, t))


def _is_neg(capture: Any, t: Tensor) -> bool:
    return bool(capture.history.answer(Question.IS_NEG, t))


def _resolve_conj(capture: Any, t: Tensor) -> Tensor:
    return t.clone() if _is_from_outside(capture, t) and _is_conj(capture, t) else t.resolve_conj()


def _resolve_neg(capture: Any, t: Tensor) -> Tensor:
    return t.clone() if _is_from_outside(capture, t) and _is_neg(capture, t) else t.resolve_neg()


def _of_values_made_inside(what: str, remedy: str, ask: Callable[..., Any]) -> Callable[..., Any]:
    """What is known of values that the function made, and of no input, nor of a view of one."""

    def answered(capture: Any, t: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not _torch.is_wrapped(t) and capture.is_from_outside(_torch.storage_key(t)):
            raise refused_of_tensor(capture.context, f"{what} of an input", remedy, TensorMeta.of(t))
        return ask(t, *args, **kwargs)

    return answered


def _dim_order(capture: Any, t: Tensor, *args: Any, **kwargs: Any) -> Any:
    if not capture.history.knows_layout(t):
        strides = _stride(capture, t)
        with _torch.disable_proxy_modes_tracing():
            t = torch.empty_strided(t.shape, strides, device="meta")
    return t.dim_order(*args, **kwargs)


def _contiguous(capture: Any, t: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """Of a value that is contiguous in the graph alone, a copy: what reads its layout, or writes to it, finds that."""
    if memory_format is torch.contiguous_format and not capture.history.knows_layout(t, is_assumed=False):
        return t.clone(memory_format=memory_format)
    result = t.contiguous(memory_format=memory_format)
    capture.take_as_contiguous(result)
    return result


def _view(capture: Any, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Where the layout is not that of the graph, the view may be there in eager and not here: a copy is as good, as
    long as nobody writes to either. So it is where the lanes of a vmap lie in memory as some batching rule left them.
    A view as another dtype has no such copy: what torch says of it stands.
    """
    try:
        result = t.view(*args, **kwargs)
        note_regrouped(capture, t, result)
        return result
    except (RuntimeError, ValueError):
        is_of_dtype = any(isinstance(given, torch.dtype) for given in (*args, *kwargs.values()))
        if is_of_dtype or (capture.history.knows_layout(t) and not _torch.is_batched(t)):
            raise
    copy = t.reshape(*args, **kwargs)
    for value in (t, copy):
        capture.protect(value, write_to_view)
    return copy


def _as_strided(capture: Any, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Places in the memory of ``t``, which must be that of the graph."""
    if not capture.history.knows_layout(t):
        raise layout_unknown(capture.context)
    return t.as_strided(*args, **kwargs)


def _deepcopy(capture: Any, t: Tensor, memo: dict[Any, Any]) -> Tensor:
    """What a leaf has: its values, and a history that begins. Elements that share memory would share it as copies."""
    if id(t) not in memo:
        if not _is_leaf(capture, t):
            raise refused_of_tensor(capture.context, "deepcopy of a computed value", "use clone()", TensorMeta.of(t))
        with _torch.without_torch_function():
            memory = "memory of a traced value", _torch.storage_key(_torch.base_tensor(t))
            is_expanded = any(stride == 0 and size != 1 for size, stride in zip(t.shape, t.stride()))
        if memory in memo or is_expanded:
            what = "deepcopy of values that share memory, or of an expanded one,"
            raise refused_of_tensor(capture.context, what, "use clone() of each", TensorMeta.of(t))
        memo[memory] = t
        made = t.detach().clone()
        memo[id(t)] = made.requires_grad_() if _requires_grad(capture, t) else made  # which transforms refuse
    copy: Tensor = memo[id(t)]
    return copy


def _refused(what: str, remedy: str) -> Callable[..., Any]:
    def refuse(capture: Any, t: Tensor, *_: Any) -> CaptureError:
        raise refused_of_tensor(capture.context, what, remedy, TensorMeta.of(t))

    return refuse


def _is_from_outside(capture: Any, t: Tensor) -> bool:
    return not _torch.is_wrapped(t) and capture.owns(t) and capture.node_of(t).op == "placeholder"


_GRADIENTS = (
    "take derivatives with fh.grad or fh.value_and_grad, and update parameters outside of the captured function"
)

_OUTSIDE = "ask the tensor before the call, and pass what it says"

_MEMORY = _refused("the memory of a tensor (untyped_storage() or storage())", _OUTSIDE)
"""A fake has none: an object that stood for it would answer with the size, the place and the device of another, and
forget what is written to it.
"""
_INFERENCE = _refused("is_inference()", "ask torch.is_inference_mode_enabled()")

_Tensor: Any = Tensor

OF_THE_TENSOR: dict[Any, Callable[..., Any]] = {
    _Tensor.requires_grad.__get__: _requires_grad,
    _Tensor.requires_grad.__set__: _set_requires_grad,
    Tensor.requires_grad_: _set_requires_grad,
    _Tensor.is_leaf.__get__: _is_leaf,
    _Tensor.grad_fn.__get__: _grad_fn,
    _Tensor.data.__set__: _set_data,
    Tensor.register_hook: _register_hook,
    Tensor.stride: _stride,
    Tensor.storage_offset: _storage_offset,
    Tensor.is_contiguous: _is_contiguous,
    Tensor.dim_order: _dim_order,
    Tensor.is_conj: _is_conj,
    torch.is_conj: _is_conj,
    Tensor.is_neg: _is_neg,
    torch.is_neg: _is_neg,
    Tensor.resolve_conj: _resolve_conj,
    torch.resolve_conj: _resolve_conj,
    Tensor.resolve_neg: _resolve_neg,
    torch.resolve_neg: _resolve_neg,
    Tensor._is_view: _of_values_made_inside("_is_view()", _OUTSIDE, Tensor._is_view),
    _Tensor._base.__get__: _of_values_made_inside("._base", _OUTSIDE, _Tensor._base.__get__),
    _Tensor._version.__get__: _of_values_made_inside("._version", _OUTSIDE, _Tensor._version.__get__),
    _Tensor.output_nr.__get__: _of_values_made_inside(".output_nr", _OUTSIDE, _Tensor.output_nr.__get__),
    Tensor.is_shared: _of_values_made_inside("is_shared()", _OUTSIDE, Tensor.is_shared),
    Tensor.is_inference: _INFERENCE,
    torch.is_inference: _INFERENCE,
    Tensor.untyped_storage: _MEMORY,
    Tensor.storage: _MEMORY,
    Tensor._typed_storage: _MEMORY,
    Tensor.contiguous: _contiguous,
    Tensor.view: _view,
    Tensor.as_strided: _as_strided,
    torch.as_strided: _as_strided,
    Tensor.__deepcopy__: _deepcopy,
    Tensor.__reduce_ex__: _refused("copy.copy() of a tensor, or its pickling,", "use clone()"),
    Tensor.resize_: _refused("resize_()", "make a tensor of the new size"),
    Tensor.resize_as_: _refused("resize_as_()", "make a tensor of the new size"),
    Tensor.is_set_to: _refused("is_set_to()", "ask `x is y`, which is known of arguments"),
    _Tensor.grad.__get__: _refused(".grad", _GRADIENTS),
    _Tensor.grad.__set__: _refused("`.grad = ...`", _GRADIENTS),
    _Tensor.grad.__delete__: _refused("del .grad", _GRADIENTS),
    _Tensor.retains_grad.__get__: _refused(".retains_grad", "ask requires_grad or is_leaf, which a traced value knows"),
    Tensor.retain_grad: _refused("retain_grad()", "return the value, and differentiate by it outside"),
    Tensor.register_post_accumulate_grad_hook: _refused("register_post_accumulate_grad_hook()", _GRADIENTS),
}
"""``handler(capture, tensor, *arguments)`` for what torch would answer or do for the fake."""
