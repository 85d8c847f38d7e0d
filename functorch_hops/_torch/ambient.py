"""Settings outside a function's arguments and environment that its trace depends on."""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad, profiler
from torch.backends import mha
from torch.nn.modules import module as nn_module
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._device import DeviceContext

from .dispatch import function_modes, looks_for_nan, observers
from .inductor_settings import inductor_checks, inductor_settings

__all__ = [
    "COMPUTING_SETTINGS",
    "ambient_checks",
    "ambient_state",
    "autocast_enabled",
    "changed_setting",
    "changed_setting_of_kernels",
    "compiler_settings",
    "default_device",
    "global_module_hooks",
    "is_uninitialized",
    "settings_of_kernels",
    "shown_in_profile",
    "tensor_check",
    "tensor_states",
]


def ambient_state() -> tuple[Any, ...]:
    """Settings outside a function's arguments and environment that its trace depends on."""
    return tuple([get() for _, get in _SETTINGS])


def changed_setting(before: tuple[Any, ...]) -> str | None:
    """What is not as it was when `ambient_state` gave this, by a name that users know."""
    now = ambient_state()
    return next((name for (name, _), old, new in zip(_SETTINGS, before, now) if old != new), None)


def settings_of_kernels() -> tuple[Any, ...]:
    """What operators do otherwise under another value of, and no node says: the default dtype, precision, and so on."""
    return tuple([get() for get in _OF_KERNELS])


def changed_setting_of_kernels(before: tuple[Any, ...]) -> str:
    """As `changed_setting`, of `settings_of_kernels`, one of which is another now."""
    names = {get: name for name, get in _SETTINGS}
    return next(names[get] for get, old in zip(_OF_KERNELS, before) if get() != old)


Check = tuple[Callable[..., Any], tuple[Any, ...], Any]
"""A function, its arguments, and what it must return."""


