"""What is launched on a GPU, recorded as a CUDA graph. Read in torch 2.13.0."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

import torch
from torch._ops import OpOverload

__all__ = ["can_record_on_cuda", "recorded_on_cuda"]

T = TypeVar("T")

# fmt: off
_RECORDED = {
    "_adaptive_avg_pool2d", "_adaptive_avg_pool2d_backward", "_embedding_bag", "_embedding_bag_forward_only",
    "_fft_c2c", "_fft_c2r", "_fft_r2c", "_int_mm", "_linalg_det", "_linalg_slogdet", "_linalg_solve_ex",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_flash_attention", "adaptive_max_pool2d", "angle",
    "cholesky_inverse", "cholesky_solve", "complex", "convolution_backward", "cummax", "cummin", "cumprod", "cumsum",
    "embedding_dense_backward", "fractional_max_pool2d", "geqrf", "grid_sampler_2d", "index_reduce", "kthvalue",
    "linalg_cholesky_ex", "linalg_householder_product", "linalg_inv_ex", "linalg_lu_factor_ex", "linalg_lu_solve",
    "linalg_qr", "linalg_solve_triangular", "logcumsumexp", "lu_unpack", "masked_scatter", "max_pool3d_with_indices",
    "median", "mode", "nanmedian", "native_group_norm", "nonzero_static", "ormqr", "sort", "topk", "triangular_solve",
    "upsample_bicubic2d_backward", "view_as_complex", "view_as_real",
}
# fmt: on
"""Operators of torch's own that were recorded (torch 2.11, H200). Others wait for the device or copy from the CPU, as
``_linalg_eigh``, ``_linalg_svd``, ``linalg_ldl_factor_ex``, ``linalg_matrix_exp``, ``bincount``, ``_ctc_loss``.
"""

_ONE_MATRIX = {"cholesky_inverse", "cholesky_solve"}
_SMALL_IN_BATCHES = {
    "_linalg_det",
    "_linalg_slogdet",
    "_linalg_solve_ex",
    "linalg_inv_ex",
    "linalg_lu_factor_ex",
    "linalg_lu_solve",
}
_MOST_ROWS = 16
"""MAGMA waits for the device: it takes batches of what cuBLAS is not taken for. Sixteen rows were recorded, 300 not."""


def can_record_on_cuda(operator: OpOverload, matrix: torch.Size | None) -> bool:
    """Whether torch's own code for an operator, whose first operand has the shape ``matrix``, may be recorded.

    It can't be tried: cuSOLVER does not work any more in a process where a recording of ``eigh`` has failed.
    """
    name = operator.overloadpacket.__name__
    if operator.namespace != "aten" or name not in _RECORDED:
        return False
    is_one = matrix is not None and matrix[:-2].numel() == 1
    if name in _SMALL_IN_BATCHES:
        return is_one or (matrix is not None and max(matrix[-2:]) <= _MOST_ROWS)
    return is_one or name not in _ONE_MATRIX


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
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            fresh = generator.clone_state()  # its own takes itself for recorded still
            generator.graphsafe_set_state(fresh.graphsafe_get_state())
            with contextlib.suppress(RuntimeError):  # it is not waiting where the recording ended in good order
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
                _unfinished.append(graph)
                torch._C._cuda_releasePool(torch.cuda.current_device(), pool)
            raise
        finally:
            torch._C._cuda_clearCublasWorkspaces()
    return graph, result
