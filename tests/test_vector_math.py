"""The functions of ``vector_math.h``: their error in units in the last place, for vectors and for single numbers."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.cpp_builder import CppBuilder, CppTorchOptions
from torch._inductor.cpu_vec_isa import invalid_vec_isa, valid_vec_isa_list

import functorch_hops as fh
from functorch_hops.lowering.inductor import exact_code
from functorch_hops.lowering.loops.operator import loop_kernel
from functorch_hops.lowering.loops.planning import planned
from functorch_hops.lowering.loops.vector_math import VECTOR_MATH

FUNCTIONS: dict[str, tuple[Callable[..., Tensor], float]] = {
    "exp": (torch.exp, 1.0),
    "expm1": (torch.expm1, 1.4),
    "log": (torch.log, 0.9),
    "log1p": (torch.log1p, 1.5),
    "tanh": (torch.tanh, 2.4),
    "sigmoid": (torch.sigmoid, 2.2),
    "sin": (torch.sin, 1.6),
    "cos": (torch.cos, 1.6),
    "erf": (torch.erf, 1.0),
    "pow": (torch.pow, 0.8),
    "half_power<-3>": (lambda x: x**-1.5, 0.6),
    "half_power<-5>": (lambda x: x**-2.5, 0.6),
    "half_power<3>": (lambda x: x**1.5, 0.6),
    "half_power<7>": (lambda x: x**3.5, 0.6),
}
"""Each function in double precision, and the error of ours, rounded up."""

ENDS = [0.0, torch.inf, torch.nan, 1e-45, 1e-40, 1.1754942e-38, 1.17549435e-38, 1e-20, 0.5, 0.99999994, 1.0, 1.0000001]
ENDS += [1.5, 2.0, 3.0, 88.7, 88.72284, 88.73, 103.9, 104.1, 65535.0, 65536.0, 1e10, 1e30, 8388607.5, 8388609.0]
ENDS += [16777215.0, 16777216.0, 1.7014118e38, 3.4028235e38]

VECTORS = {isa.build_macro()[0].removeprefix("CPU_CAPABILITY_"): isa for isa in valid_vec_isa_list()}


def symbol(name: str) -> str:
    return re.sub(r"\W", "_", name) + "_"


SOURCE = "\n".join(
    [
        "#include <torch/csrc/inductor/cpp_prefix.h>",
        VECTOR_MATH,
        r"""
#if FH_HAS_VECTORS
using fh::math::Vector;
#else
struct Vector {  // of one lane
  float x;
  static constexpr int size() { return 1; }
  static Vector loadu(const float* p) { return {*p}; }
  void store(float* p) const { *p = x; }
};
#endif
template <class F> void each(const float* x, float* out, int64_t n, F f) {
  for (int64_t i = 0; i < n; i += Vector::size()) f(Vector::loadu(x + i), i).store(out + i);
}""",
        *(
            f"""
