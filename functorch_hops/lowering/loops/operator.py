"""The operator that carries the source of a kernel: a value of the graph like any other, for every tracer and cache."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...ir.meta import TensorMeta
from .source import ENTRY, Function, Program, program

__all__ = ["call_arguments", "load", "loaded", "loop_kernel", "output_metas"]

_library = torch.library.Library("functorch_hops", "FRAGMENT")
_library.define(
    "loop_kernel(Tensor[] inputs, str[] parts, str name, int workspace, int[] sizes, ScalarType[] dtypes) -> Tensor[]"
)
loop_kernel = torch.ops.functorch_hops.loop_kernel.default


def call_arguments(function: Function, inputs: Sequence[Any], outputs: Sequence[TensorMeta]) -> tuple[Any, ...]:
    """The arguments of the operator that calls ``function``."""
    sizes = [value for meta in outputs for value in (len(meta.shape), *meta.shape)]
    dtypes = [meta.dtype for meta in outputs]
    return list(inputs), list(function.parts), function.name, function.workspace, sizes, dtypes


def output_metas(sizes: Sequence[int], dtypes: Sequence[torch.dtype]) -> list[TensorMeta]:
    rest, metas = list(sizes), []
    for dtype in dtypes:
        n, *rest = rest
        metas.append(TensorMeta(tuple(rest[:n]), dtype, torch.device("cpu")))
        rest = rest[n:]
    return metas


def load(library: Program) -> Any:
    """The compiled function, as Inductor's own code loads it: from its cache if it can."""
    from torch._inductor.codecache import CppPythonBindingsCodeCache

    return CppPythonBindingsCodeCache.load_pybinding(library.types, library.source)


@functools.lru_cache
def _loaded(
    parts: tuple[str, ...],
    name: str,
    workspace: int,
    inputs: tuple[torch.dtype, ...],
    outputs: tuple[torch.dtype, ...],
) -> Any:
    return load(program(parts, name, workspace, inputs, outputs, ENTRY))


def loaded(parts: Sequence[str], name: str, workspace: int, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Any:
    """The kernel for a call with these tensors."""
    return _loaded(tuple(parts), name, workspace, tuple(x.dtype for x in inputs), tuple(x.dtype for x in outputs))


def _run(
    inputs: list[Tensor], parts: list[str], name: str, workspace: int, sizes: list[int], dtypes: list[torch.dtype]
) -> list[Tensor]:
    outputs = [meta.empty() for meta in output_metas(sizes, dtypes)]
    kernel = loaded(parts, name, workspace, inputs, outputs)
    kernel(*map(Tensor.contiguous, inputs), *outputs)
    return outputs


def _fake(
    inputs: list[Tensor], parts: list[str], name: str, workspace: int, sizes: list[int], dtypes: list[torch.dtype]
) -> list[Tensor]:
    return [meta.empty() for meta in output_metas(sizes, dtypes)]


_library.impl("loop_kernel", _run, "CPU")
torch.library.register_fake("functorch_hops::loop_kernel", _fake, lib=_library)
