"""What Triton's interpreter lacks: NVIDIA's library of functions, by NumPy, and loops of as many steps as a number says
that is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from torch._inductor.runtime.triton_helpers import libdevice
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle

__all__ = ["provide"]

_SAME = {
    **{name: getattr(np, name) for name in ("cos", "exp", "exp2", "expm1", "floor", "fmod", "isnan", "log", "log1p")},
    **{name: getattr(np, name) for name in ("ceil", "copysign", "isinf", "sin", "sinh", "tan", "tanh", "trunc")},
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **_SAME,
    "atan2": np.arctan2,
    "cospi": lambda x: np.cos(np.pi * x.astype(np.float64)),
    "erf": np.vectorize(math.erf),
    "hypot": np.hypot,
    "nearbyint": np.rint,
    "pow": np.power,
    "rsqrt": lambda x: 1 / np.sqrt(x),
}
_TESTS = "isinf", "isnan"


def _interpreted(name: str) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        values = np.broadcast_arrays(*(x.handle.data for x in args))
        dtype = tl.int32 if name in _TESTS else args[0].dtype
        with np.errstate(all="ignore"):
            result = np.asarray(_FUNCTIONS[name](*values)).astype(np.int32 if name in _TESTS else values[0].dtype)
        is_block = any(x.type.is_block() for x in args)
        return tl.tensor(TensorHandle(result, dtype), tl.block_type(dtype, list(result.shape)) if is_block else dtype)

    return call


_patch = interpreter._patch_lang_tensor


def _patched(tensor: Any, scope: Any) -> None:
    _patch(tensor, scope)
    tensor.__index__ = lambda self: self.handle.data.item()  # NumPy makes no number of an array of one


def provide() -> None:
    for name in _FUNCTIONS:
        setattr(libdevice, name, _interpreted(name))
    interpreter._patch_lang_tensor = _patched
