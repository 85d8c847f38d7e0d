"""Calls of operators recorded as torch recorded calls like them.

NOTE [Calls seen before] torch's proxy mode and fake mode take half a millisecond for an operator. What comes of it is
a node and a fake tensor, whose metadata follow from the operator, its numbers, the metadata of its operands and the
default dtype. So the first such call of a process goes through the modes. Then a result is made from its metadata
alone and compared with torch's; if they agree in all that a tensor shows, the metadata are kept, and the next call like
it makes node and result from these. Through the modes each time goes what may come out otherwise, or does more: what
does not give just one tensor or writes to an operand, open sizes, values that tracing knows, operators outside of ATen
or made of others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import PythonKeyTracer, _ProxyTensor, track_tensor_tree
from torch.fx.traceback import has_preserved_node_meta

from .parts import new_proxy_mode

__all__ = ["CallRecorder"]

_MAX_RESULTS = 20_000
_KEYS = torch._C._TorchDispatchModeKey
_PLAIN = frozenset({int, float, bool, complex, str, type(None), torch.dtype, torch.layout, torch.memory_format})


class _Result(NamedTuple):
    """What a call gives: the metadata of its node and of its result, and whether that is a view of the operand."""

    tensor_meta: Any
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device
    is_view: bool


_results: dict[Any, _Result | None] = {}
"""By what is equal in calls that are alike; None for what has to go through the modes."""


class _KeyedCall:
    """A call as a key and as arguments of a node. ``is_known``: the key holds all that the result follows from."""

    def __init__(self, recorder: CallRecorder, func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self.recorder = recorder
        self.tensors: list[FakeTensor] = []
        self.is_known = True
        of_args, self.args = self._read(args)
        of_kwargs, named = self._read(kwargs.values()) if kwargs else ((), ())
        self.kwargs = dict(zip(kwargs, named))
        defaults = torch.get_default_dtype(), torch._C._get_default_device()
        self.key = (func, *defaults, of_args, tuple(kwargs), of_kwargs)

    def _read(self, values: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        keys, given = [], []
        for value in values:
            kind = type(value)
            key: Any
            if kind is FakeTensor:
                key, value = self._read_tensor(value)
            elif kind in _PLAIN:
                key = kind, value
            elif kind is list or kind is tuple:
                key, value = self._read(value)
                key, value = (kind, key), kind(value)
            elif kind is torch.device and _has_index(value):
                key = value
            else:
                self.is_known = False
                key = None
            keys.append(key)
            given.append(value)
        return tuple(keys), tuple(given)

    def _read_tensor(self, t: FakeTensor) -> tuple[Any, Any]:
        value = self.recorder.tracker.get(t)
        if (
            value is None
            or value.constant is not None
            or t.constant is not None
            or t.fake_mode is not self.recorder.fakes
            or not _is_ordinary(t)
        ):
            self.is_known = False
            return None, None
        self.tensors.append(t)
        return _form(t), value.proxy.node


def _has_index(device: torch.device) -> bool:
    """Whether it is the same device wherever it is named."""
    return device.type == "cpu" or device.index is not None


def _is_ordinary(t: FakeTensor) -> bool:
    """Whether it is dense, and how it lies in its memory is known in numbers."""
    if t.layout is not torch.strided or t._has_symbolic_sizes_strides or t.is_quantized:
        return False
    return type(t.untyped_storage().nbytes()) is int  # not so for a part of what has open sizes


def _form(t: FakeTensor) -> Any:
    """What a tensor shows besides its values."""
    keys, memory = torch._C._dispatch_keys(t).raw_repr(), t.untyped_storage()
    return t.shape, t.stride(), t.storage_offset(), t.dtype, t.fake_device, keys, memory.nbytes()


class CallRecorder:
    """torch's proxy mode for one capture, and a shorter way to record what it would."""

    def __init__(self, tracer: PythonKeyTracer, fakes: FakeTensorMode) -> None:
        self.mode = new_proxy_mode(tracer)
        self.tracer = tracer
        self.fakes = fakes
        self.tracker = tracer.tensor_tracker
        self._attributes: dict[torch.device, dict[str, Any]] = {}
        unsafe = fakes._allow_unsafe_data_ptr_access
        c = torch._C
        self._guard = c._set_warn_deprecated_on_mutable_data_ptr if unsafe else c._set_throw_on_mutable_data_ptr

    def call(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """``func(*args, **kwargs)`` in a dispatch mode above the proxy mode."""
        if not _has_one_result(func) or not self._is_recording():
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            call = _KeyedCall(self, func, args, kwargs)
            result = _results.get(call.key, _UNSEEN) if call.is_known else None
            if result is not None and result is not _UNSEEN:
                return self._made(func, call, result)
            last = next(iter(reversed(self.tracer.graph.nodes)), None)
        out = func(*args, **kwargs)
        if result is _UNSEEN:
            with torch._C.DisableTorchFunction():
                _keep(call.key, self._result_of_call(func, call, out, last))
        return out

    def stand_for(
        self, node: fx.Node, kind: tuple[Any, torch.dtype, torch.device], make: Callable[[], Tensor]
    ) -> Tensor:
        """The fake that stands for the value of ``node``; ``make()`` makes one of this shape, dtype and device."""
        shape, _, device = kind
        is_known = all(type(size) is int for size in shape) and _has_index(device)
        key = ("value", *kind) if is_known else None
        result = _results.get(key, _UNSEEN) if is_known else None
        if result is not None and result is not _UNSEEN:
            return self._tracked(node, result, [])
        fake = make()
        track_tensor_tree(fake, fx.Proxy(node, self.tracer), constant=None, tracer=self.tracer)
        if result is _UNSEEN:
            _keep(key, self._result_of(node, fake, []))
        return fake

    def _is_recording(self) -> bool:
        get_mode = torch._C._get_dispatch_mode
        if get_mode(_KEYS.PROXY) is not self.mode or get_mode(_KEYS.FAKE) is not self.fakes:
            return False
        return self.fakes.cache_enabled and not self.mode.emulate_precision_casts and not has_preserved_node_meta()

    def _made(self, func: OpOverload, call: _KeyedCall, result: _Result) -> Tensor:
        graph = self.tracer.graph
        name = graph._target_to_str(func.overloadpacket.__name__)
        node = graph.create_node("call_function", func, (), {}, name)
        node.args, node.kwargs = call.args, call.kwargs  # afterwards: fx looks through arguments for symbols
        return self._tracked(node, result, call.tensors)

    def _tracked(self, node: fx.Node, result: _Result, operands: Sequence[FakeTensor]) -> Tensor:
        out, node.meta["val"] = self._fakes_of(result, operands)
        node.meta["tensor_meta"] = result.tensor_meta
        self.tracker[out] = _ProxyTensor(fx.Proxy(node, self.tracer), None)
        return out

    def _fakes_of(self, result: _Result, operands: Sequence[FakeTensor]) -> tuple[FakeTensor, FakeTensor]:
        """The result, and an alias for the node: the user may change the metadata of the other, or let go of it."""
        with torch._C._DisableTorchDispatch():
            memory = torch.empty_strided(result.shape, result.stride, dtype=result.dtype, device="meta")
            if result.is_view:
                memory.set_(operands[0].untyped_storage(), result.offset, result.shape, result.stride)
        return self._fake(memory, result.device), self._fake(memory, result.device)

    def _fake(self, memory: Tensor, device: torch.device) -> FakeTensor:
        """``FakeTensor(mode, memory, device)``, whose checks take longer than all else."""
        attributes = self._attributes.get(device)
        if attributes is None:
            attributes = self._attributes[device] = dict(vars(FakeTensor(self.fakes, memory, device)))
        fake = Tensor._make_subclass(FakeTensor, memory, False, dispatch_device=True, device_for_backend_keys=device)
        self._guard(fake)
        vars(fake).update(attributes)
        return fake

    def _result_of_call(self, func: OpOverload, call: _KeyedCall, out: Any, last: fx.Node | None) -> _Result | None:
        """What a call gave, if another one like it can do without the modes: ``last`` was the last node before it."""
        entry = self.tracker.get(out) if type(out) is FakeTensor else None
        if entry is None or entry.constant is not None:
            return None
        node = entry.proxy.node
        if node.target is not func or node.args != call.args or node.kwargs != call.kwargs or node.prev is not last:
            return None
        return self._result_of(node, out, call.tensors)

    def _result_of(self, node: fx.Node, out: Any, operands: Sequence[FakeTensor]) -> _Result | None:
        if type(out) is not FakeTensor or not _is_ordinary(out) or out.requires_grad:
            return None
        is_view = len(operands) == 1 and node.target.is_view  # type: ignore[union-attr]
        memory = out.untyped_storage()._cdata
        if (memory in [t.untyped_storage()._cdata for t in operands]) != is_view:
            return None
        shape, stride, offset, dtype, device, *_ = _form(out)
        result = _Result(node.meta["tensor_meta"], shape, stride, offset, dtype, device, is_view)
        made = self._fakes_of(result, operands)
        return result if all(map(_agree, made, (out, node.meta["val"]))) else None


def _keep(key: Any, result: _Result | None) -> None:
    if len(_results) >= _MAX_RESULTS:
        _results.clear()
    _results[key] = result


def _agree(made: FakeTensor, of_torch: FakeTensor) -> bool:
    return _form(made) == _form(of_torch) and vars(made) == vars(of_torch)


_UNSEEN: Any = object()


@functools.cache
def _has_one_result(func: Any) -> bool:
    """Whether an operator gives one tensor, writes nothing, and is no name for others."""
    if not isinstance(func, OpOverload) or func.namespace != "aten" or func is torch.ops.aten.detach.default:
        return False
    schema, key = func._schema, torch._C.DispatchKey.CompositeImplicitAutograd
    is_one = len(schema.returns) == 1 and str(schema.returns[0].type) == "Tensor"
    return is_one and not schema.is_mutable and not func.has_kernel_for_dispatch_key(key)
