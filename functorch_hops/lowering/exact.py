"""What is wrong with the code that Inductor (torch 2.13, or what a function names) generates, put right while it does.

Of kernels, those of graphs and those of loops; what is wrong with a graph around them is put right in ``cures``. Each
function says what goes wrong without it.
"""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import math
from collections.abc import Iterator
from typing import Any

import torch

from .loops.throwing import thrown

__all__ = ["exact_arithmetic", "lowered_by", "replaced", "strides_read"]


@contextlib.contextmanager
def exact_arithmetic() -> Iterator[None]:
    """While code is generated, for a graph or for the kernel of a loop."""
    with (
        _reads_after_writes(),
        _writes_not_local(),
        _rounded_constants(),
        _exact_scalars(),
        _exponents_of_doubles(),
        _small_numbers(),
        _casts_rounded(),
        _numbers_rounded(),
        _short_vectors_reduced(),
        _errors_thrown(),
        strides_read(),
    ):
        yield


@contextlib.contextmanager
def _reads_after_writes() -> Iterator[None]:
    """Keep a read of what was written in place behind the write: where Inductor (torch 2.13) fits the loops of one
    kernel to those of another, it forgets which version of a buffer the kernel reads.
    """
    from torch._inductor.scheduler import SchedulerNode

    def recompute(node: Any, *args: Any, **kwargs: Any) -> None:
        original(node, *args, **kwargs)
        node.set_read_writes(node.read_writes.rename(node.mutation_renames))

    original: Any = SchedulerNode.recompute_size_and_body
    with replaced(SchedulerNode, "recompute_size_and_body", recompute):
        yield


@contextlib.contextmanager
def _writes_not_local() -> Iterator[None]:
    """Leave what is written in place in its memory. Inductor (torch 2.13, pytorch/pytorch#196570) asks whether a
    kernel's loops all read it in order, to keep it local to the kernel; but they read it by the name of the memory,
    and the name of the write is not found.
    """
    from torch._inductor.loop_body import LoopBody

    def read(body: Any, name: str) -> Any:
        return next(iter(body.get_all_read_expr(name)), None)

    with replaced(LoopBody, "get_read_expr", read):  # which asks for nothing else
        yield


@contextlib.contextmanager
def _rounded_constants() -> Iterator[None]:
    """Round what Inductor computes of constants: it does so in Python's numbers (torch 2.13), and the same expression
    has another value in a kernel where it is unrolled than in one where it is not.
    """
    from torch._inductor.index_propagation import TypedExpr
    from torch._inductor.utils import get_dtype_size

    def rounded(expression: Any) -> None:
        original(expression)
        if type(expression.expr) is float and get_dtype_size(expression.dtype) < get_dtype_size(torch.float64):
            expression.expr = ctypes.c_float(expression.expr).value  # kernels compute in no less

    original: Any = TypedExpr.__post_init__
    with replaced(TypedExpr, "__post_init__", rounded):
        yield


@contextlib.contextmanager
def _exact_scalars() -> Iterator[None]:
    """Leave a number that is an operand beside a half-precision tensor as it is. Inductor (torch 2.15) rounds it where
    all eager kernels do, and then once more with the operator's other operands, which a product in eager does not do.
    """
    from torch._inductor.index_propagation import SymPyOps, TypedExpr

    class Scalar(TypedExpr):
        """A number that nothing was computed of."""

    def to_dtype(value: Any, dtype: torch.dtype, *args: Any, **kwargs: Any) -> Any:
        if isinstance(value, Scalar) and value.dtype == dtype:
            return value
        return original(value, dtype, *args, **kwargs)

    def constant(value: Any, dtype: torch.dtype) -> Any:
        return Scalar(value, dtype)

    original: Any = SymPyOps.to_dtype
    with (
        replaced(SymPyOps, "constant", staticmethod(constant)),
        replaced(SymPyOps, "to_dtype", staticmethod(to_dtype)),
    ):
        yield