extern "C" void {symbol(name)}(const float* x, const float* y, float* lanes, float* numbers, int64_t n) {{
#if FH_HAS_VECTORS
  each(x, lanes, n, [&](Vector v, [[maybe_unused]] int64_t i) {{ return fh::{name}({vector}); }});
#endif
  for (int64_t i = 0; i < n; ++i) numbers[i] = fh::{name}({number});
}}"""
            for name in FUNCTIONS
            for vector, number in [("v, Vector::loadu(y + i)", "x[i], y[i]") if name == "pow" else ("v", "x[i]")]
        ),
    ]
)


@pytest.fixture(scope="module", params=[*VECTORS, "none"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, bool]:
    """The functions, compiled for a machine, and whether it has vectors."""
    folder = tmp_path_factory.mktemp("vector_math")
    path = Path(folder, "functions.cpp")
    path.write_text(SOURCE)
    isa, flags = (VECTORS[request.param], ()) if request.param in VECTORS else (invalid_vec_isa, ("-mno-avx",))
    options = CppTorchOptions(vec_isa=isa, extra_flags=flags)
    builder = CppBuilder("functions", [str(path)], options, str(folder))
    builder.build()
    return ctypes.CDLL(builder.get_target_file_path()), isa is not invalid_vec_isa


def arguments(name: str) -> tuple[Tensor, Tensor]:
    """Floats of all sizes; pairs of which few overflow; all pairs of numbers at which something ends."""
    ends = torch.tensor([sign * x for x in ENDS for sign in (1.0, -1.0)])
    steps = torch.arange(-(2**31), 2**31, 4099).to(torch.int32).view(torch.float32)
    if name != "pow":
        x = torch.cat([ends, steps])
        return _whole_vectors(x), _whole_vectors(x)
    generator = torch.Generator().manual_seed(0)
    first, second, third = torch.randn(3, 200_000, generator=generator)
    pairs = torch.cartesian_prod(ends, ends)
    x = torch.cat([pairs[:, 0], (3 * first).exp(), -(3 * first).exp(), 1 + 1e-3 * first, steps])
    y = torch.cat([pairs[:, 1], 8 * second, (8 * second).round(), 1e4 * third, steps.flip(0)])
    return _whole_vectors(x), _whole_vectors(y)


def _whole_vectors(x: Tensor) -> Tensor:
    return x[: len(x) // 64 * 64].contiguous()


def error(got: Tensor, exact: Tensor) -> Tensor:
    """In units in the last place of a float. Overflow is a number after the largest one."""
    got, exact = (x.double().clamp(-(2.0**128), 2.0**128) for x in (got, exact))
    unit = 2.0 ** (torch.frexp(exact)[1] - 24).clamp(-149, 104).double()
    return (got - exact).abs() / unit


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_error_of_a_function(name: str, library: tuple[Any, bool]) -> None:
    functions, has_vectors = library
    f, limit = FUNCTIONS[name]
    x, y = arguments(name)
    lanes, numbers = torch.empty_like(x), torch.empty_like(x)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (x, y, lanes, numbers)]
    getattr(functions, symbol(name))(*pointers, ctypes.c_int64(len(x)))
    exact = f(x.double(), y.double()) if name == "pow" else f(x.double())
    known = ~exact.isnan()
    assert torch.equal(~numbers.isnan(), known)
    assert torch.equal(numbers[known].signbit(), exact[known].signbit())
    assert error(numbers[known], exact[known]).max() <= limit
    if has_vectors:
        assert torch.equal(lanes.isnan(), numbers.isnan())
        assert torch.equal(lanes[known].view(torch.int32), numbers[known].view(torch.int32))


def every_function(c: Tensor) -> Tensor:
    positive = c.abs() + 0.1
    softplus = torch.nn.functional.softplus(c)
    parts = [c.exp(), c.expm1(), positive.log(), positive.log1p(), c.tanh(), c.sigmoid(), c.sin(), c.cos(), c.erf()]
    roots = [positive**exponent for exponent in (-2.5, -1.5, 1.5, 3.5)]
    return (sum(parts) + positive**1.3 + softplus) * 0.1 + 1e-4 * sum(root.clamp(max=5) for root in roots)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("step", [every_function, lambda c: every_function(c) + c.flip(0)], ids=["lanes", "steps"])
def test_a_lane_does_not_depend_on_its_place(step: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    def f(c: Tensor) -> Tensor:
        return fh.fori_loop(0, 5, lambda _, c: step(c), c)

    c = torch.full((45,), 0.7, dtype=dtype)
    got = fh.jit(f)(c)
    assert got.unique().numel() == 1
    torch.testing.assert_close(got, f(c))


def test_kernels_call_them() -> None:
    def f(c: Tensor) -> Tensor:
        return fh.fori_loop(0, 5, lambda _, c: every_function(c), c)

    with exact_code():
        body = planned(fh.jit(f).lower(torch.ones(45))._body, {}).body
    (node,) = body.module.graph.find_nodes(op="call_function", target=loop_kernel)
    parts: Any = node.args[3]
    assert all(f"fh::{name}(" in "".join(parts) for name in FUNCTIONS)
