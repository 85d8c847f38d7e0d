"""How Inductor's code comes to call the functions of ``cpp/vector_math.h`` and ``cpp/vectors.h`` (torch 2.13)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch.torch_version import TorchVersion

from .headers import header
from .index_sets import MIRRORED, Interval, is_within, most_indices, splitting_handler
from .tiling import FUNCTIONS, tilings_by_work

__all__ = ["VECTOR_MATH", "kernel_proxy"]

VECTOR_MATH = f"{header('vector_math')}\n{header('vectors')}"

_DRAWN = {
    "rand": ("uniform", torch.float32),
    "randn": ("normal", torch.float32),
    "randint64": ("integer", torch.int64),
}

_WIDE = torch.float32, torch.float64, torch.int32, torch.int64
"""Of which parts of vectors are read and written in words: see ``fh::First``."""
_INTEGERS = torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64

_LARGEST_HALF = 3.5
"""Exponents with a half, up to which roots and products take less than a power."""


def _twice(exponent: Any) -> int | None:
    is_half = isinstance(exponent, float) and abs(exponent) <= _LARGEST_HALF and exponent % 1 == 0.5
    return int(2 * exponent) if is_half else None


def _call(name: str) -> Callable[[Any], str]:
    return lambda x: f"fh::{name}({x})"


@functools.cache
def kernel_proxy() -> Any:
    """Inductor's generator of C++ kernels, with functions of ours."""
    import sympy
    from torch._inductor import config
    from torch._inductor.codegen import cpp
    from torch._inductor.codegen.common import BracesBuffer, IndentedBuffer
    from torch._inductor.codegen.cpp_utils import CppCSEVariable, codegen_rand, promote_args
    from torch._inductor.virtualized import V

    def is_vector(x: Any) -> bool:
        return isinstance(x, CppCSEVariable) and x.is_vec

    def vector(x: Any) -> Any:
        return x if x.is_vec else V.kernel.broadcast(x)

    class Variable(CppCSEVariable):
        number: Any = None
        """Which it is, if that is known."""

        def update_on_args(self, name: str, args: Any, kwargs: Any) -> None:
            super().update_on_args(name, args, kwargs)
            if name == "constant":
                self.number = args[0]

    def limited(general: Callable[[Any, Any], Any], name: str) -> Callable[[Any, Any], Any]:
        """The larger or smaller of lanes and one number."""

        def choose(a: Any, b: Any) -> Any:
            x, limit = (b, a) if is_vector(b) else (a, b)
            is_number = isinstance(limit, CppCSEVariable) and not limit.is_vec and limit.dtype is x.dtype
            if is_vector(x) and is_number and x.dtype in (torch.float32, torch.float64):
                return f"fh::{name}({x}, {limit})"
            return general(a, b)

        return choose

    def by_number(general: Callable[[Any, Any], Any], name: str) -> Callable[[Any, Any], Any]:
        """Of integers, by a positive number that is known: neither a division nor a question for zero."""

        def divide(a: Any, b: Any) -> Any:
            number = b.number if isinstance(b, Variable) else None
            if type(number) is not int or a.dtype not in _INTEGERS or not 0 < number <= torch.iinfo(a.dtype).max:
                return general(a, b)
            return f"fh::{name}<{number}>({a})"

        return divide

    def product(general: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Of lanes of 64 bits: torch's goes from lane to lane."""

        def multiply(a: Any, b: Any) -> Any:
            is_long = all(isinstance(x, CppCSEVariable) and x.dtype is torch.int64 for x in (a, b))
            if not (is_long and (a.is_vec or b.is_vec)):
                return general(a, b)
            return f"fh::product({vector(a)}, {vector(b)})"

        return multiply

    class Functions:
        """In front of Inductor's own overrides, of numbers or of vectors: C++ overloading tells these apart."""

        def __new__(cls) -> Any:
            self: Any = super().__new__(cls)
            for name in (*FUNCTIONS, *_DRAWN, "pow"):
                vars(self).pop(name, None)  # Inductor's, wrapped once more for each instance
            self.maximum = limited(self.maximum, "at_least")
            self.minimum = limited(self.minimum, "at_most")
            self.mul = product(self.mul)
            self.floordiv = by_number(self.floordiv, "floor_divide")
            self.remainder = by_number(self.remainder, "remainder")
            return self

        @staticmethod
        def pow(a: Any, b: Any) -> str:
            twice = _twice(b.number) if isinstance(b, Variable) else None
            if twice is not None and a.dtype is torch.float32:
                return f"fh::half_power<{twice}>({a})"
            if is_vector(a) or is_vector(b):
                a, b = map(vector, promote_args([a, b]))
            return f"fh::pow({a}, {b})"

    def drawn(function: str, dtype: torch.dtype) -> Callable[..., Any]:
        """A number by count (NOTE [Numbers by count]); Inductor's own have keys of 32 bits."""

        def draw(key: Any, count: Any, *limits: Any) -> Any:
            if not is_vector(count):
                return f"fh::{function}({', '.join(map(str, (key, count, *limits)))})"
            each = ", ".join(map(str, (key, "offset[offset_idx]", *limits)))
            return codegen_rand(count, BracesBuffer(), f"result[offset_idx] = fh::{function}({each});", dtype)

        return draw

    for name, (function, dtype) in _DRAWN.items():
        setattr(Functions, name, staticmethod(drawn(function, dtype)))
    for name in FUNCTIONS:
        setattr(Functions, name, staticmethod(_call(name)))

    class OpenSums:
        """torch 2.11 asks whether a sum is so long that it takes care of rounding, and learns that of an open size."""

        def need_use_acc_helper(self: Any, reduction_type: str, dtype: torch.dtype, use_scalar: bool) -> bool:
            size = math.prod(self.call_ranges[self.reduction_depth :])
            if reduction_type == "sum" and not isinstance(size, (int, sympy.Integer)):
                return False
            needed: bool = super().need_use_acc_helper(reduction_type, dtype, use_scalar)  # type: ignore[misc]
            return needed

    before = (OpenSums,) if TorchVersion(torch.__version__) < "2.13" else ()

    def with_functions(kernel: Any) -> Any:
        overrides = type(kernel.overrides.__name__, (Functions, kernel.overrides), {})
        members = {"overrides": overrides, "create_cse_var": staticmethod(Variable)}
        return type(kernel.__name__, (*before, kernel), members)

    class ScalarKernel(with_functions(cpp.CppKernel)):  # type: ignore[misc]
        """Inductor knows by the very class which kernel loops over a whole inner range by itself, hence runs once."""

        def codegen_conditions(self, *args: Any, **kwargs: Any) -> Any:
            whole = {v: (0, size) for v, size in zip(self.itervars[1:], self.ranges[1:])}
            active: dict[Any, Any] = self.active_ranges  # type: ignore[has-type]
            self.active_ranges = {v: (0, 1) if limits == whole.get(v) else limits for v, limits in active.items()}
            try:
                return super().codegen_conditions(*args, **kwargs)
            finally:
                self.active_ranges = active

    class OfVectors(type):
        """Inductor asks whether a kernel is of the class of those of vectors: its kernels of tiles are too."""

        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, cpp.CppVecKernel)

    class VecKernel(with_functions(cpp.CppVecKernel), metaclass=OfVectors):  # type: ignore[misc]
        """Reads and writes masks of whole vectors, and finds where a value is the largest, by functions of ours.
        ``intervals``: between which its indices lie, where these are not all (NOTE [Usual indices]).
        """

        intervals: Mapping[Any, Interval] = MappingProxyType({})

        def set_ranges(self, *groups: Any) -> Any:
            """What comes before anything is computed."""
            variables = super().set_ranges(*groups)
            sizes = {v: int(n) for v, n in zip(self.itervars, self.ranges) if isinstance(n, (int, sympy.Integer))}
            self.indices = splitting_handler()(V.get_ops_handler(), sizes, self.intervals, self._lanes)
            self.exit_stack.enter_context(V.set_ops_handler(self.indices))
            return variables

        def _lanes(self, name: str, difference: Any) -> Any:
            """The lanes in which an index is so compared with 0; None: all alike, or unknown."""
            factor = difference.coeff(self.itervars[self.tiling_idx])
            if abs(factor) != 1 or name in ("eq", "ne"):
                return None
            name = name if factor == 1 else MIRRORED[name]
            place = cpp.cexpr_index(int(name in ("le", "gt")) - factor * difference)
            is_before = str(name in ("lt", "le")).lower()
            text = f"fh::lanes<{self._get_num_vectors(torch.float)}, {is_before}>({place})"
            mask = self.cse.generate(self.compute, text, dtype=torch.bool)
            mask.update_on_args("index_expr", (difference, torch.bool), {})
            mask.is_vec = True
            return mask

        def usual(self) -> dict[Any, Interval]:
            is_split = self.reduction_depth == len(self.itervars) and self.tail_size is None
            tiled = self.itervars[self.tiling_idx]
            return most_indices(self.indices, tiled, self.tiling_factor) if is_split else {}

        def _finds_floats(self, reduction_type: str, dtype: torch.dtype) -> bool:
            """Whether a reduction asks for the place of a float, a vector at a time, and places have 32 bits."""
            if reduction_type not in ("argmax", "argmin") or dtype is not torch.float32:
                return False
            if self._get_num_vectors(dtype) != 1:
                return False
            n_places = math.prod(self.ranges[self.reduction_depth :])
            return isinstance(n_places, (int, sympy.Integer)) and n_places < 2**31

        def reduction_acc_type_vec(self, reduction_type: str, dtype: torch.dtype) -> str:
            if self._finds_floats(reduction_type, dtype):
                return "fh::Found"
            return super().reduction_acc_type_vec(reduction_type, dtype)

        def reduction_combine_vec(
            self, reduction_type: str, var: Any, next_value: Any, *args: Any, **kwargs: Any
        ) -> str:
            index = kwargs.get("index")
            if index is None or not self._finds_floats(reduction_type, kwargs["src_dtype"]):
                return super().reduction_combine_vec(reduction_type, var, next_value, *args, **kwargs)
            if is_vector(index):
                lanes = f"at::vec::convert<int32_t, 1, int64_t, {self._get_num_vectors(torch.int64)}>({index})"
            else:
                place = cpp.cexpr_index(index) if isinstance(index, sympy.Expr) else index
                lanes = f"at::vec::Vectorized<int32_t>::arange({place}, {int(bool(kwargs['horizontal_reduction']))})"
            tail = f", {cpp.cexpr_index(self.tail_size)}" if self.tail_size else ""
            return f"fh::found<{str(reduction_type == 'argmax').lower()}>({var}, {next_value}, {lanes}{tail})"

        def _get_vec_load_line(self, var: str, index: Any, dtype: torch.dtype, load_mask: Any = None) -> Any:
            place, count = f"{var} + {cpp.cexpr_index(index)}", self.tail_size
            if load_mask is None:
                if dtype is torch.bool and count is None:
                    return f"fh::LoadedMask<{self._get_mask_type()}>::of({place})"
                kind = self._get_vec_type(dtype)
                if count is None and self._get_raw_num_vectors(dtype) >= 1:  # with a count they go through memory
                    return f"{kind}::loadu({place})"
                if count is not None and dtype in _WIDE:
                    return f"fh::First<{kind}>::load({place}, {cpp.cexpr_index(count)})"
            return super()._get_vec_load_line(var, index, dtype, load_mask)

        def _get_store_line(
            self, value: Any, var: str, index: Any, dtype: torch.dtype, accu_store: bool = False
        ) -> Any:
            place, count = f"{var} + {cpp.cexpr_index(index)}", self.tail_size
            is_row = self._try_get_const_stride(index, self.itervars[self.tiling_idx]) == 1
            code = IndentedBuffer()
            is_mask = is_vector(value) and value.dtype is torch.bool
            if is_row and count is None and dtype is torch.bool and is_mask and not accu_store:
                code.writeline(f"fh::store_mask<{self.tiling_factor}>({value}, {place});")
                return code
            if is_row and count is not None and dtype in _WIDE:
                before = f" + {self._get_vec_load_line(var, index, dtype)}" if accu_store else ""
                code.writeline(f"fh::store_first({value}{before}, {place}, {cpp.cexpr_index(count)});")
                return code
            return super()._get_store_line(value, var, index, dtype, accu_store)

    class KernelProxy(cpp.CppKernelProxy):
        kernel_cls = ScalarKernel
        vec_kernel_cls = VecKernel
        tile2d_kernel_cls = with_functions(cpp.CppTile2DKernel)
        usual: Any = None

        def codegen_functions(self, functions: Any, sizes: Any) -> None:
            with tilings_by_work():
                super().codegen_functions(functions, sizes)
            general: Any = self.kernels[0]
            intervals = general.usual() if type(general) is VecKernel else {}
            if intervals:
                kernel = self.kernel_group.new_kernel(VecKernel, general.tiling_factor, general.tiling_idx)
                kernel.intervals = intervals
                with config.patch(inplace_buffers=False), kernel:  # as for all kernels but the first
                    variables = kernel.set_ranges(*max(sizes, key=lambda groups: len(groups[1])))
                    for function in functions:
                        function(*variables)
                self.usual = kernel

        def gen_body(self, code: Any = None) -> None:
            if self.usual is None:
                super().gen_body(code)
                return
            tiled = self.usual.itervars[self.usual.tiling_idx]
            lengths = {tiled: self.usual.tiling_factor}
            code.writeline(f"if ({is_within(self.usual.intervals, lengths)})")
            with code.indent():
                code.splice(self.usual.gen_body())
            code.writeline("else")
            with code.indent():
                super().gen_body(code)

    return KernelProxy
