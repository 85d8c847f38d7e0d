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
  return std::min<int64_t>(rest, 2 * at::vec::Vectorized<T>::size());
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
// A vector that is used often. From memory, as GCC 12 would have it for AVX2, each use is a load, of which a core does no
// more at once than multiplications.
template <class V>
static C10_ALWAYS_INLINE V in_register(V x) {
#if FH_HAS_VECTORS && defined(__x86_64__)
  typedef float Register __attribute__((vector_size(sizeof(V))));
  auto r = math::recast<Register>(x);
  asm("" : "+v"(r));
  return math::recast<V>(r);
#else
  return x;
#endif
}
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
    for (int j = 0; j < NR; ++j) {
      row[j] = load(b + k * b0, j);
      if constexpr (MR > 1) row[j] = in_register(row[j]);
    }
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
// c (+)= a b of a vector b, where the rows of a and b have no gaps: MR rows at a time, each in a vector of sums.
template <class T, int MR, int K, bool ADD>
static C10_ALWAYS_INLINE void row_sums(const T* a, int64_t a0, const T* b, T* c, int64_t c0, int64_t open_k) {
  using V = at::vec::Vectorized<T>;
  constexpr int S = V::size();
  const int64_t terms = K ? K : open_k;
  V sums[MR];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) sums[i] = V(T(0));
  int64_t k = 0;
  for (; k + S <= terms; k += S) {
    V x = V::loadu(b + k);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) sums[i] = at::vec::fmadd(V::loadu(a + i * a0 + k), x, sums[i]);
  }
  if (const int rest = int(terms - k)) {
    V x = V::loadu(b + k, rest);
    if constexpr (std::is_integral_v<T>) x = V::set(V(T(0)), x, rest);  // torch fills what is left with ones
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) sums[i] = at::vec::fmadd(V::loadu(a + i * a0 + k, rest), x, sums[i]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
    T sum = at::vec::vec_reduce_all<T, 1>([](V& x, V& y) { return x + y; }, sums[i]);
    c[i * c0] = ADD ? c[i * c0] + sum : sum;
  }
}
template <class T, int M, int K, bool ADD>
static void product_with_vector(
    const T* a, int64_t a0, const T* b, T* c, int64_t c0, int64_t open_m = 0, int64_t open_k = 0) {
  const int64_t rows = M ? M : open_m;
  int64_t i = 0;
  for (; i + 8 <= rows; i += 8) row_sums<T, 8, K, ADD>(a + i * a0, a0, b, c + i * c0, c0, open_k);
  for (; i < rows; ++i) row_sums<T, 1, K, ADD>(a + i * a0, a0, b, c + i * c0, c0, open_k);
}
// As many vectors of columns as keep the multipliers busy: each sum waits for the one before.
constexpr int vectors_at_once(int rows) { return rows == 1 ? 8 : rows == 2 ? 4 : 2; }
// A size that is 0 is open, and an argument. PANELS: b is laid out so.
template <class T, int M, int N, int K, bool ADD, bool PANELS = false>
static void product(
    const T* a, int64_t a0, int64_t a1, const T* b, int64_t b0, T* c, int64_t c0, int64_t open_m = 0,
    int64_t open_n = 0, int64_t open_k = 0) {
  constexpr int S = at::vec::Vectorized<T>::size(), MOST = vectors_at_once(M);
  const int64_t columns = N ? N : open_n, terms = K ? K : open_k;
  int64_t j = 0;
  auto take = [&]<int NR, bool PART>(std::integral_constant<int, NR>, std::bool_constant<PART>) {
    const int64_t width = std::min<int64_t>(NR * S, columns - j);
    panel<T, M, NR, K, ADD, PART>(
        a, a0, a1, PANELS ? b + j * terms : b + j, PANELS ? width : b0, c + j, c0, int(width - (NR - 1) * S), open_m,
        open_k);
    j += width;
  };
  constexpr std::true_type in_part;
  constexpr std::false_type whole;
  if constexpr (N == 0) {
    while (j + MOST * S <= columns) take(std::integral_constant<int, MOST>(), whole);
    if constexpr (MOST > 2)
      while (j + 2 * S <= columns) take(std::integral_constant<int, 2>(), whole);
    if (j + S < columns) take(std::integral_constant<int, 2>(), in_part);
    else if (j < columns) take(std::integral_constant<int, 1>(), in_part);
  } else {
    // Strips of nearly one width: the wide ones, and those of one vector less.
    constexpr int VECTORS = (N + S - 1) / S, STRIPS = (VECTORS + MOST - 1) / MOST;
    constexpr int WIDE = (VECTORS + STRIPS - 1) / STRIPS, N_WIDE = VECTORS - STRIPS * (WIDE - 1);
    constexpr int IN_PART = N % S > 0, IS_LAST_WIDE = N_WIDE == STRIPS;
    for (int i = 0; i < N_WIDE - IN_PART * IS_LAST_WIDE; ++i) take(std::integral_constant<int, WIDE>(), whole);
    if constexpr (IS_LAST_WIDE) {
      if constexpr (IN_PART) take(std::integral_constant<int, WIDE>(), in_part);
    } else {
      for (int i = N_WIDE; i < STRIPS - IN_PART; ++i) take(std::integral_constant<int, WIDE - 1>(), whole);
      if constexpr (IN_PART) take(std::integral_constant<int, WIDE - 1>(), in_part);
    }
  }
}
#else
template <class T, int M, int K, bool ADD>
static void product_with_vector(
    const T* a, int64_t a0, const T* b, T* c, int64_t c0, int64_t open_m = 0, int64_t open_k = 0) {
  const int64_t rows = M ? M : open_m, terms = K ? K : open_k;
  for (int64_t i = 0; i < rows; ++i) {
    T sum = ADD ? c[i * c0] : T(0);
    for (int64_t k = 0; k < terms; ++k) sum += a[i * a0 + k] * b[k];
    c[i * c0] = sum;
  }
}
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