"""What is launched on a GPU, recorded as a CUDA graph. Read in torch 2.13.0."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

import torch

__all__ = ["recorded_on_cuda"]

T = TypeVar("T")

_streams: dict[torch.device, torch.cuda.Stream] = {}
_one_at_a_time = threading.Lock()
"""What another thread launches on a stream that is recorded would not run, but be recorded."""

_unfinished: list[torch.cuda.CUDAGraph] = []
"""The allocators of torch (2.13) keep a pointer to a graph whose recording failed."""


def recorded_on_cuda(device: torch.device, work: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
    """What ``work`` launches on a device, and its result, in memory of the graph: cuBLAS has a workspace there, which
    it would else share with graphs that run at the same time. A failure leaves the thread on the stream where it was.
    """
    with _one_at_a_time, torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
        if device not in _streams:
            _streams[device] = torch.cuda.Stream(device)
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        torch._C._cuda_clearCublasWorkspaces()
        try:
            with torch.cuda.graph(graph, pool, _streams[device], capture_error_mode="thread_local"):
                result = work()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # it is not waiting where the recording ended in good order
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
                _unfinished.append(graph)
                torch._C._cuda_releasePool(torch.cuda.current_device(), pool)
            raise
        finally:
            torch._C._cuda_clearCublasWorkspaces()
    return graph, result
