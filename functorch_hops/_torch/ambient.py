"""Settings outside a function's arguments and environment that its trace depends on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import module as nn_module
from torch.utils._device import DeviceContext

from .dispatch import function_modes

__all__ = ["ambient_state", "compiler_settings", "global_module_hooks", "tensor_states"]


def ambient_state() -> tuple[Any, ...]:
    """Settings outside a function's arguments and environment that its trace depends on."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        _any_autocast() and (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        _autocast_dtype("cpu"),
        _autocast_dtype("cuda"),
        _default_device() if torch._C._len_torch_function_stack() else None,
        _anomaly(),
        torch.backends.mha._is_fastpath_enabled,
        *[get() for get in _SWITCHES],
        *[_precision(*place) for place in _PRECISIONS],
    )


def compiler_settings(backend: Any) -> tuple[Any, ...]:
    """What the code that a backend makes depends on, besides the graph and the options."""
    switches, precisions = [get() for get in _SWITCHES], [_precision(*place) for place in _PRECISIONS]
    return (*switches, *precisions, _inductor_config() if backend == "inductor" else None)


_any_autocast = torch._C._is_any_autocast_enabled
_autocast_dtype = torch.get_autocast_dtype
_anomaly = torch.is_anomaly_enabled
_precision = torch._C._get_fp32_precision_getter
# The older getters refuse to answer where the newer setters have been used.
_PRECISIONS = (("cuda", "matmul"), ("cuda", "conv"), ("mkldnn", "matmul"), ("mkldnn", "conv"))
_SWITCHES = (
    torch._C._get_deterministic_algorithms,
    torch._C._get_deterministic_algorithms_warn_only,
    torch._C._get_deterministic_fill_uninitialized_memory,
    torch.get_num_threads,
    torch._C._get_cudnn_enabled,
    torch._C._get_cudnn_deterministic,
    torch._C._get_cudnn_benchmark,
    torch._C._get_mkldnn_enabled,
    # Composite operators choose their kernels by these.
    torch._C._get_flash_sdp_enabled,
    torch._C._get_mem_efficient_sdp_enabled,
    torch._C._get_math_sdp_enabled,
)


def _inductor_config() -> Any:
    from torch._inductor import config

    return config.get_hash()


def _default_device() -> torch.device | None:
    modes = function_modes()
    return next((mode.device for mode in reversed(modes) if isinstance(mode, DeviceContext)), None)


def global_module_hooks() -> dict[str, dict[Any, Any]]:
    """The hooks that every `nn.Module` runs, by name."""
    names = [name for name in vars(nn_module) if name.startswith("_global_")]
    return {name: table for name in names if isinstance(table := getattr(nn_module, name), dict)}


def tensor_states(tensors: Iterable[Tensor]) -> list[tuple[Any, ...]]:
    """What a trace knows of tensors without asking them, unseen by modes."""
    with torch._C.DisableTorchFunction():
        return [(t.shape, t.dtype, t.device) for t in tensors]
