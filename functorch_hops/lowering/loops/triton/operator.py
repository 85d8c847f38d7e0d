"""The operator that carries the source of a Triton kernel (checked with Triton 3.6 and 3.9)."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ....ir.meta import TensorMeta
from ..operator import empty_outputs
from ..sizes import Size, hint, size_of
from .around import Launch

__all__ = ["Launcher", "compile_launch", "device_of", "launch_arguments", "launch_options", "triton_loop"]

_library = torch.library.Library("functorch_hops", "FRAGMENT")
_library.define(
    "triton_loop(Tensor[] inputs, str source, str name, SymInt lanes, int block, int warps, SymInt[] sizes, "
    "int[] ranks, SymInt[] shapes, ScalarType[] dtypes, Device device) -> Tensor[]"
)
triton_loop = torch.ops.functorch_hops.triton_loop.default
"""``sizes``: the open ones, see NOTE [Open sizes of kernels]; ``shapes``: of what it writes, one after the other."""


def launch_options(source: str, warps: int) -> dict[str, Any]:
    """How Triton compiles a kernel. A product is rounded before something is added to it, as in eager; integers
    overflow without a word; what is asserted of an index is looked at.
    """
    has_assertions = "tl.device_assert" in source
    return {"num_warps": warps, "enable_fp_fusion": False, "sanitize_overflow": False, "debug": has_assertions}


def device_of(outputs: Sequence[TensorMeta]) -> torch.device:
    """The GPU of a loop, which may return numbers on the CPU too."""
    return next(meta.device for meta in outputs if meta.device.type == "cuda")


def launch_arguments(
    launch: Launch, inputs: Sequence[Any], outputs: Sequence[TensorMeta], made: Callable[[Size], Any]
) -> tuple[Any, ...]:
    """The arguments of the operator that runs a kernel. Its source has one line there: Inductor quotes calls of
    operators in comments of one line, wherever what they return is read. ``made``: an open size as a value of it.
    """
    sizes, shapes = launch.sizes, [size_of(size) for meta in outputs for size in meta.shape]
    return (
        list(inputs),
        json.dumps(launch.source),
        launch.name,
        made(launch.lanes),
        launch.block,
        launch.warps,
        [*map(made, sizes)],
        [len(meta.shape) for meta in outputs],
        [*map(made, shapes)],
        [meta.dtype for meta in outputs],
        device_of(outputs),
    )


@functools.lru_cache
def _loaded(source: str, name: str) -> Any:
    """The kernel, whose source is in one line."""
    from torch._inductor.codecache import PyCodeCache

    return getattr(PyCodeCache.load(json.loads(source)), name)


def _moved(x: Tensor, device: torch.device) -> Tensor:
    """A value on the CPU: waiting for it would be waiting for all that the device still has to do. A CUDA graph of the
    user's would read the memory of the CPU whenever it is replayed, where by then anything may be.
    """
    if x.numel() == 1:
        return torch.full(x.shape, x.item(), dtype=x.dtype, device=device)
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("values on the CPU can't be a part of a CUDA graph: move them to the GPU before")
    return x.to(device, non_blocking=True)


class Launcher:
    """Runs a kernel on its contiguous inputs and outputs, on their device, which is the current one. What lanes share
    is computed even if there are none.
    """

    def __init__(self, source: str, name: str, block: int, warps: int) -> None:
        self._kernel = _loaded(source, name)
        self._block, self._options = block, launch_options(source, warps)

    def __call__(self, lanes: int, sizes: Sequence[int], *tensors: Tensor) -> None:
        device = tensors[-1].device
        given = (x if x.device == device else _moved(x, device) for x in tensors)
        self._kernel[(-(-lanes // self._block) or 1,)](*given, *sizes, self._block, **self._options)


def compile_launch(launch: Launch, inputs: Sequence[TensorMeta], outputs: Sequence[TensorMeta]) -> None:
    """Compile for the GPU at hand, if there is one; Triton finds the binary in its cache."""
    if torch.cuda.is_available():
        dtypes = [meta.dtype for meta in (*inputs, *outputs, *launch.scratch)]
        with torch.cuda.device(device_of(outputs)):
            options = launch_options(launch.source, launch.warps)
            kernel = _loaded(json.dumps(launch.source), launch.name)
            kernel.warmup(*dtypes, *map(hint, launch.sizes), launch.block, grid=(1,), **options)


def _run(
    inputs: list[Tensor],
    source: str,
    name: str,
    lanes: int,
    block: int,
    warps: int,
    sizes: list[int],
    ranks: list[int],
    shapes: list[int],
    dtypes: list[torch.dtype],
    device: torch.device,
) -> list[Tensor]:
    outputs = empty_outputs(ranks, shapes, dtypes, device)
    with torch.cuda.device_of(outputs[0]):
        Launcher(source, name, block, warps)(lanes, sizes, *map(Tensor.contiguous, inputs), *outputs)
    return outputs


def _fake(
    inputs: list[Tensor],
    source: str,
    name: str,
    lanes: Any,
    block: int,
    warps: int,
    sizes: list[Any],
    ranks: list[int],
    shapes: list[Any],
    dtypes: list[torch.dtype],
    device: torch.device,
) -> list[Tensor]:
    return empty_outputs(ranks, shapes, dtypes, device)


_library.impl("triton_loop", _run, "CompositeExplicitAutograd")
torch.library.register_fake("functorch_hops::triton_loop", _fake, lib=_library)
