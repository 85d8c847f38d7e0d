#ifndef FH_SYSTEMS
#define FH_SYSTEMS
namespace fh {
// to[i, j] = from[j, i] for i < SIZE and j < K. Rows of K lie one after the other, the others STEP apart: those of
// ``to`` if BACK.
template <int K, int STEP, int SIZE, bool BACK, class From, class To>
static C10_ALWAYS_INLINE void turn(const From* __restrict from, To* __restrict to) {
  constexpr int F = BACK ? K : STEP, T = BACK ? STEP : K, ROWS = BACK ? SIZE : K, COLUMNS = BACK ? K : SIZE;
#if INDUCTOR_USE_VECTOR_TYPES()
  if constexpr (std::is_same_v<From, float> && std::is_same_v<To, float> && (SIZE > 3)) {
    constexpr int S = at::vec::Vectorized<float>::size();
    for (int i = 0; i < ROWS; i += S)
      for (int j = 0; j < COLUMNS; j += S)
        at::vec::transpose_mxn<float>(
            from + i * F + j, F, to + j * T + i, T, std::min(S, ROWS - i), std::min(S, COLUMNS - j));
    return;
  }
#endif
  for (int j = 0; j < K; ++j)
#pragma GCC unroll 16
    for (int i = 0; i < SIZE; ++i) {
      if constexpr (BACK) to[j * T + i] = To(from[i * F + j]);
      else to[i * T + j] = To(from[j * F + i]);
    }
}
// SIZE numbers of each of ``lanes`` lanes, which lie STEP apart: those of n lanes from ``at`` on, number after number,
// the K lanes of each side by side, the last one repeated. Of STEP 0 the numbers are the same for all lanes.
template <int K, int STEP, int SIZE, class From, class To>
static C10_ALWAYS_INLINE void spread(const From* from, int64_t lanes, int64_t at, int64_t n, To* to) {
  if constexpr (STEP == 0) {
    for (int i = 0; i < SIZE; ++i) std::fill_n(to + i * K, K, To(from[i]));
  } else {
    for (int i = 0; i < SIZE; i += STEP, from += lanes * STEP, to += STEP * K) {
      const From* p = from + at * STEP;
      if (n == K) turn<K, STEP, STEP, false>(p, to);
      else
        for (int r = 0; r < STEP; ++r)
          for (int64_t j = 0; j < K; ++j) to[r * K + j] = To(p[std::min(j, n - 1) * STEP + r]);
    }
  }
}
template <int K, int STEP, int SIZE, class From, class To>
static C10_ALWAYS_INLINE void collect(const From* from, int64_t lanes, int64_t at, int64_t n, To* to) {
  if constexpr (STEP == 0) {
    if (at == 0)
      for (int i = 0; i < SIZE; ++i) to[i] = To(from[i * K]);
  } else {
    for (int i = 0; i < SIZE; i += STEP, from += STEP * K, to += lanes * STEP) {
      To* p = to + at * STEP;
      if (n == K) turn<K, STEP, STEP, true>(from, p);
      else
        for (int r = 0; r < STEP; ++r)
          for (int64_t j = 0; j < n; ++j) p[j * STEP + r] = To(from[r * K + j]);
    }
  }
}
}
#endif