"""Modes and the state of the dispatcher: what is active on this thread, and how to run without it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.fx.traceback as fx_traceback
from torch._C import DispatchKey
from torch._ops import HigherOrderOperator, OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.autograd.forward_ad import _set_fwd_grad_enabled
from torch.autograd.grad_mode import _force_original_view_tracking
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, _get_current_dispatch_mode_stack
from torch.utils._python_dispatch import _pop_mode as _pop_dispatch_mode
from torch.utils._python_dispatch import _push_mode as _push_dispatch_mode
from torch.utils.checkpoint import CheckpointPolicy, _CachedTorchDispatchMode, _CachingTorchDispatchMode

from .forward_rules import once
from .levels import below_transforms, top_interpreter
from .process import joining_dual_level, without_validation

__all__ = [
    "SELECTIVE_CHECKPOINT_MODES",
    "DispatchKey",
    "HigherOrderOperator",
    "OpOverload",
    "TorchDispatchMode",
    "autocast_off",
    "foreign_capture_active",
    "foreign_tracer_active",
    "function_modes",
    "functions_of_modes",
    "has_saved_tensor_hooks",
    "is_pre_dispatch",
    "looks_for_nan",
    "mode_of_user",
    "modes_of_user",
    "modes_restored",
    "no_gradients",
    "no_modes",
    "observer",
    "observers",
    "observing",
    "only_asks_for_shapes",
    "saved_by_checkpoint",
    "saved_by_tags",
    "suspended",
    "tangents_readable",
    "unobserved",
    "without_saved_tensor_hooks",
    "without_torch_function",
]

_CLEAN_INCLUDE = torch._C._dispatch_tls_local_include_set()
_CLEAN_EXCLUDE = torch._C._dispatch_tls_local_exclude_set()
_AUTOCAST_KEYS = (DispatchKey.AutocastCPU, DispatchKey.AutocastCUDA)
SELECTIVE_CHECKPOINT_MODES = (_CachedTorchDispatchMode, _CachingTorchDispatchMode)
"""Those in which ``torch.utils.checkpoint`` runs a function under AOTAutograd, to say what may be computed again."""
function_modes = _get_current_function_mode_stack
without_torch_function = torch._C.DisableTorchFunction


_unwatched = 0
"""In how many places NaN are not looked for now, though the user wants them to be."""


def looks_for_nan() -> bool:
    """Whether backward passes of the user's look for NaN: ``torch.autograd.detect_anomaly``, a setting of the process.

    AOTAutograd sets anomaly mode without this part while it traces, whatever other threads do meanwhile, and so does
    ``suspended`` with that of the user.
    """
    return torch.is_anomaly_enabled() and (_unwatched > 0 or torch.is_anomaly_check_nan_enabled())


@contextlib.contextmanager
def _nan_unwatched() -> Iterator[None]:
    global _unwatched
    if not looks_for_nan():
        yield
        return
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        _unwatched += 1
        try:
            yield
        finally:
            _unwatched -= 1


@contextlib.contextmanager
def suspended(*, keep_autocast: bool) -> Iterator[None]:
    """Run as on a fresh thread: no functorch level, no mode, clean dispatch keys, gradients on.

    The order matters (the interpreter stack owns dispatch keys that the guard would otherwise drop). Autocast is
    kept where user code is traced, because it decides the dtypes that the user sees, and is off where a graph that
    holds its casts already is run or transformed. Backward passes stay on this thread, whose capture records them, and
    anomaly mode does not look at their values, which are none. The gradient of a write to a view takes the view again
    as the program did: autograd's ``as_strided`` counts numbers of the view's dtype, not of the base's.
    """
    exclude = _CLEAN_EXCLUDE
    if keep_autocast:
        current = torch._C._dispatch_tls_local_exclude_set()
        for key in _AUTOCAST_KEYS:
            exclude = exclude.remove(key) if not current.has(key) else exclude
    with contextlib.ExitStack() as stack:
        stack.enter_context(below_transforms())
        stack.enter_context(torch._C._EnableTorchFunction())
        stack.enter_context(_without_function_modes())
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch._C._ForceDispatchKeyGuard(_CLEAN_INCLUDE, exclude))
        if not keep_autocast:
            stack.enter_context(torch._C._DisableAutocast())
        stack.enter_context(_saved_tensor_hooks_allowed())
        stack.enter_context(without_saved_tensor_hooks())
        stack.enter_context(_nan_unwatched())
        stack.enter_context(joining_dual_level())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_set_fwd_grad_enabled(True))
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.enter_context(_force_original_view_tracking(True))
        stack.enter_context(without_validation())
        stack.enter_context(once())
        yield


@contextlib.contextmanager
def modes_restored() -> Iterator[None]:
    """Torch's stacks of modes as before after an error too: an interrupt (Ctrl-C) may have come while a mode left."""
    functions, dispatchers = function_modes(), _get_current_dispatch_mode_stack()
    try:
        yield
    except BaseException:
        if function_modes() != functions:
            for _ in function_modes():
                _pop_mode()
            for mode in functions:
                _push_mode(mode)
        if _get_current_dispatch_mode_stack() != dispatchers:
            for _ in _get_current_dispatch_mode_stack():
                _pop_dispatch_mode()
            for mode in dispatchers:
                _push_dispatch_mode(mode)
        raise


