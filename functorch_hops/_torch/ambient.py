"""Settings outside a function's arguments and environment that its trace depends on."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad, profiler
from torch.backends import mha
from torch.nn.modules import module as nn_module
from torch.utils._device import DeviceContext

from .dispatch import function_modes
from .inductor_settings import inductor_checks, inductor_settings

__all__ = [
    "ambient_checks",
    "ambient_state",
    "autocast_enabled",
    "compiler_settings",
    "global_module_hooks",
    "shown_in_profile",
    "tensor_check",
    "tensor_states",
]


def ambient_state() -> tuple[Any, ...]:
    """Settings outside a function's arguments and environment that its trace depends on."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        autocast_enabled() and (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        _autocast_dtype("cpu"),
        _autocast_dtype("cuda"),
        _default_device() if torch._C._len_torch_function_stack() else None,
        _anomaly(),
        mha._is_fastpath_enabled,
        *[get() for get in _SWITCHES],
        *[_precision(*place) for place in _PRECISIONS],
    )


Check = tuple[Callable[..., Any], tuple[Any, ...], Any]
"""A function, its arguments, and what it must return."""


def ambient_checks(backend: Any) -> list[Check]:
    """Whether the settings that `ambient_state` and `compiler_settings` tell are as they are now, by functions that
    answer at once; and that no level of forward mode, no profiler and no mode is active, but those of default devices.

    Torch's guard for Dynamo sees gradient mode, autocast, default dtype, determinism and the number of threads.
    """
    settings: list[tuple[Callable[..., Any], *tuple[Any, ...]]] = [
        (torch.is_inference_mode_enabled,),
        (_anomaly,),
        (operator.getitem, vars(mha), "_is_fastpath_enabled"),
        *[(get,) for get in _SWITCHES if get not in _SEEN_SWITCHES],
        *[(_precision, *place) for place in _PRECISIONS],
    ]
    if backend == "inductor":
        settings += inductor_checks()
    devices = _devices()
    if devices:  # under another mode nothing will do
        no_mode: Check = _devices, (), None if None in devices else devices
    else:
        no_mode = torch._C._len_torch_function_stack, (), 0
    inactive: list[Check] = [
        no_mode,
        (torch._C._len_torch_dispatch_stack, (), 0),
        (operator.getitem, (vars(forward_ad), "_current_level"), -1),
        (operator.getitem, (vars(profiler), "_is_profiler_enabled"), False),
    ]
    known = [(get, tuple(args), get(*args)) for get, *args in settings]
    return [(_GlobalState().check, (), True), *inactive, *known]


def compiler_settings(backend: Any) -> tuple[Any, ...]:
    """What the code that a backend makes depends on, besides the graph and the options."""
    switches, precisions = [get() for get in _SWITCHES], [_precision(*place) for place in _PRECISIONS]
    return (*switches, *precisions, inductor_settings() if backend == "inductor" else None)


_GlobalState = torch._C._dynamo.guards.GlobalStateGuard
autocast_enabled = torch._C._is_any_autocast_enabled
"""Whether autocast is on for any device."""
_autocast_dtype = torch.get_autocast_dtype
_anomaly = torch.is_anomaly_enabled
_precision = torch._C._get_fp32_precision_getter
_has_cuda = torch.backends.cuda.is_built()
# The older getters refuse to answer where the newer setters have been used.
_PRECISIONS = tuple((library, kind) for library in ("cuda", "mkldnn")[not _has_cuda :] for kind in ("matmul", "conv"))
_SWITCHES = (
    torch._C._get_deterministic_algorithms,
    torch._C._get_deterministic_algorithms_warn_only,
    torch._C._get_deterministic_fill_uninitialized_memory,
    torch.get_num_threads,
    torch._C._get_mkldnn_enabled,
    # Composite operators choose their kernels by these.
    torch._C._get_flash_sdp_enabled,
    torch._C._get_mem_efficient_sdp_enabled,
    torch._C._get_math_sdp_enabled,
    *((torch._C._get_cudnn_enabled, torch._C._get_cudnn_deterministic, torch._C._get_cudnn_benchmark) * _has_cuda),
)
_SEEN_SWITCHES = _SWITCHES[:2] + (torch.get_num_threads,)
"""What ``GlobalStateGuard`` compares."""


def _devices() -> list[torch.device | None]:
    """What each function mode makes the default device."""
    return [mode.device if isinstance(mode, DeviceContext) else None for mode in function_modes()]


def _default_device() -> torch.device | None:
    modes = function_modes()
    return next((mode.device for mode in reversed(modes) if isinstance(mode, DeviceContext)), None)


def global_module_hooks() -> dict[str, dict[Any, Any]]:
    """The hooks that every `nn.Module` runs, by name."""
    names = [name for name in vars(nn_module) if name.startswith("_global_")]
    return {name: table for name in names if isinstance(table := getattr(nn_module, name), dict)}


def shown_in_profile(name: Callable[[], str]) -> contextlib.AbstractContextManager[Any]:
    """What runs meanwhile has this name in a profile, if one is made."""
    return profiler.record_function(name()) if profiler._is_profiler_enabled else contextlib.nullcontext()


def tensor_states(tensors: Iterable[Tensor]) -> list[tuple[Any, ...]]:
    """What a trace knows of tensors without asking them, unseen by modes."""
    with torch._C.DisableTorchFunction():
        return [(t.shape, t.dtype, t.device) for t in tensors]


def tensor_check(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    """Whether so many tensors are like these, in turn: of the same type, dtype and device, of these sizes and strides,
    with gradients or without, with the same keys for the dispatcher (transforms that are active change them); and no
    two are the same object.
    """
    guard = torch._C._dynamo.guards.TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)
    check: Callable[..., bool] = guard.check
    return check