@contextlib.contextmanager
def _exponents_of_doubles() -> Iterator[None]:
    """Hold the exponents of doubles (``frexp``) in as many vectors as other numbers of 32 bits. Inductor (torch 2.13)
    takes as many as the doubles have, and no conversion of them compiles.
    """
    from torch._inductor.codegen.cpp import CppVecOverrides
    from torch._inductor.virtualized import V

    def frexp(x: Any) -> tuple[Any, Any]:
        mantissa, exponent = original(x)
        kernel: Any = V.kernel
        if kernel._get_num_vectors(x.dtype) != kernel._get_num_vectors(torch.int32):
            exponent = kernel.cse.generate(kernel.compute, f"{exponent}[0]", dtype=torch.int32)
        return mantissa, exponent

    original: Any = CppVecOverrides.frexp
    with replaced(CppVecOverrides, "frexp", staticmethod(frexp)):
        yield


@contextlib.contextmanager
def _small_numbers() -> Iterator[None]:
    """Compute functions that are linear at zero to the precision of small numbers. In vectors Inductor (torch 2.13)
    makes ``exp(x) - 1`` of ``expm1``, which ``elu`` is made of, and a logarithm of ``atanh``; torch's error function of
    vectors of floats has an error of 1e-7. All were zero at 1e-9. Below 1/4 floats take the Taylor series, up to the
    term that is less than the last place: the functions of C's library take twice as long.
    """
    from torch._inductor.codegen.cpp import CppVecOverrides

    def with_series(name: str, is_odd: bool, series: tuple[float, ...]) -> contextlib.AbstractContextManager[None]:
        def function(x: Any) -> str:
            if x.dtype != torch.float32:
                return f"{x}.{name}()"
            terms = f"V({series[-1]!r}f)"
            for term in reversed(series[:-1]):
                terms = f"({terms} * t + V({term!r}f))"
            square = f"{x} * {x}" if is_odd else x
            small = f"V({x}.abs() < V(0.25f))"
            chosen = f"V::blendv({original(x)}, {terms} * {x}, {small})"
            return f"[&]() {{ using V = decltype({x}); auto t = {square}; return {chosen}; }}()"

        original: Any = getattr(CppVecOverrides, name)
        function.__name__ = name  # by which Inductor finds the function of a scalar
        return replaced(CppVecOverrides, name, staticmethod(function))

    with (
        with_series("expm1", False, tuple(1 / math.factorial(n) for n in range(1, 7))),
        with_series("atanh", True, tuple(1 / n for n in range(1, 12, 2))),
        with_series("erf", True, tuple(_OF_ERF * (-1) ** n / math.factorial(n) / (2 * n + 1) for n in range(4))),
    ):
        yield


_OF_ERF = 2 / math.sqrt(math.pi)


@contextlib.contextmanager
def _casts_rounded() -> Iterator[None]:
    """Round what is cast to half precision. Inductor (torch 2.13, pytorch/pytorch#185337) goes on with the number
    before the cast: it computes in floats, and C++ takes a float for the half made of it, so
    ``x - x.bfloat16().float()`` was zero. So does ``where`` with what it casts to the dtype of its result, and the cast
    of a number that is known.
    """
    from torch._inductor.codegen.cpp import CppKernel
    from torch._inductor.index_propagation import SymPyOps
    from torch._inductor.lowering import get_promoted_dtype, lowerings, make_pointwise
    from torch._inductor.virtualized import ops
    from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND

    def convert(x: Any, dtype: torch.dtype) -> Any:
        source = x.get_dtype()
        if dtype not in _HALF or source in (dtype, torch.bool):
            return converted(x, dtype)

        def rounded(value: Any) -> Any:
            half = ops.to_dtype(value, dtype, src_dtype=source, use_compute_types=False)
            return ops.to_dtype(half, dtype)  # a float again, in which kernels compute

        return make_pointwise(rounded, override_return_dtype=dtype)(x)

    def where(condition: Any, x: Any, y: Any) -> Any:
        dtype = get_promoted_dtype(x, y, type_promotion_kind=ELEMENTWISE_TYPE_PROMOTION_KIND.DEFAULT)
        return chosen(condition, convert(x, dtype), convert(y, dtype))

    def of_known(value: Any, dtype: torch.dtype, src_dtype: Any = None, use_compute_types: bool = True) -> Any:
        is_rounded = dtype in _HALF and value.dtype != dtype and not use_compute_types
        return NotImplemented if is_rounded else known(value, dtype, src_dtype, use_compute_types)

    aten, prims = torch.ops.aten, torch.ops.prims
    known: Any = SymPyOps.to_dtype
    converted = lowerings[prims.convert_element_type.default]
    chosen = lowerings[aten.where.self]
    with (
        lowered_by(prims.convert_element_type.default, convert),
        lowered_by(aten.where.self, where),
        replaced(SymPyOps, "to_dtype", staticmethod(of_known)),
        replaced(CppKernel, "cache_dtype_convert", lambda *args: None),
    ):
        yield


