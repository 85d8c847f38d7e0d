// What kernels do with vectors besides computing functions: divide integers by numbers, read and write masks and the ends
// of rows, find places, and combine the lanes of one. It needs vector_math.h.
#ifndef FH_VECTORS
#define FH_VECTORS
namespace fh {
// Division of integers, rounded down, by a positive number that compilers see: shifts and multiplications.
template <int64_t c, class T, class X> FH_INLINE X floor_divide_lanes(X x) {
  if constexpr ((c & (c - 1)) == 0) return x >> __builtin_ctzll(c);
  else if constexpr (std::is_unsigned_v<T>) return x / T(c);
  else return (x ^ (x >> (8 * sizeof(T) - 1))) / T(c) ^ (x >> (8 * sizeof(T) - 1));  // of a negative x: ~(~x / c)
}
template <int64_t c, class T, class X> FH_INLINE X remainder_lanes(X x) {
  if constexpr ((c & (c - 1)) == 0) return x & T(c - 1);
  else return x - floor_divide_lanes<c, T>(x) * T(c);
}
#if FH_HAS_VECTORS
template <class T> struct Lanes {
  typedef T Type __attribute__((vector_size(sizeof(math::Vector))));
};
using Longs = at::vec::Vectorized<int64_t>;
FH_INLINE Longs product(Longs x, Longs y) {
  using Words = typename Lanes<uint64_t>::Type;  // unsigned numbers wrap
  return math::recast<Longs>(math::recast<Words>(x) * math::recast<Words>(y));
}
template <int N>
FH_INLINE at::vec::VectorizedN<int64_t, N> product(at::vec::VectorizedN<int64_t, N> x, at::vec::VectorizedN<int64_t, N> y) {
  for (int i = 0; i < N; ++i) x[i] = product(x[i], y[i]);
  return x;
}
#define FH_OF_INTEGERS(NAME)                                                                                       \
  template <int64_t c, class T> FH_INLINE at::vec::Vectorized<T> NAME(at::vec::Vectorized<T> x) {                  \
    using V = at::vec::Vectorized<T>;                                                                              \
    return math::recast<V>(NAME##_lanes<c, T>(math::recast<typename Lanes<T>::Type>(x)));                          \
  }                                                                                                                \
  template <int64_t c, class T, int N> FH_INLINE at::vec::VectorizedN<T, N> NAME(at::vec::VectorizedN<T, N> x) {   \
    for (int i = 0; i < N; ++i) x[i] = NAME<c>(x[i]);                                                              \
    return x;                                                                                                      \
  }
#else
template <class V> FH_INLINE V product(V x, V y) { return x * y; }
#define FH_OF_INTEGERS(NAME)                                                                                       \
  template <int64_t c, class V> FH_INLINE std::enable_if_t<std::is_class_v<V>, V> NAME(V x) {                      \
    return NAME##_integral(x, V(c));                                                                               \
  }
#endif
#define FH_DIVISION_BY_NUMBER(NAME)                                                                                \
  FH_OF_INTEGERS(NAME)                                                                                             \
  template <int64_t c, class T> FH_INLINE std::enable_if_t<std::is_integral_v<T>, T> NAME(T x) {                   \
    return T(NAME##_lanes<c, T>(x));                                                                               \
  }
FH_DIVISION_BY_NUMBER(floor_divide)
FH_DIVISION_BY_NUMBER(remainder)

#if INDUCTOR_USE_VECTOR_TYPES()
// Masks in memory are bytes, which torch's own masks read and write one by one. A mask of narrow numbers has more lanes
// than the kernel.
template <int64_t count, class T, int N> FH_INLINE void store_mask(at::vec::VecMask<T, N> mask, bool* to) {
#if FH_HAS_VECTORS
  if constexpr (sizeof(T) == sizeof(float) && at::vec::VecMask<T, N>::size() == count) {
    typedef uint8_t Bytes __attribute__((vector_size(math::N_LANES)));
    at::vec::VectorizedN<T, N> lanes(mask);
    for (int i = 0; i < N; ++i) {
      Bytes bytes = __builtin_convertvector(math::recast<math::Ints<math::Floats>>(lanes[i]) & 1, Bytes);
      std::memcpy(to + i * math::N_LANES, &bytes, sizeof(bytes));
    }
    return;
  }
#endif
  mask.store(to, count);
}
template <class M> struct LoadedMask {
  static FH_INLINE M of(const bool* from) { return M::from(from, M::size()); }
};
#if FH_HAS_VECTORS
template <int N> struct LoadedMask<at::vec::VecMask<float, N>> {
  static FH_INLINE at::vec::VecMask<float, N> of(const bool* from) {
    typedef uint8_t Bytes __attribute__((vector_size(math::N_LANES)));
    at::vec::VectorizedN<float, N> lanes;
    for (int i = 0; i < N; ++i) {
      Bytes bytes;
      std::memcpy(&bytes, from + i * math::N_LANES, sizeof(bytes));
      lanes[i] = math::recast<math::Vector>(__builtin_convertvector(bytes != 0, math::Ints<math::Floats>));
    }
    return lanes;
  }
};
// The first ``count`` elements of a vector, and zeros; behind integers ones, as in torch's vectors, for kernels divide by
// them. Torch's are masked: a store with a mask takes some twenty cycles where it is microcode (AMD, AVX2), and no load
// can be served before it is done.
template <class V> struct First {
  template <class T> static FH_INLINE V load(const T* from, int64_t count) { return V::loadu(from, count); }
  template <class T> static FH_INLINE void store(V x, T* to, int64_t count) { x.store(to, count); }
};
#if defined(CPU_CAPABILITY_AVX2)
template <class T> struct First<at::vec::Vectorized<T>> {
  typedef at::vec::Vectorized<T> V;
  static constexpr int64_t HALF = 16 / sizeof(T);
  static constexpr bool IS_WIDE = sizeof(T) == 4 || sizeof(T) == 8;
  static FH_INLINE V load(const T* from, int64_t count) {
    if constexpr (!IS_WIDE) return V::loadu(from, count);
    if (count >= 2 * HALF) return V::loadu(from);
    __m128 low = count >= HALF ? _mm_loadu_ps(reinterpret_cast<const float*>(from)) : load_few(from, count);
    __m128 high = count > HALF ? load_few(from + HALF, count - HALF) : _mm_setzero_ps();
    V x = math::recast<V>(_mm256_set_m128(high, low));
    if constexpr (std::is_integral_v<T>) return x - (V::arange(T(0), T(1)) > V(T(count - 1)));  // true is -1
    return x;
  }
  static FH_INLINE void store(V x, T* to, int64_t count) {
    if constexpr (!IS_WIDE) return x.store(to, count);
    if (count >= 2 * HALF) return x.store(to);
    __m256 all = math::recast<__m256>(x);
    __m128 low = _mm256_castps256_ps128(all);
    if (count < HALF) return store_few(low, to, count);
    _mm_storeu_ps(reinterpret_cast<float*>(to), low);
    store_few(_mm256_extractf128_ps(all, 1), to + HALF, count - HALF);
  }

 private:
  static FH_INLINE __m128 load_few(const T* from, int64_t count) {
    const float* words = reinterpret_cast<const float*>(from);
    const int64_t n = count * (sizeof(T) / 4);
    if (n < 2) return n == 1 ? _mm_load_ss(words) : _mm_setzero_ps();
    __m128 two = _mm_castsi128_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(words)));
    return n == 3 ? _mm_movelh_ps(two, _mm_load_ss(words + 2)) : two;
  }
  static FH_INLINE void store_few(__m128 x, T* to, int64_t count) {
    float* words = reinterpret_cast<float*>(to);
    const int64_t n = count * (sizeof(T) / 4);
    if (n >= 2) _mm_storel_epi64(reinterpret_cast<__m128i*>(words), _mm_castps_si128(x));
    if (n == 3) _mm_store_ss(words + 2, _mm_movehl_ps(x, x));
    if (n == 1) _mm_store_ss(words, x);
  }
};
template <class U, int N> struct First<at::vec::VectorizedN<U, N>> {
  typedef at::vec::VectorizedN<U, N> V;
  typedef First<at::vec::Vectorized<U>> One;
  static constexpr int64_t L = at::vec::Vectorized<U>::size();
  static FH_INLINE V load(const U* from, int64_t count) {
    V x;
    for (int i = 0; i < N; ++i) x[i] = One::load(from + std::min(i * L, count), std::max<int64_t>(count - i * L, 0));
    return x;
  }
  static FH_INLINE void store(V x, U* to, int64_t count) {
    for (int i = 0; i < N && i * L < count; ++i) One::store(x[i], to + i * L, count - i * L);
  }
};
#endif
template <class T> FH_INLINE void store_first(at::vec::Vectorized<T> x, T* to, int64_t count) {
  First<at::vec::Vectorized<T>>::store(x, to, count);
}
template <class T, int N> FH_INLINE void store_first(at::vec::VectorizedN<T, N> x, T* to, int64_t count) {
  First<at::vec::VectorizedN<T, N>>::store(x, to, count);
}
// The lanes before number n, or those from there on.
template <int N, bool before> FH_INLINE at::vec::VecMask<float, N> lanes(int64_t n) {
  constexpr int L = math::N_LANES;
  struct Table {
    int32_t mask[2 * L];
    constexpr Table() : mask() {
      for (int i = 0; i < 2 * L; ++i) mask[i] = (i < L) == before ? -1 : 0;
    }
  };
  static constexpr Table table;
  at::vec::VectorizedN<float, N> lanes;
  for (int i = 0; i < N; ++i) {
    int64_t count = std::min<int64_t>(std::max<int64_t>(n - i * L, 0), L);
    std::memcpy(&lanes[i], table.mask + L - count, sizeof(lanes[i]));
  }
  return lanes;
}
#endif
// What is NaN stays; to compare with a number takes one instruction, with lanes that may be NaN three.
template <class V, class T> FH_INLINE V at_least(V x, T low) { return low != low ? V(low) : at::vec::clamp_min(x, V(low)); }
template <class V, class T> FH_INLINE V at_most(V x, T high) {
  return high != high ? V(high) : at::vec::clamp_max(x, V(high));
}
// The largest or smallest value so far in each lane, and where it was: of equal values the first, before all the first NaN.
using Values = at::vec::Vectorized<float>;
struct Places {
  at::vec::Vectorized<int32_t> lanes;
  FH_INLINE void store(int64_t* to, int n_lanes = Values::size()) const {
    int32_t places[Values::size()];
    lanes.store(places);
    for (int lane = 0; lane < n_lanes; ++lane) to[lane] = places[lane];
  }
};
FH_INLINE void store_first(const Places& places, int64_t* to, int64_t count) { places.store(to, count); }
struct Found {
  Values value;
  Places index{at::vec::Vectorized<int32_t>(0)};
  FH_INLINE explicit Found(float start) : value(start) {}
};
template <bool is_largest>
FH_INLINE Found found(Found best, Values x, at::vec::Vectorized<int32_t> places, int64_t n_lanes = Values::size()) {
  using at::vec::cast;
  using Lanes = at::vec::Vectorized<int32_t>;
  Values is_better = (is_largest ? x > best.value : x < best.value) | ((x != x) & (best.value == best.value));
  Lanes taken = cast<int32_t>(is_better) | (cast<int32_t>(x == best.value) & (places < best.index.lanes));
  if (n_lanes < Values::size()) taken = taken & (Lanes::arange(0, 1) < Lanes(n_lanes));
  best.value = Values::blendv(best.value, x, cast<float>(taken));
  best.index.lanes = Lanes::blendv(best.index.lanes, places, taken);
  return best;
}
template <class Combine> FH_INLINE IndexValue<float> of_all_lanes(const Found& found, Combine combine) {
  float values[Values::size()];
  int64_t places[Values::size()];
  found.value.store(values);
  found.index.store(places);
  IndexValue<float> best{places[0], values[0]};
  for (int lane = 1; lane < Values::size(); ++lane) best = combine(best, values[lane], places[lane]);
  return best;
}
FH_INLINE IndexValue<float> argmax_vec_reduce_all(const Found& found) {
  return of_all_lanes(found, [](auto& best, float x, int64_t place) { return argmax_combine(best, x, place); });
}
FH_INLINE IndexValue<float> argmin_vec_reduce_all(const Found& found) {
  return of_all_lanes(found, [](auto& best, float x, int64_t place) { return argmin_combine(best, x, place); });
}
#endif
}  // namespace fh
#if FH_HAS_VECTORS && defined(__cpp_concepts) && defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
// Halves of a vector are combined, then quarters: torch does so with floats, and goes through memory with others.
namespace at::vec {
template <class T, class Op>
  requires(std::is_arithmetic_v<T> && sizeof(T) >= 4 && !std::is_same_v<T, float>)
struct VecReduceAllSIMD<T, Op> {
  typedef T Lanes __attribute__((vector_size(sizeof(Vectorized<T>))));
  template <int apart, size_t... i>
  static FH_INLINE Vectorized<T> combined(const Op& combine, Vectorized<T> x, std::index_sequence<i...> lanes) {
    auto all = fh::math::recast<Lanes>(x);
    auto others = fh::math::recast<Vectorized<T>>(Lanes(__builtin_shufflevector(all, all, (i ^ apart)...)));
    x = combine(x, others);
    if constexpr (apart > 1) return combined<apart / 2>(combine, x, lanes);
    else return x;
  }
  static FH_INLINE T apply(const Op& combine, const Vectorized<T>& x) {
    constexpr int n = Vectorized<T>::size();
    return fh::math::recast<Lanes>(combined<n / 2>(combine, x, std::make_index_sequence<n>()))[0];
  }
};
}  // namespace at::vec
#endif
#endif
#endif
