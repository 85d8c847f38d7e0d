"""What a call may leave behind when it fails: nothing, and the next correct call works."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch._C._functorch import peek_interpreter_stack
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import functorch_hops as fh
from functorch_hops.ops.mode import is_capturing
from functorch_hops.trace.capture import current_capture


def state() -> dict[str, Any]:
    """What a call may have left switched on, on this thread."""
    return {
        "transform": peek_interpreter_stack(),
        "function modes": list(_get_current_function_mode_stack()),
        "dispatch modes": list(_get_current_dispatch_mode_stack()),
        "grad": torch.is_grad_enabled(),
        "forward grad": torch.autograd.forward_ad._is_fwd_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "included keys": torch._C._dispatch_tls_local_include_set().raw_repr(),
        "excluded keys": torch._C._dispatch_tls_local_exclude_set().raw_repr(),
        "saved tensor hooks": torch._C._autograd._top_saved_tensors_default_hooks(True),
        "capture": current_capture(),
        "capturing": is_capturing(),
    }


def are_gone(*references: weakref.ref[Any]) -> bool:
    """Whether nothing but cycles keeps the objects of a test alive.

    Young objects are looked through first: all that other tests left behind takes seconds.
    """
    for generation in (1, 2):
        gc.collect(generation)
        if all(reference() is None for reference in references):
            return True
    return False


def correct_call() -> None:
    """Every part of the machinery once: capture, lanes, both derivatives."""

    def f(x):
        grown = fh.while_loop(lambda v: v.sum() < 9, lambda v: v * 2, x.abs() + 1)
        return fh.cond(x.sum() > 0, torch.sin, torch.cos, grown).sum()

    x = torch.tensor([[0.5, 1.0], [-1.0, 0.2]], dtype=torch.float64)

    def oracle(x):
        v = x.abs() + 1
        while v.sum() < 9:
            v = v * 2
        return (v.sin() if x.sum() > 0 else v.cos()).sum()

    torch.testing.assert_close(fh.vmap(fh.grad(f))(x), torch.stack([torch.func.grad(oracle)(v) for v in x]))


@contextlib.contextmanager
def nothing_left_behind(then_call: bool = True) -> Iterator[None]:
    before = state()
    yield
    after = state()
    assert after == before
    if then_call:
        correct_call()