_HALF = torch.float16, torch.bfloat16


@contextlib.contextmanager
def _numbers_rounded() -> Iterator[None]:
    """Round a number that an operator hands on in half precision: Inductor (torch 2.13) writes it as it is into a
    kernel that computes in floats, where ``torch.full((), 0.1, dtype=torch.bfloat16).float()`` was 0.1.
    """
    from torch._inductor.lowering import lowerings

    def with_rounded(operator: Any, place: int, *, is_made: bool = False) -> contextlib.AbstractContextManager[None]:
        def lower(*args: Any, **kwargs: Any) -> Any:
            number = args[place] if len(args) > place else None
            if isinstance(number, (int, float)):
                dtype = (kwargs.get("dtype") or torch.tensor(number).dtype) if is_made else args[0].get_dtype()
                if dtype in _HALF:
                    args = *args[:place], torch.tensor(number, dtype=dtype).item(), *args[place + 1 :]
            return original(*args, **kwargs)

        original: Any = lowerings[operator]
        return lowered_by(operator, lower)

    aten = torch.ops.aten
    with (
        with_rounded(aten.full.default, 1, is_made=True),
        with_rounded(aten.scalar_tensor.default, 0, is_made=True),
        with_rounded(aten.constant_pad_nd.default, 2),
        with_rounded(aten.clamp_min.default, 1),
        with_rounded(aten.clamp_max.default, 1),
    ):
        yield


@contextlib.contextmanager
def _short_vectors_reduced() -> Iterator[None]:
    """Reduce the lanes of a vector that hold elements. Of integers of one or two bytes Inductor (torch 2.13) loads as
    many as a vector has numbers of 32 bits, and reduces what is in the other lanes, too.
    """
    from torch._inductor.codegen.cpp import CppVecKernel

    def combine(kernel: Any, reduction_type: str, *args: Any, **kwargs: Any) -> str:
        dtype = kwargs.get("src_dtype")
        is_short = dtype in _SHORT_INTEGERS and kernel._get_raw_num_vectors(dtype) < 1
        if kernel.tail_size is not None or not is_short:
            return str(original(kernel, reduction_type, *args, **kwargs))
        kernel.tail_size = kernel.tiling_factor
        try:
            return str(original(kernel, reduction_type, *args, **kwargs))
        finally:
            kernel.tail_size = None

    original: Any = CppVecKernel.reduction_combine_vec
    with replaced(CppVecKernel, "reduction_combine_vec", combine):
        yield


_SHORT_INTEGERS = torch.uint8, torch.int8, torch.int16


@contextlib.contextmanager
def _errors_thrown() -> Iterator[None]:
    """See NOTE [What kernels throw]."""
    from torch._inductor.codegen.cpp import KernelGroup

    def generate(group: Any, *args: Any, **kwargs: Any) -> str:
        return thrown(original(group, *args, **kwargs))

    original: Any = KernelGroup.codegen_group
    with replaced(KernelGroup, "codegen_group", generate):
        yield


@contextlib.contextmanager
def strides_read() -> Iterator[None]:
    """Read the stride of an index off its terms. Inductor (torch 2.13) has sympy simplify the index, and the difference
    of two, which takes some 15 ms for each operand of a kernel, where most indices are sums of multiples of variables.
    """
    import sympy
    from torch._inductor.codegen import cpp

    def stride_at(index: Any, var: Any, vec_length: int | None = None) -> Any:
        terms = [term.as_coeff_Mul() for term in sympy.Add.make_args(index)]
        if all(factor.is_Integer and (of is sympy.S.One or of.is_Symbol) for factor, of in terms):
            return sum((factor for factor, of in terms if of == var), sympy.S.Zero)
        return original(index, var, vec_length)

    original: Any = cpp.stride_at_vec_range
    with replaced(cpp, "stride_at_vec_range", stride_at):
        yield


@contextlib.contextmanager
def lowered_by(operator: Any, lowering: Any) -> Iterator[None]:
    from torch._inductor.lowering import lowerings

    original = lowerings[operator]
    lowerings[operator] = lowering
    try:
        yield
    finally:
        lowerings[operator] = original


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = inspect.getattr_static(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)
