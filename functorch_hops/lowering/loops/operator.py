"""The operator that carries the source of a kernel: a value of the graph like any other, for every tracer and cache."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import has_side_effect

from ... import _torch
from ...ir.meta import TensorMeta
from . import watching as _watching  # noqa: F401 - kernels look for it
from .happening import raising_again
from .libraries import load
from .sizes import Size, size_of
from .source import Function, program

__all__ = ["call_arguments", "effectful_kernel", "empty_outputs", "loop_kernel", "output_metas", "run_kernel"]

_library = torch.library.Library("functorch_hops", "FRAGMENT")
_SIGNATURE = (
    "(Tensor[] inputs, SymInt[] sizes, SymInt workspace, str[] parts, str name, int[] ranks,"
    " SymInt[] shapes, ScalarType[] dtypes) -> Tensor[]"
)
_library.define(f"loop_kernel{_SIGNATURE}")
_library.define(f"effectful_kernel{_SIGNATURE}")
loop_kernel = torch.ops.functorch_hops.loop_kernel.default
"""``sizes``: the open ones, see NOTE [Open sizes of kernels]; ``workspace``: its bytes; ``shapes``: of the outputs, one
after the other.
"""
effectful_kernel = torch.ops.functorch_hops.effectful_kernel.default
"""One that does something besides its results: it stays, read or not."""
has_side_effect(effectful_kernel)

_CPU = torch.device("cpu")


def call_arguments(
    function: Function, inputs: Sequence[Any], outputs: Sequence[TensorMeta], made: Callable[[Size], Any]
) -> tuple[Any, ...]:
    """The arguments of the operator that calls ``function``. ``made``: an open size as a value of the graph."""
    shapes = [made(size_of(size)) for meta in outputs for size in meta.shape]
    return (
        list(inputs),
        [made(size) for size in function.sizes],
        made(function.workspace),
        list(function.parts),
        function.name,
        [len(meta.shape) for meta in outputs],
        shapes,
        [meta.dtype for meta in outputs],
    )


def output_metas(
    ranks: Sequence[int], shapes: Sequence[Any], dtypes: Sequence[torch.dtype], device: torch.device = _CPU
) -> list[TensorMeta]:
    rest, metas = list(shapes), []
    for n, dtype in zip(ranks, dtypes):
        metas.append(TensorMeta(tuple(rest[:n]), _torch.as_dtype(dtype), device))
        rest = rest[n:]
    return metas


def empty_outputs(*described: Any) -> list[Tensor]:
    """Tensors like the outputs of a kernel, which its operator ``described`` as :func:`output_metas` takes them."""
    return [meta.empty() for meta in output_metas(*described)]


@functools.lru_cache
def _loaded(
    parts: tuple[str, ...],
    name: str,
    n_sizes: int,
    inputs: tuple[torch.dtype, ...],
    outputs: tuple[torch.dtype, ...],
) -> Any:
    (kernel,) = load([program(parts, name, n_sizes, inputs, outputs)]).values()
    return raising_again(kernel)


def run_kernel(
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    sizes: Sequence[int],
    workspace: int,
    parts: Sequence[str],
    name: str,
) -> None:
    """Call the kernel, which writes to ``outputs``."""
    given, results = (tuple(x.dtype for x in tensors) for tensors in (inputs, outputs))
    kernel = _loaded(tuple(parts), name, len(sizes), given, results)
    kernel(*map(Tensor.contiguous, inputs), *outputs, *sizes, workspace)


def _run(
    inputs: list[Tensor],
    sizes: list[int],
    workspace: int,
    parts: list[str],
    name: str,
    ranks: list[int],
    shapes: list[int],
    dtypes: list[torch.dtype],
) -> list[Tensor]:
    outputs = empty_outputs(ranks, shapes, dtypes)
    run_kernel(inputs, outputs, sizes, workspace, parts, name)
    return outputs


def _fake(
    inputs: list[Tensor],
    sizes: list[Any],
    workspace: Any,
    parts: list[str],
    name: str,
    ranks: list[int],
    shapes: list[Any],
    dtypes: list[torch.dtype],
) -> list[Tensor]:
    return empty_outputs(ranks, shapes, dtypes)


for _name in ("loop_kernel", "effectful_kernel"):
    _library.impl(_name, _run, "CPU")
    torch.library.register_fake(f"functorch_hops::{_name}", _fake, lib=_library)
