"""Settings outside a function's arguments and environment that its trace depends on."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._device import DeviceContext

from .dispatch import function_modes

__all__ = ["ambient_state"]


def ambient_state() -> tuple[Any, ...]:
    """Settings outside a function's arguments and environment that its trace depends on."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch._C._is_any_autocast_enabled() and _autocast_dtypes(),
        _default_device() if torch._C._len_torch_function_stack() else None,
        # Composite operators choose their kernels by these.
        torch._C._get_flash_sdp_enabled(),
        torch._C._get_mem_efficient_sdp_enabled(),
        torch._C._get_math_sdp_enabled(),
        torch._C._get_cudnn_enabled(),
        torch._C._get_mkldnn_enabled(),
    )


def _autocast_dtypes() -> tuple[Any, ...]:
    return tuple(torch.is_autocast_enabled(d) and torch.get_autocast_dtype(d) for d in ("cpu", "cuda"))


def _default_device() -> torch.device | None:
    modes = function_modes()
    return next((mode.device for mode in reversed(modes) if isinstance(mode, DeviceContext)), None)
