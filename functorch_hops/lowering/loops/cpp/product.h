#ifndef FH_PRODUCT
#define FH_PRODUCT
namespace fh {
// Matrices row after row, of which each lies ``step`` behind the one before.
template <class F, class T>
static void copy_dense(
    const F* from, int64_t step, int64_t s0, int64_t s1, T* to, int64_t count, int64_t rows, int64_t columns) {
  for (int64_t b = 0; b < count; ++b, from += step, to += rows * columns) {
    int64_t done = 0;
#if INDUCTOR_USE_VECTOR_TYPES()
    if constexpr (std::is_same_v<F, float> && std::is_same_v<T, float>) {
      constexpr int S = at::vec::Vectorized<T>::size();
      if (s0 == 1)
        for (; done + S <= rows; done += S) {
          int64_t j = 0;
          for (; j + S <= columns; j += S)
            at::vec::transpose_mxn<T, S, S>(from + done + j * s1, s1, to + done * columns + j, columns);
          for (; j < columns; ++j)
            for (int64_t i = done; i < done + S; ++i) to[i * columns + j] = from[i + j * s1];
        }
    }
#endif
    for (int64_t i = done; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) to[i * columns + j] = from[i * s0 + j * s1];
  }
}
#if INDUCTOR_USE_VECTOR_TYPES()
// How many columns of the rest a product takes at once.
template <class T>
static C10_ALWAYS_INLINE int64_t panel_width(int64_t rest) {
  constexpr int S = at::vec::Vectorized<T>::size();
  return rest >= 2 * S ? 2 * S : rest >= S ? S : rest;
}
#else
template <class T>
static C10_ALWAYS_INLINE int64_t panel_width(int64_t rest) { return rest; }
#endif
// The same in panels, one after the other: a product reads each from its first element to its last.
template <class F, class T>
static void copy_panels(
    const F* from, int64_t step, int64_t s0, int64_t s1, T* to, int64_t count, int64_t rows, int64_t columns) {
  for (int64_t b = 0; b < count; ++b, from += step, to += rows * columns)
    for (int64_t j = 0, width; j < columns; j += width) {
      width = panel_width<T>(columns - j);
      copy_dense(from + j * s1, 0, s0, s1, to + j * rows, 1, rows, width);
    }
}
#if INDUCTOR_USE_VECTOR_TYPES()
// MR rows by NR vectors of c (+)= a b; of the last vector ``count`` elements if PART.
template <class T, int MR, int NR, int K, bool ADD, bool PART>
static C10_ALWAYS_INLINE void tile(
    const T* a, int64_t a0, int64_t a1, const T* b, int64_t b0, T* c, int64_t c0, int count, int64_t open_k) {
  using V = at::vec::Vectorized<T>;
  constexpr int S = V::size();
  auto load = [&](const T* p, int j) { return PART && j == NR - 1 ? V::loadu(p + j * S, count) : V::loadu(p + j * S); };
  V sums[MR][NR];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < NR; ++j) sums[i][j] = ADD ? load(c + i * c0, j) : V(T(0));
  const int64_t terms = K ? K : open_k;
  for (int64_t k = 0; k < terms; ++k) {
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
    const T* a, int64_t a0, int64_t a1, const T* b, int64_t b0, T* c, int64_t c0, int count, int64_t open_m,
    int64_t open_k) {
  constexpr int MOST = sizeof(at::vec::Vectorized<T>) >= 64 ? 8 : 4, MR = M && M < MOST ? M : MOST;
  const int64_t rows = M ? M : open_m;
  int64_t i = 0;
  auto take = [&]<int R>(std::integral_constant<int, R>) {
    tile<T, R, NR, K, ADD, PART>(a + i * a0, a0, a1, b, b0, c + i * c0, c0, count, open_k);
    i += R;
  };
  while (i + MR <= rows) take(std::integral_constant<int, MR>());
  if constexpr (M == 0) {
    if (rows - i >= 4) take(std::integral_constant<int, 4>());
    if (rows - i >= 2) take(std::integral_constant<int, 2>());
    if (rows - i >= 1) take(std::integral_constant<int, 1>());
  } else if constexpr (M % MR > 0) {
    take(std::integral_constant<int, M % MR>());
  }
}
// A size that is 0 is open, and an argument. PANELS: b is laid out so.
template <class T, int M, int N, int K, bool ADD, bool PANELS = false>
static void product(
    const T* a, int64_t a0, int64_t a1, const T* b, int64_t b0, T* c, int64_t c0, int64_t open_m = 0,
    int64_t open_n = 0, int64_t open_k = 0) {
  constexpr int S = at::vec::Vectorized<T>::size();
  const int64_t columns = N ? N : open_n, terms = K ? K : open_k;
  auto first = [&](int64_t j) { return PANELS ? b + j * terms : b + j; };
  int64_t j = 0;
  for (; j + 2 * S <= columns; j += 2 * S)
    panel<T, M, 2, K, ADD, false>(a, a0, a1, first(j), PANELS ? 2 * S : b0, c + j, c0, S, open_m, open_k);
  if constexpr (N == 0 || N % (2 * S) >= S)
    if (j + S <= columns) {
      panel<T, M, 1, K, ADD, false>(a, a0, a1, first(j), PANELS ? S : b0, c + j, c0, S, open_m, open_k);
      j += S;
    }
  if constexpr (N == 0 || N % S > 0)
    if (j < columns) {
      const int64_t rest = columns - j;
      panel<T, M, 1, K, ADD, true>(a, a0, a1, first(j), PANELS ? rest : b0, c + j, c0, rest, open_m, open_k);
    }
}
#else
template <class T, int M, int N, int K, bool ADD, bool PANELS = false>
static void product(
    const T* a, int64_t a0, int64_t a1, const T* b, int64_t b0, T* c, int64_t c0, int64_t open_m = 0,
    int64_t open_n = 0, int64_t open_k = 0) {
  const int64_t rows = M ? M : open_m, columns = N ? N : open_n, terms = K ? K : open_k;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) {
      T sum = ADD ? c[i * c0 + j] : T(0);
      for (int64_t k = 0; k < terms; ++k) sum += a[i * a0 + k * a1] * b[k * b0 + j];
      c[i * c0 + j] = sum;
    }
}
#endif
}
#endif