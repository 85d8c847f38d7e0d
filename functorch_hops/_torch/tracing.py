"""Fake tensors, proxies and graphs."""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.fx.experimental.proxy_tensor import (
    ProxyTorchDispatchMode,
    PythonKeyTracer,
    disable_proxy_modes_tracing,
    get_proxy_slot,
    track_tensor_tree,
)

from .parts import load_parts
from .symbols import new_shape_env

__all__ = [
    "READ_AS_SIZE",
    "READ_BY_KERNEL",
    "FakeTensor",
    "FakeTensorMode",
    "ProxyTorchDispatchMode",
    "PythonKeyTracer",
    "asks_for_sizes",
    "disable_proxy_modes_tracing",
    "function_name",
    "get_proxy_slot",
    "is_captured_write_error",
    "is_collective",
    "is_effectful",
    "is_recording_script",
    "is_refused_by_vmap",
    "new_fake_mode",
    "new_graph_module",
    "new_tracer",
    "read_scalar",
    "refused_class",
    "refused_read",
    "refused_write",
    "run_of",
    "track_tensor_tree",
    "whole_storages",
]


def new_fake_mode(env: Any = None) -> FakeTensorMode:
    """A FakeTensorMode with a ShapeEnv, which open sizes and unbacked ones (saved carries of a while loop) need."""
    load_parts()
    return FakeTensorMode(shape_env=env or new_shape_env(), allow_non_fake_inputs=False, static_shapes=True)


@contextlib.contextmanager
def whole_storages(mode: FakeTensorMode) -> Iterator[None]:
    """A fake result with the storage that a kernel gives it: the cache of ``mode`` forgets how large that is."""
    before, mode.cache_enabled = mode.cache_enabled, False
    try:
        yield
    finally:
        mode.cache_enabled = before


def refused_read(error: BaseException) -> str | None:
    """What asked for a value that only a run would know (a traced tensor's, a lane's), if torch refused that."""
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    if isinstance(error, (DataDependentOutputException, DynamicOutputShapeException)):
        return f"the operator {error.func.overloadpacket.__name__}"
    if isinstance(error, GuardOnDataDependentSymNode) or _READ_IN_SIZES.search(str(error)):
        return READ_AS_SIZE
    if type(error) is RuntimeError:
        refusals = {**_VMAP_REFUSALS, _WITHOUT_DATA: READ_BY_KERNEL}
        return next((what for words, what in refusals.items() if words in str(error)), None)
    return None


READ_BY_KERNEL = "an operator that reads its numbers to know what is to be done"
_WITHOUT_DATA = "but its data is not allocated yet"
READ_AS_SIZE = "use as a size, a bound or a Python number"
_READ_IN_SIZES = re.compile(r"failed to unpack the object at pos \d+ with error .*but got (Fake)?Tensor")
_VMAP_REFUSALS = {
    "vmap: It looks like you're attempting to use a Tensor in some data-dependent control flow": "bool(), as `if`, "
    "`while`, `and`, `or`, `not` and `in` call it",
    "vmap: It looks like you're calling .item() on a Tensor": ".item()",
    "vmap: It looks like you're either (1) calling .item() on a Tensor": ".item(), as bool() and int() call it",
}


def refused_write(error: BaseException) -> bool:
    """Whether a vmap refused to write what it maps over to a tensor that is one for all lanes."""
    return type(error) is RuntimeError and "is not possible because there exists a Tensor `other`" in str(error)


def refused_class(error: BaseException) -> bool:
    """Whether a traced tensor was to be of a class of which a fake one is not."""
    return type(error) is RuntimeError and "already associated to a python object of type FakeTensor" in str(error)


def asks_for_sizes(error: BaseException) -> bool:
    """Whether a kernel of torch's needed a number for a size that a trace leaves open."""
    return type(error) is RuntimeError and any(words in str(error) for words in _WITHOUT_SYMBOLS)


_WITHOUT_SYMBOLS = (
    "SymIntArrayRef expected to contain only concrete integers",
    "Cannot call sizes() on tensor with symbolic sizes/strides",
)


def is_refused_by_vmap(error: RuntimeError) -> bool:
    """Whether torch's vmap has no way to make a call on all lanes."""
    return any(words in str(error) for words in (*_VMAP_REFUSALS, *_UNBATCHABLE))


_UNBATCHABLE = (
    "We could not generate a fallback",
    "vmap: We do not support batching operators that can support dynamic shape",
    "the fallback path doesn't work on out= or view ops",
    "doesn't match the broadcast shape",  # an operator's own in-place work, on a value that all lanes share
)


def is_captured_write_error(error: RuntimeError) -> bool:
    """Whether functorch refused to write to a tensor from outside of a transform."""
    texts = "would mutate a captured Tensor", "will be updated in place, were not batched", "vmap: inplace arithmetic"
    return any(text in str(error) for text in texts)


_COLLECTIVES = ("_c10d_functional", "_c10d_functional_autograd", "c10d_functional", "c10d")


def is_collective(func: Any) -> bool:
    """Whether an operator communicates with other processes."""
    if isinstance(func, OpOverloadPacket):
        return func._qualified_op_name.partition("::")[0] in _COLLECTIVES
    return isinstance(func, OpOverload) and func.namespace in _COLLECTIVES


def function_name(func: Any) -> str:
    """The name under which a user knows a function that a ``__torch_function__`` mode sees."""
    return torch.overrides.resolve_name(func) or getattr(func, "__name__", str(func))


is_recording_script = torch._C._is_tracing
"""Whether ``torch.jit.trace`` records the operators that run."""


def is_effectful(operator: OpOverload) -> bool:
    """Whether an operator does something besides its results: torch says so, or it has no results.

    Of a custom operator torch may learn it later.
    """
    known = _effect_of_own(operator)
    return _has_effect(operator) if known is None else known


@functools.cache
def _effect_of_own(operator: OpOverload) -> bool | None:
    return _has_effect(operator) if operator.namespace in ("aten", "prims") else None


def _has_effect(operator: OpOverload) -> bool:
    from torch._library.utils import is_impure

    return not operator._schema.returns or is_impure(operator, impure_random=False)


def new_tracer(root: torch.nn.Module, graph: torch.fx.Graph) -> PythonKeyTracer:
    """A proxy tracer that appends to ``graph`` and keeps constants and operators' parameters on ``root``."""
    tracer = PythonKeyTracer()
    tracer.root = root
    tracer.graph = graph
    tracer.tensor_attrs = {}
    return tracer


def new_graph_module(root: torch.nn.Module, graph: torch.fx.Graph) -> torch.fx.GraphModule:
    """A GraphModule that generates its code when it first runs: most graphs are only steps to others."""
    return _LazyGraphModule(root, graph)


_printing = threading.Lock()


def run_of(module: torch.fx.GraphModule) -> Callable[..., Any]:
    """The generated code of a graph."""
    with _printing:  # fx marks the nodes meanwhile, and two threads would mix up their marks
        _LazyGraphModule.force_recompile(module)
        return module.forward


def read_scalar(t: Tensor) -> Any:
    """``t.item()`` as an operator, which a trace records; the result is a symbolic number there."""
    return torch.ops.aten._local_scalar_dense.default(t)
