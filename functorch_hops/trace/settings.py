"""Settings of the thread and of the process that a captured function changes.

NOTE [Settings are outside of graphs] A graph holds what the settings made of the operators: what ran under ``no_grad``
is detached, what autocast converted is converted, attention has its kernel. So a function may change these for a while.
It may not leave them changed, for a call of the graph would not. What an operator reads when it runs (the default
dtype, precision, determinism, threads) is in no graph: there all operators run as the capture began.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from .. import _torch
from ..errors import CaptureError, ErrorContext, message

__all__ = ["check_settings", "settings_kept"]


@contextlib.contextmanager
def settings_kept(context: ErrorContext) -> Iterator[None]:
    """Around a function of the user's, which is to leave all settings as they are."""
    before, device = _torch.ambient_state(), _torch.default_device()
    yield
    name = _torch.changed_setting(before)
    if name is None:
        return
    if _torch.default_device() != device:
        torch.set_default_device(device)  # it is a mode, of which the capture has suspended others
    raise _changed(context, f"{context.parameter} leaves a setting changed, which calls of its graph would not", name)


def check_settings(context: ErrorContext, before: tuple[object, ...]) -> None:
    """Whether an operator runs under the settings of the capture, see NOTE [Settings are outside of graphs]."""
    if _torch.settings_of_kernels() != before:
        name = _torch.changed_setting_of_kernels(before)
        raise _changed(context, f"{context.parameter} changes a setting that operators read and no graph holds", name)


def _changed(context: ErrorContext, problem: str, name: str) -> CaptureError:
    remedy = "set it around the call; inside, use `with` for gradient modes, autocast and attention kernels, "
    return CaptureError(
        message(
            context.operation,
            problem,
            parameter=context.parameter,
            got=name,
            remedy=remedy + "and dtype= and device= of new tensors",
        )
    )
