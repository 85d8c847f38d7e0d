"""Small matrix products inside a loop.

A call of BLAS costs as much as the product of a small cell, and MKL is slow on such sizes: here it is a template of the
sizes, in tiles whose sums stay in registers. Larger products are left to BLAS, in torch's own loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .forms import Refused
from .source import c_type

__all__ = ["PRODUCT", "product_statements"]

_LARGEST = 1 << 21
"""Multiplications from which on BLAS, which may use more threads, is no slower."""

aten = torch.ops.aten


def product_statements(out: Any, inputs: Sequence[Any], dense: Callable[[Any], str]) -> list[str]:
    """``out = a @ b``, or ``out = bias + a @ b``: nodes of Inductor's. ``dense`` names a copy of a transposed ``b``."""
    lines, operator = [], out.op_overload
    if operator is aten.addmm.out:
        if out.kwargs.get("alpha", 1) != 1 or out.kwargs.get("beta", 1) != 1:
            raise Refused("a product has factors")
        bias, *inputs = inputs
        lines.append(_filled(out, bias))
    a, b = inputs
    m, k = _numbers(a.get_layout().size)[-2:]
    n = _numbers(b.get_layout().size)[-1]
    batch = _numbers(out.get_layout().size)[0] if operator is aten.bmm.out else 1
    if m * n * k > _LARGEST:
        raise Refused(f"BLAS computes a product of {m} x {k} and {k} x {n}")
    (a0, a1), (b0, b1), (c0, c1) = (_numbers(x.get_layout().stride)[-2:] for x in (a, b, out))
    if c1 != 1 and n > 1:
        raise Refused("the result of a product is transposed")
    factor = _place(b, batch)
    if b1 != 1 and n > 1:
        if batch > 1:
            raise Refused("the factors of products are transposed in the loop")
        factor, b0 = dense(b), n
    c, adds = c_type(out.get_dtype()), "true" if lines else "false"
    places = ", ".join([f"{_place(a, batch)}, {a0}, {a1}", f"{factor}, {b0}", f"{_place(out, batch)}, {c0}"])
    lines.append(f"for (int64_t batch = 0; batch < {batch}; ++batch)")
    return [*lines, f"fh::product<{c}, {m}, {n}, {k}, {adds}>({places});"]


def _numbers(sizes: Sequence[Any]) -> list[int]:
    return [int(size) for size in sizes]


def _place(x: Any, batch: int) -> str:
    layout = x.get_layout()
    step = f" + batch * int64_t({int(layout.stride[0])})" if batch > 1 else ""
    return f"{x.get_name()} + {int(layout.offset)}{step}"


def _filled(out: Any, bias: Any) -> str:
    """Fill ``out`` with ``bias``, which is expanded to its size."""
    (m, n), strides = _numbers(out.get_layout().size), _numbers(out.get_layout().stride)
    sizes, steps = _numbers(bias.get_layout().size), _numbers(bias.get_layout().stride)
    steps = [0] * (2 - len(sizes)) + [0 if size == 1 else step for size, step in zip(sizes, steps)]
    place = f"{bias.get_name()}[{int(bias.get_layout().offset)} + i * {steps[0]} + j * {steps[1]}]"
    target = f"{out.get_name()}[i * {strides[0]} + j * {strides[1]}]"
    return f"for (int64_t i = 0; i < {m}; ++i) for (int64_t j = 0; j < {n}; ++j) {target} = {place};"


PRODUCT = r"""#ifndef FH_PRODUCT
#define FH_PRODUCT
namespace fh {
template <class T>
static void copy_dense(const T* from, int64_t s0, int64_t s1, T* to, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) to[i * columns + j] = from[i * s0 + j * s1];
}
#if INDUCTOR_USE_VECTOR_TYPES()
// MR rows by NR vectors of c (+)= a b; of the last vector ``count`` elements if PART.
template <class T, int MR, int NR, int K, bool ADD, bool PART>
static C10_ALWAYS_INLINE void tile(
    const T* a, int64_t a0, int64_t a1, const T* b, int64_t b0, T* c, int64_t c0, int count) {
  using V = at::vec::Vectorized<T>;
  constexpr int S = V::size();
  auto load = [&](const T* p, int j) { return PART && j == NR - 1 ? V::loadu(p + j * S, count) : V::loadu(p + j * S); };
  V sums[MR][NR];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < NR; ++j) sums[i][j] = ADD ? load(c + i * c0, j) : V(T(0));
  for (int64_t k = 0; k < K; ++k) {
    V row[NR];
#pragma GCC unroll 16
    for (int j = 0; j < NR; ++j) row[j] = load(b + k * b0, j);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      V x(a[i * a0 + k * a1]);
#pragma GCC unroll 16
      for (int j = 0; j < NR; ++j) sums[i][j] = at::vec::fmadd(x, row[j], sums[i][j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < NR; ++j) {
      T* p = c + i * c0 + j * S;
      if (PART && j == NR - 1) sums[i][j].store(p, count);
      else sums[i][j].store(p);
    }
}
template <class T, int M, int NR, int K, bool ADD, bool PART>
static inline void panel(
    const T* a, int64_t a0, int64_t a1, const T* b, int64_t b0, T* c, int64_t c0, int count) {
  constexpr int MOST = sizeof(at::vec::Vectorized<T>) >= 64 ? 8 : 4, MR = M < MOST ? M : MOST;
  int64_t i = 0;
  for (; i + MR <= M; i += MR)
    tile<T, MR, NR, K, ADD, PART>(a + i * a0, a0, a1, b, b0, c + i * c0, c0, count);
  if constexpr (M % MR > 0)
    tile<T, M % MR, NR, K, ADD, PART>(a + i * a0, a0, a1, b, b0, c + i * c0, c0, count);
}
template <class T, int M, int N, int K, bool ADD>
static void product(const T* a, int64_t a0, int64_t a1, const T* b, int64_t b0, T* c, int64_t c0) {
  constexpr int S = at::vec::Vectorized<T>::size();
  int64_t j = 0;
  for (; j + 2 * S <= N; j += 2 * S) panel<T, M, 2, K, ADD, false>(a, a0, a1, b + j, b0, c + j, c0, S);
  if constexpr (N % (2 * S) >= S) {
    panel<T, M, 1, K, ADD, false>(a, a0, a1, b + j, b0, c + j, c0, S);
    j += S;
  }
  if constexpr (N % S > 0) panel<T, M, 1, K, ADD, true>(a, a0, a1, b + j, b0, c + j, c0, N % S);
}
#else
template <class T, int M, int N, int K, bool ADD>
static void product(const T* a, int64_t a0, int64_t a1, const T* b, int64_t b0, T* c, int64_t c0) {
  for (int64_t i = 0; i < M; ++i)
    for (int64_t j = 0; j < N; ++j) {
      T sum = ADD ? c[i * c0 + j] : T(0);
      for (int64_t k = 0; k < K; ++k) sum += a[i * a0 + k * a1] * b[k * b0 + j];
      c[i * c0 + j] = sum;
    }
}
#endif
}
#endif"""