def _without_function_modes() -> contextlib.AbstractContextManager[None]:
    """Suspend every ``__torch_function__`` mode except the default device's."""
    return _within(tuple(mode for mode in function_modes() if isinstance(mode, DeviceContext)))


@contextlib.contextmanager
def _within(modes: Sequence[TorchFunctionMode]) -> Iterator[None]:
    """With these function modes alone, but for entering and leaving them, which may do something."""
    before = function_modes()
    for _ in before:
        _pop_mode()
    for mode in modes:
        _push_mode(mode)
    try:
        yield
    finally:
        for _ in modes:
            _pop_mode()
        for mode in before:
            _push_mode(mode)


def observing(modes: Sequence[TorchFunctionMode]) -> contextlib.AbstractContextManager[None]:
    """Within these modes of the user's, too."""
    return _within((*function_modes(), *modes)) if modes else contextlib.nullcontext()


def unobserved() -> contextlib.AbstractContextManager[None]:
    """Without modes of the user's: they saw the function that a graph holds when it was captured."""
    if not modes_of_user():
        return contextlib.nullcontext()
    return _within(tuple(mode for mode in function_modes() if not _is_of_user(mode)))


def modes_of_user() -> tuple[TorchFunctionMode, ...]:
    """Those ``__torch_function__`` modes around that are neither torch's nor of a capture, the outermost first."""
    if not torch._C._len_torch_function_stack():
        return ()
    return tuple(mode for mode in function_modes() if _is_of_user(mode))


def observers() -> tuple[TorchFunctionMode, ...]:
    """The user's modes, and what sets a default device inside of them: they see calls to which it gave one."""
    modes = function_modes() if modes_of_user() else []
    first = next((i for i, mode in enumerate(modes) if _is_of_user(mode)), 0)
    return tuple(mode for mode in modes[first:] if _is_of_user(mode) or isinstance(mode, DeviceContext))


def mode_of_user() -> TorchDispatchMode | None:
    """The innermost dispatch mode, if it is the user's."""
    modes = _get_current_dispatch_mode_stack()
    return modes[-1] if modes and _is_of_user(modes[-1]) else None


def _is_of_user(mode: object) -> bool:
    return type(mode).__module__.partition(".")[0] not in _OF_NO_USER


def functions_of_modes() -> list[Callable[..., Any]]:
    """What the user's modes do with a call: a part of what a captured function does."""
    return [mode.__torch_function__ for mode in modes_of_user()]


_OF_NO_USER = "torch", __name__.partition(".")[0]


@contextlib.contextmanager
def without_saved_tensor_hooks() -> Iterator[None]:
    """Suspend hooks on saved tensors (``save_on_cpu``, ``torch.utils.checkpoint``): functorch refuses to run with
    them, also while AOTAutograd traces, which hides them.
    """
    autograd, hooks = torch._C._autograd, []
    while (hook := autograd._top_saved_tensors_default_hooks(True)) is not None:
        autograd._pop_saved_tensors_default_hooks()
        hooks.append(hook)
    try:
        yield
    finally:
        for hook in reversed(hooks):
            autograd._push_saved_tensors_default_hooks(*hook)


