"""Derivatives in inference mode (checked against torch 2.11.0, 2.13.0, 2.14.1 and 2.15.0)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._functorch import eager_transforms
from torch.autograd.forward_ad import _set_fwd_grad_enabled

__all__ = ["outside_inference"]

_LEFT_BY_TORCH = hasattr(eager_transforms, "_disable_inference_mode")


def outside_inference(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, run with inference mode off, in which torch 2.11 records nothing for its transforms: derivatives
    would be zero. Later versions see to it themselves.
    """
    if _LEFT_BY_TORCH:
        return function

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        reverse, forward = torch.is_grad_enabled(), torch._C._is_fwd_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(reverse), _set_fwd_grad_enabled(forward):
            return function(*args, **kwargs)

    return run
