"""How Inductor's code comes to call the functions of ``vector_math.h`` (torch 2.13)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["VECTOR_MATH", "kernel_proxy"]

VECTOR_MATH = Path(__file__).with_name("vector_math.h").read_text()

_FUNCTIONS = "exp", "expm1", "log", "log1p", "tanh", "sigmoid", "sin", "cos", "erf"


def _call(name: str) -> Callable[[Any], str]:
    return lambda x: f"fh::{name}({x})"


@functools.cache
def kernel_proxy() -> Any:
    """Inductor's generator of C++ kernels, with functions of ours."""
    from torch._inductor.codegen import cpp
    from torch._inductor.codegen.cpp_utils import CppCSEVariable, promote_args
    from torch._inductor.virtualized import V

    class Functions:
        """In front of Inductor's own overrides, of numbers or of vectors: C++ overloading tells these apart."""

        def __new__(cls) -> Any:
            self = super().__new__(cls)
            for name in (*_FUNCTIONS, "pow"):
                vars(self).pop(name, None)  # Inductor's, wrapped once more for each instance
            return self

        @staticmethod
        def pow(a: Any, b: Any) -> str:
            if any(isinstance(x, CppCSEVariable) and x.is_vec for x in (a, b)):
                a, b = (x if x.is_vec else V.kernel.broadcast(x) for x in promote_args([a, b]))  # type: ignore[attr-defined]
            return f"fh::pow({a}, {b})"

    for name in _FUNCTIONS:
        setattr(Functions, name, staticmethod(_call(name)))

    def with_functions(kernel: Any) -> Any:
        overrides = type(kernel.overrides.__name__, (Functions, kernel.overrides), {})
        return type(kernel.__name__, (kernel,), {"overrides": overrides})

    class KernelProxy(cpp.CppKernelProxy):
        kernel_cls = with_functions(cpp.CppKernel)
        vec_kernel_cls = with_functions(cpp.CppVecKernel)
        tile2d_kernel_cls = with_functions(cpp.CppTile2DKernel)

    return KernelProxy