def has_saved_tensor_hooks() -> bool:
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


@contextlib.contextmanager
def saved_by_checkpoint(mode: Any) -> Iterator[None]:
    """Let ``torch.utils.checkpoint`` save the results of operators, one of the modes of which this is."""
    policy, mode.policy_fn = mode.policy_fn, lambda *args, **kwargs: CheckpointPolicy.MUST_SAVE
    try:
        yield
    finally:
        mode.policy_fn = policy


@contextlib.contextmanager
def saved_by_tags() -> Iterator[None]:
    """Let it save what is recorded here: torch 2.11 has no mode for what is not selective, it marks nodes."""
    meta = fx_traceback.current_meta
    if meta.get("recompute") is None:
        yield
        return
    policy, meta["recompute"] = meta["recompute"], CheckpointPolicy.MUST_SAVE
    try:
        yield
    finally:
        meta["recompute"] = policy


@contextlib.contextmanager
def _saved_tensor_hooks_allowed() -> Iterator[None]:
    """Where a transform of torch's around this refuses them."""
    autograd = torch._C._autograd
    refusal = autograd._saved_tensors_hooks_get_disabled_error_message()
    if refusal is None:
        yield
        return
    autograd._saved_tensors_hooks_enable()
    try:
        yield
    finally:
        autograd._saved_tensors_hooks_disable(refusal)


def tangents_readable() -> contextlib.AbstractContextManager[None]:
    """Below autograd too, a tensor can be asked for its tangent, in a level of forward mode."""
    if forward_ad._current_level < 0:
        return contextlib.nullcontext()
    exclude = torch._C._dispatch_tls_local_exclude_set()
    for key in (DispatchKey.AutogradFunctionality, DispatchKey.ADInplaceOrView):
        exclude = exclude.remove(key)
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), exclude)


def autocast_off() -> contextlib.AbstractContextManager[None]:
    """Captured graphs hold the casts that autocast made, so they run without it."""
    return torch._C._DisableAutocast()


def foreign_capture_active() -> bool:
    """Whether torch's own tracing (export, make_fx, FakeTensorMode) is at work around us."""
    has_fakes = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None
    return has_fakes or foreign_tracer_active()


def foreign_tracer_active() -> bool:
    """Whether torch records operators around us: its export or make_fx."""
    has_proxies = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
    return has_proxies or is_pre_dispatch()


def is_pre_dispatch() -> bool:
    """Whether torch records operators above autograd and functorch, as its export does."""
    return torch._C._dispatch_tls_is_dispatch_key_included(DispatchKey.PreDispatch)


class no_gradients:
    """``torch.no_grad()``, at a fraction of its cost."""

    __slots__ = ("_enabled",)

    def __enter__(self) -> None:
        self._enabled = torch.is_grad_enabled()
        if self._enabled:
            torch._C._set_grad_enabled(False)

    def __exit__(self, *error: object) -> None:
        if self._enabled:
            torch._C._set_grad_enabled(True)


def no_modes() -> bool:
    """Whether neither a transform nor a dispatch mode is active: nothing but autograd stands before a kernel."""
    return top_interpreter() is None and torch._C._len_torch_dispatch_stack() == 0


def only_asks_for_shapes() -> bool:
    """Whether operators run on fakes alone: nothing records them, and no transform is active."""
    modes = _get_current_dispatch_mode_stack()
    if len(modes) != 1 or not isinstance(modes[0], FakeTensorMode):
        return False
    return top_interpreter() is None and not is_pre_dispatch()  # where export's modes are on a stack of their own


def observer() -> TorchDispatchMode | None:
    """The innermost dispatch mode if nothing is traced, hence a mode of the user's, such as a FLOP counter."""
    modes = _get_current_dispatch_mode_stack()
    is_tracing = any(isinstance(mode, (ProxyTorchDispatchMode, FakeTensorMode)) for mode in modes)
    return modes[-1] if modes and not is_tracing else None