def ambient_checks(backend: Any) -> list[Check]:
    """Whether the settings that `ambient_state` and `compiler_settings` tell are as they are now, by functions that
    answer at once; and that no level of forward mode, no profiler and no mode is active, but those of default devices.

    Torch's guard for Dynamo sees gradient mode, autocast, default dtype, determinism and the number of threads.
    """
    settings: list[tuple[Callable[..., Any], *tuple[Any, ...]]] = [
        (torch.is_inference_mode_enabled,),
        (looks_for_nan,),
        (_fast_path,),
        *[(get,) for get in _SWITCHES if get not in _SEEN_SWITCHES],
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
    return (*[get() for get in _SWITCHES], inductor_settings() if backend == "inductor" else None)


_GlobalState = torch._C._dynamo.guards.GlobalStateGuard
autocast_enabled = torch._C._is_any_autocast_enabled
"""Whether autocast is on for any device."""
_fast_path = functools.partial(operator.getitem, vars(mha), "_is_fastpath_enabled")
_has_cuda = torch.backends.cuda.is_built()


def _precision(library: str, kind: str) -> tuple[str, Callable[[], Any]]:
    """The older getters refuse to answer where the newer setters have been used."""
    get = functools.partial(torch._C._get_fp32_precision_getter, library, kind)
    return f"torch.backends.{library}.{kind}.fp32_precision, or torch.set_float32_matmul_precision()", get


_NAMED_SWITCHES: tuple[tuple[str, Callable[[], Any]], ...] = (
    ("torch.use_deterministic_algorithms()", torch._C._get_deterministic_algorithms),
    ("torch.use_deterministic_algorithms(warn_only=)", torch._C._get_deterministic_algorithms_warn_only),
    (
        "torch.utils.deterministic.fill_uninitialized_memory",
        torch._C._get_deterministic_fill_uninitialized_memory,
    ),
    ("torch.set_num_threads()", torch.get_num_threads),
    ("torch.backends.mkldnn.enabled", torch._C._get_mkldnn_enabled),
    *(_precision(library, kind) for library in ("cuda", "mkldnn")[not _has_cuda :] for kind in ("matmul", "conv")),
    *(
        (
            ("torch.backends.cudnn.enabled", torch._C._get_cudnn_enabled),
            ("torch.backends.cudnn.deterministic", torch._C._get_cudnn_deterministic),
            ("torch.backends.cudnn.benchmark", torch._C._get_cudnn_benchmark),
        )
        * _has_cuda
    ),
)
_CHOICES: tuple[tuple[str, Callable[[], Any]], ...] = (
    ("torch.backends.cuda.enable_flash_sdp()", torch._C._get_flash_sdp_enabled),
    ("torch.backends.cuda.enable_mem_efficient_sdp()", torch._C._get_mem_efficient_sdp_enabled),
    ("torch.backends.cuda.enable_math_sdp()", torch._C._get_math_sdp_enabled),
)
"""By which composite operators choose their kernels when they are captured."""
_SWITCHES = tuple(get for _, get in (*_NAMED_SWITCHES, *_CHOICES))
_SEEN_SWITCHES = _SWITCHES[:2] + (torch.get_num_threads,)
"""What ``GlobalStateGuard`` compares."""
_OF_KERNELS = (torch.get_default_dtype, *(get for _, get in _NAMED_SWITCHES))


def _autocast() -> Any:
    return autocast_enabled() and (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"))


def default_device() -> torch.device | None:
    """What `torch.set_default_device` or a ``with torch.device(...)`` has set."""
    modes = function_modes() if torch._C._len_torch_function_stack() else ()
    return next((mode.device for mode in reversed(modes) if isinstance(mode, DeviceContext)), None)


def _kinds_of_modes() -> tuple[type, ...]:
    """What the user's modes hold is compared as the environment is: each ``with`` may make a new one."""
    return tuple(map(type, observers()))


COMPUTING_SETTINGS = ("torch.backends", "torch.utils._config_module")
"""The modules whose classes compute settings where these are read as attributes."""

_SETTINGS: tuple[tuple[str, Callable[[], Any]], ...] = (
    ("gradient mode (torch.set_grad_enabled)", torch.is_grad_enabled),
    ("inference mode", torch.is_inference_mode_enabled),
    ("torch.set_default_dtype()", torch.get_default_dtype),
    ("autocast (torch.set_autocast_enabled)", _autocast),
    ("torch.set_autocast_dtype()", functools.partial(torch.get_autocast_dtype, "cpu")),
    ("torch.set_autocast_dtype()", functools.partial(torch.get_autocast_dtype, "cuda")),
    ("torch.set_default_device()", default_device),
    ("modes of torch functions (TorchFunctionMode)", _kinds_of_modes),
    ("torch.autograd.set_detect_anomaly()", looks_for_nan),
    ("torch.backends.mha.set_fastpath_enabled()", _fast_path),
    *_NAMED_SWITCHES,
    *_CHOICES,
)
"""Each with its name and what tells it."""


def _devices() -> list[torch.device | None]:
    """What each function mode makes the default device."""
    return [mode.device if isinstance(mode, DeviceContext) else None for mode in function_modes()]


def global_module_hooks() -> dict[str, dict[Any, Any]]:
    """The hooks that every `nn.Module` runs, by name."""
    names = [name for name in vars(nn_module) if name.startswith("_global_")]
    return {name: table for name in names if isinstance(table := getattr(nn_module, name), dict)}


def shown_in_profile(name: Callable[[], str]) -> contextlib.AbstractContextManager[Any]:
    """What runs meanwhile has this name in a profile, if one is made."""
    return profiler.record_function(name()) if profiler._is_profiler_enabled else contextlib.nullcontext()


def is_uninitialized(t: Tensor) -> bool:
    """Whether ``t`` has no shape yet, as what a lazy module holds before its first call."""
    return isinstance(t, (UninitializedParameter, UninitializedBuffer))


def tensor_states(tensors: Iterable[Tensor]) -> list[tuple[Any, ...]]:
    """What a trace knows of tensors without asking them, unseen by modes."""
    tensors = list(tensors)
    with torch._C.DisableTorchFunction():
        try:
            return [(t.shape, t.dtype, t.device) for t in tensors]
        except RuntimeError:  # a lazy module's parameters have no shape yet
            return [(None if is_uninitialized(t) else t.shape, t.dtype, t.device) for t in tensors]


def tensor_check(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    """Whether so many tensors are like these, in turn: of the same type, dtype and device, of these sizes and strides,
    with gradients or without, with the same keys for the dispatcher (transforms that are active change them); and no
    two are the same object.
    """
    guard = torch._C._dynamo.guards.TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)
    check: Callable[..., bool] = guard.check
    return check
