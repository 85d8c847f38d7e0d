// Functions of float for vectors and for single numbers, inlined: a call of a library in a loop leaves no vector in its
// register. A lane and a number get the same bits. NaN, infinities, signed zeros, subnormal numbers and arguments of any
// size are right; tests/test_vector_math.py states the error of each function, in units in the last place.
//
// Each function is written once, for F: a float, or a vector of floats by the extension of GCC and Clang, where operators
// and ?: work lane by lane on every machine. Of other types Inductor's own functions are called. Polynomials are minimax.
#ifndef FH_VECTOR_MATH
#define FH_VECTOR_MATH
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#if INDUCTOR_USE_VECTOR_TYPES() && defined(__GNUC__)
#define FH_HAS_VECTORS 1
#else
#define FH_HAS_VECTORS 0
#endif
#define FH_INLINE inline __attribute__((always_inline))

namespace fh::math {

// Unsigned and signed words of the size of a float, and doubles: as many as fit into the memory of an F.
template <class F> struct Types {
  using Words = uint32_t;
  using Ints = int32_t;
};
#if FH_HAS_VECTORS
using Vector = at::vec::Vectorized<float>;
constexpr int N_LANES = Vector::size();
typedef float Floats __attribute__((vector_size(4 * N_LANES)));
typedef float HalfFloats __attribute__((vector_size(2 * N_LANES)));
typedef double Doubles __attribute__((vector_size(4 * N_LANES)));
template <> struct Types<Floats> {
  typedef uint32_t Words __attribute__((vector_size(4 * N_LANES)));
  typedef int32_t Ints __attribute__((vector_size(4 * N_LANES)));
};
#endif
template <class F> using Words = typename Types<F>::Words;
template <class F> using Ints = typename Types<F>::Ints;

constexpr uint32_t SIGN = 0x80000000u;
constexpr float INF = std::numeric_limits<float>::infinity();
constexpr float NOT_A_NUMBER = std::numeric_limits<float>::quiet_NaN();

template <class To, class From> FH_INLINE To recast(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &x, sizeof(To));
  return to;
}
template <class F> FH_INLINE Words<F> bits(F x) { return recast<Words<F>>(x); }
// A number in all lanes; lanes as they are.
template <class F, class T> FH_INLINE F all(T x) {
  if constexpr (std::is_same_v<F, T>) return x;
  else return F{} + x;
}
template <class F> FH_INLINE F absolute(F x) { return recast<F>(bits(x) & ~SIGN); }
template <class F> FH_INLINE F with_sign_of(F sign, F x) { return recast<F>((bits(x) & ~SIGN) | (bits(sign) & SIGN)); }
// The same, of x that has none.
template <class F> FH_INLINE F signed_as(F sign, F x) { return recast<F>(bits(x) | (bits(sign) & SIGN)); }
// NaN stays.
FH_INLINE float at_least(float x, float low) { return x < low ? low : x; }
FH_INLINE float at_most(float x, float high) { return x > high ? high : x; }
#if FH_HAS_VECTORS
FH_INLINE Floats at_least(Floats x, float low) {
  return recast<Floats>(at::vec::clamp_min(recast<Vector>(x), Vector(low)));
}
FH_INLINE Floats at_most(Floats x, float high) {
  return recast<Floats>(at::vec::clamp_max(recast<Vector>(x), Vector(high)));
}
#endif

FH_INLINE float fused(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(a, b, c);
#else
  return float(double(a) * b + c);  // the product is exact
#endif
}
FH_INLINE double fused(double a, double b, double c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}
#if FH_HAS_VECTORS
FH_INLINE Floats fused(Floats a, Floats b, Floats c) {
  return recast<Floats>(at::vec::fmadd(recast<Vector>(a), recast<Vector>(b), recast<Vector>(c)));
}
FH_INLINE Doubles fused(Doubles a, Doubles b, Doubles c) {
  using V = at::vec::Vectorized<double>;
  return recast<Doubles>(at::vec::fmadd(recast<V>(a), recast<V>(b), recast<V>(c)));
}
#endif
// a b + c, rounded once.
template <class F, class B, class C> FH_INLINE F fma(F a, B b, C c) { return fused(a, all<F>(b), all<F>(c)); }
// The coefficient of the highest power comes first.
template <class F, class T, int N> FH_INLINE F polynomial(F x, const T (&coefficients)[N]) {
  F sum = all<F>(coefficients[0]);
#pragma GCC unroll 16
  for (int i = 1; i < N; ++i) sum = fma(sum, x, coefficients[i]);
  return sum;
}

template <class T, class From> FH_INLINE T converted(From x) {
#if FH_HAS_VECTORS
  if constexpr (!std::is_arithmetic_v<T>) return __builtin_convertvector(x, T);
  else
#endif
    return T(x);
}

// x = n ln 2 + r with |r| <= ln 2 / 2, for |n| < 2^22. shifted is n + 1.5 * 2^23: n stands in its lowest bits.
template <class F> struct Exponent { F shifted, n, r; };
constexpr float SHIFT = 0x1.8p23f;
template <class F> FH_INLINE Exponent<F> exponent(F x) {
  F shifted = fma(x, 0x1.715476p0f, SHIFT), n = shifted - SHIFT;
  F r = fma(n, -0x1.62e43p-1f, x);
  return {shifted, n, fma(n, 0x1.05c61p-29f, r)};
}
// 2^(n + more), if it is a normal number.
template <class F> FH_INLINE F power_of_2(F shifted, int more = 0) {
  return recast<F>((bits(shifted) << 23) + (uint32_t(127 + more) << 23));
}
// x 2^n, rounded once, for |n| <= 252.
template <class F> FH_INLINE F scaled(F x, F n) {
  auto whole = converted<Ints<F>>(n), half = whole >> 1;
  return x * recast<F>((half + 127) << 23) * recast<F>((whole - half + 127) << 23);
}
#if FH_HAS_VECTORS && defined(CPU_CAPABILITY_AVX512)
FH_INLINE Floats scaled(Floats x, Floats n) { return (Floats)_mm512_scalef_ps((__m512)x, (__m512)n); }
#endif
// (e^r - 1 - r) / r^2
constexpr float EXPM1[] = {0.00019762571901082993f, 0.0013932330766692758f, 0.008333545178174973f,
                           0.04166649281978607f, 0.1666666567325592f, 0.5f};
template <class F> FH_INLINE F expm1_of_small(F r) { return fma(r * r, polynomial(r, EXPM1), r); }
constexpr float EXP[] = {0.0013814467238262296f, 0.008368780836462975f, 0.04166839271783829f,
                         0.1666651964187622f, 0.4999999403953552f, 1.0f, 1.0f};
// For -126 ln 2 < x < 127 ln 2.
template <class F> FH_INLINE F exp_of_moderate(F x) {
  auto e = exponent(x);
  return polynomial(e.r, EXP) * power_of_2(e.shifted);
}
// From -104 on, what is smaller is taken for it.
template <class F> FH_INLINE F exp(F x) {
  auto e = exponent(at_least(at_most(x, 89.0f), -104.0f));
  return scaled(polynomial(e.r, EXP), e.n);
}

template <class F> FH_INLINE F expm1(F x) {
  auto e = exponent(at_least(at_most(x, 89.0f), -20.0f));
  F half = power_of_2(e.shifted, -1);  // 2^128 is no number
  return with_sign_of(x, 2.0f * fma(half, expm1_of_small(e.r), half - 0.5f));
}

// (e^2x - 1) / (e^2x + 1). The larger n is, the less it matters that n ln 2 is not exact.
constexpr float TANH[] = {0.0013946554390713573f, 0.008366644382476807f, 0.04166628047823906f, 0.16666541993618011f, 0.5f};
template <class F> FH_INLINE F tanh(F x) {
  F size = at_most(absolute(x), 10.0f);
  F shifted = fma(size, 0x1.715476p1f, SHIFT), r = fma(shifted - SHIFT, -0x1.62e43p-1f, size + size);
  F power = power_of_2(shifted);
  F d = fma(power, fma(r * r, polynomial(r, TANH), r), power - 1.0f);
  return signed_as(x, d / (d + 2.0f));
}

// With e^x = p 2^n it is p / (p + 2^-n). Both times 2^-75, for then 2^-n is a normal number, up to an n from which on the
// result is 1 anyway, and a subnormal result is rounded once.
template <class F> FH_INLINE F sigmoid(F x) {
  auto e = exponent(at_least(at_most(x, 35.0f), -104.0f));
  F p = polynomial(e.r, EXP), power = recast<F>((uint32_t(127 - 75) << 23) - (bits(e.shifted) << 23));
  return p * 0x1p-75f / fma(p, 0x1p-75f, power);
}

// (log(1 + f) - f) / f^2 from sqrt(1/2) to sqrt(2)
constexpr float LOG1P[] = {-0.0762447863817215f, 0.1291446089744568f, -0.1324707716703415f,
                         0.14180605113506317f, -0.16608452796936035f, 0.20002013444900513f,
                         -0.25001609325408936f, 0.33333325386047363f, -0.49999988079071045f};
// log(2^e (1 + f))
template <class F> FH_INLINE F log_of_parts(F e, F f) {
  F low = fma(f * f, polynomial(f, LOG1P), e * -0x1.05c61p-29f);
  return fma(e, 0x1.62e43p-1f, f + low);
}
// e with sqrt(1/2) <= 2^-e x < sqrt(2), of a normal number.
template <class F> FH_INLINE Ints<F> binary_exponent(F x) { return recast<Ints<F>>(bits(x) - 0x3f3504f3u) >> 23; }
// value but where x is zero, infinite, or has no logarithm.
template <class F> FH_INLINE F with_ends_of_log(F x, F value) {
  value = x == INF ? x : value;
  value = x == 0.0f ? all<F>(-INF) : value;
  return x >= 0.0f ? value : all<F>(NOT_A_NUMBER);
}

template <class F> FH_INLINE F log(F x) {
  auto is_small = x < 0x1p-126f;
  F scaled = is_small ? x * 0x1p23f : x;
  auto e = binary_exponent(scaled);
  F f = recast<F>(bits(scaled) - (recast<Words<F>>(e) << 23)) - 1.0f;
  F exponent = converted<F>(e);
  return with_ends_of_log(x, log_of_parts(is_small ? exponent - 23.0f : exponent, f));
}

// 2^-e (1 + x) - 1 is rounded once, so that nothing of a small x is lost.
template <class F> FH_INLINE F log1p(F x) {
  auto e = binary_exponent(1.0f + x);
  F scale = recast<F>((129 - e) << 23);  // 2^(2-e): 2^-128 is no normal number
  F f = fma(x * scale, 0.25f, fma(scale, 0.25f, -1.0f));
  F value = with_ends_of_log(1.0f + x, log_of_parts(converted<F>(e), f));
  return with_sign_of(x, value);
}

// x = n pi/2 + r with |r| <= pi/4: n modulo 4, and r.
template <class F> struct QuarterTurns { Words<F> n; F r; };
// By 2/pi in as many bits as the exponent of x asks for (Payne and Hanek), for 2^16 <= x.
template <class = void> QuarterTurns<float> turns_of_large(float x) {
  constexpr uint32_t TWO_BY_PI[] = {0, 0xa2f9836e, 0x4e441529, 0xfc2757d1, 0xf534ddc0, 0xdb629599, 0x3c439041, 0xfe5163ab};
  uint32_t m = (bits(x) & 0x7fffff) | 0x800000, first = (bits(x) >> 23) - 120;  // what lies before counts whole turns
  auto word = [&](int i) {
    uint64_t two = uint64_t(TWO_BY_PI[first / 32 + i]) << 32 | TWO_BY_PI[first / 32 + i + 1];
    return uint32_t(two << (first % 32) >> 32);
  };
  uint64_t turns = (uint64_t(m) * word(0) << 32) + uint64_t(m) * word(1) + (uint64_t(m) * word(2) >> 32);
  uint64_t n = (turns + (uint64_t(1) << 61)) >> 62;
  return {uint32_t(n), float(double(int64_t(turns - (n << 62))) * 0x1.921fb54442d18p-62)};
}
constexpr float LARGE = 0x1p16f;
FH_INLINE void replace_large(float x, QuarterTurns<float>& turns) {
  if (x >= LARGE && x < INF) turns = turns_of_large(x);
}
#if FH_HAS_VECTORS
FH_INLINE void replace_large(Floats x, QuarterTurns<Floats>& turns) {
  Vector large = recast<Vector>(x >= LARGE ? x : Floats{});
  if (__builtin_expect(large.zero_mask() == (1 << N_LANES) - 1, 1)) return;
#pragma GCC unroll 1
  for (int i = 0; i < N_LANES; ++i) {
    QuarterTurns<float> lane{turns.n[i], turns.r[i]};
    replace_large(x[i], lane);
    turns.n[i] = lane.n;
    turns.r[i] = lane.r;
  }
}
#endif
// Of x >= 0; of infinity r is no number.
template <class F> FH_INLINE QuarterTurns<F> quarter_turns(F x) {
  F shifted = fma(x, 0x1.45f306p-1f, SHIFT), n = shifted - SHIFT;
  F r = fma(n, 0x1.777a5cp-25f, fma(n, -0x1.921fb6p0f, x));
  QuarterTurns<F> turns{bits(shifted), fma(n, 0x1.ee59dap-50f, r)};
  replace_large(x, turns);
  return turns;
}
// (sin(r) / r - 1) / r^2 and (cos(r) - 1 + r^2 / 2) / r^4, in r^2
constexpr float SIN[] = {-0.00019517906184773892f, 0.008332187309861183f, -0.16666655242443085f};
constexpr float COS[] = {2.4432327336398885e-05f, -0.0013887309469282627f, 0.04166664555668831f};
// sin(n pi/2 + r)
template <class F> FH_INLINE F sin_of_turns(Words<F> n, F r) {
  F square = r * r;
  F sin = fma(square * r, polynomial(square, SIN), r);
  F cos = fma(square * square, polynomial(square, COS), fma(square, -0.5f, 1.0f));
  F value = (n & 1u) != 0u ? cos : sin;
  return recast<F>(bits(value) ^ ((n & 2u) << 30));
}

template <class F> FH_INLINE F sin(F x) {
  auto turns = quarter_turns(absolute(x));
  return recast<F>(bits(sin_of_turns(turns.n, turns.r)) ^ (bits(x) & SIGN));
}
template <class F> FH_INLINE F cos(F x) {
  auto turns = quarter_turns(absolute(x));
  return sin_of_turns(turns.n + 1u, turns.r);
}

// erf(x) / x - 1 in x^2 up to BEND, and from there on (log(1 - erf(x)) + x) / x up to 4
constexpr float BEND = 0.92f;
constexpr float ERF[] = {7.992341852514073e-05f, -0.0008049127063713968f, 0.005192376207560301f, -0.026855727657675743f,
                         0.11283625662326813f, -0.3761262893676758f, 0.12837916612625122f};
constexpr float LOG_ERFC[] = {-1.1230012205487583e-05f, 0.0003227940178476274f, -0.0036424295976758003f,
                              0.023762019351124763f, -0.10623684525489807f, -0.6351513266563416f,
                              -0.12864848971366882f};
template <class F> FH_INLINE F erf(F x) {
  F size = at_most(absolute(x), 4.0f), near = at_most(size, BEND);
  F small = fma(near, polynomial(near * near, ERF), near);
  F large = 1.0f - exp_of_moderate(fma(size, polynomial(size, LOG_ERFC), -size));
  return signed_as(x, size > BEND ? large : small);
}

// log2((1 + s) / (1 - s)) / s in s^2, and 2^f for |f| <= 1/2
constexpr double LOG2[] = {0.3407489509515154, 0.41167174753703006, 0.5770836002994401, 0.9617966732664305,
                           2.885390081790142};
constexpr double EXP2[] = {0.00015345810971551966, 0.0013399931193915637, 0.009618488958451842, 0.05550328776977454,
                           0.24022646890622604, 0.6931472057372596, 1.0000000005541674};
// y (e + log2(m)) as a whole number and the power of 2 of the rest
template <class D> FH_INLINE void power_in_double(D e, D m, D y, D& whole, D& rest) {
  constexpr double shift = 0x1.8p52;
  D s = (m - 1.0) / (m + 1.0);
  D exponent = y * fma(s, polynomial(s * s, LOG2), e);
  exponent = exponent < -200.0 ? all<D>(-200.0) : exponent;
  exponent = exponent > 200.0 ? all<D>(200.0) : exponent;
  whole = (exponent + shift) - shift;
  rest = polynomial(exponent - whole, EXP2);
}
FH_INLINE void power(float e, float m, float y, float& whole, float& rest) {
  double n, p;
  power_in_double(double(e), double(m), double(y), n, p);
  whole = float(n);
  rest = float(p);
}
#if FH_HAS_VECTORS
FH_INLINE void power(Floats e, Floats m, Floats y, Floats& whole, Floats& rest) {
  struct Halves { HalfFloats of[2]; };
  auto es = recast<Halves>(e), ms = recast<Halves>(m), ys = recast<Halves>(y);
  Halves n, p;
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    Doubles whole_half, rest_half;
    power_in_double(converted<Doubles>(es.of[i]), converted<Doubles>(ms.of[i]), converted<Doubles>(ys.of[i]), whole_half, rest_half);
    n.of[i] = converted<HalfFloats>(whole_half);
    p.of[i] = converted<HalfFloats>(rest_half);
  }
  whole = recast<Floats>(n);
  rest = recast<Floats>(p);
}
#endif

template <class F> FH_INLINE F pow(F x, F y) {
  F size = absolute(x);
  auto is_small = size < 0x1p-126f;
  F normal = is_small ? size * 0x1p23f : size;
  auto e = binary_exponent(normal);
  F m = recast<F>(bits(normal) - (recast<Words<F>>(e) << 23)), exponent = converted<F>(e), whole, rest;
  power(is_small ? exponent - 23.0f : exponent, m, y, whole, rest);
  F value = scaled(rest, whole);
  value = size == 0.0f ? (y > 0.0f ? F{} : all<F>(INF)) : value;
  value = size == INF ? (y > 0.0f ? all<F>(INF) : F{}) : value;
  value = size == 1.0f ? all<F>(1.0f) : value;
  F y_size = absolute(y) < 0x1p24f ? absolute(y) : all<F>(0x1p24f);  // whole and even from there on
  auto y_whole = converted<Ints<F>>(y_size);
  Words<F> sign = (recast<Words<F>>(y_whole) << 31) & bits(x);
  auto is_whole = converted<F>(y_whole) == y_size;
  value = is_whole ? recast<F>(bits(value) | sign) : (x < 0.0f ? (size < INF ? all<F>(NOT_A_NUMBER) : value) : value);
  value = x != x ? x : value;
  value = y != y ? y : value;
  value = y == 0.0f ? all<F>(1.0f) : value;
  return x == 1.0f ? all<F>(1.0f) : value;
}

// x^(N/2) for an odd N, in double, where nothing overflows. Zero and infinity have no sign then.
FH_INLINE double square_root(double x) { return __builtin_sqrt(x); }
#if FH_HAS_VECTORS
FH_INLINE Doubles square_root(Doubles x) { return recast<Doubles>(recast<at::vec::Vectorized<double>>(x).sqrt()); }
#endif
template <int N, class D> FH_INLINE D half_power_in_double(D x) {
  D power = square_root(x);
#pragma GCC unroll 8
  for (int i = 0; i < (N < 0 ? -N : N) / 2; ++i) power = power * x;
  return N < 0 ? 1.0 / power : power;
}
template <class F> FH_INLINE F without_sign_at_ends(F x) {
  Words<F> b = bits(x);
  return recast<F>((b == SIGN) | (b == (SIGN | 0x7f800000u)) ? b & ~SIGN : b);
}
template <int N> FH_INLINE float half_power(float x) {
  return float(half_power_in_double<N>(double(without_sign_at_ends(x))));
}
#if FH_HAS_VECTORS
template <int N> FH_INLINE Floats half_power(Floats x) {
  struct Halves { HalfFloats of[2]; };
  auto halves = recast<Halves>(without_sign_at_ends(x));
#pragma GCC unroll 2
  for (auto& half : halves.of) half = converted<HalfFloats>(half_power_in_double<N>(converted<Doubles>(half)));
  return recast<Floats>(halves);
}
#endif
}  // namespace fh::math

// What kernels call, of every type.
namespace fh {
#if FH_HAS_VECTORS
#define FH_OF_VECTORS(NAME)                                                                                     \
  FH_INLINE math::Vector NAME(math::Vector x) {                                                                 \
    return math::recast<math::Vector>(math::NAME(math::recast<math::Floats>(x)));                                   \
  }                                                                                                             \
  template <int N> FH_INLINE at::vec::VectorizedN<float, N> NAME(at::vec::VectorizedN<float, N> x) {            \
    for (int i = 0; i < N; ++i) x[i] = NAME(x[i]);                                                              \
    return x;                                                                                                   \
  }
#else
#define FH_OF_VECTORS(NAME)
#endif
#define FH_FUNCTION(NAME, OF_NUMBER, OF_VECTOR)                                                                 \
  FH_INLINE float NAME(float x) { return math::NAME(x); }                                                       \
  FH_OF_VECTORS(NAME)                                                                                           \
  template <class T> FH_INLINE T NAME(T x) {                                                                    \
    if constexpr (std::is_class_v<T> && sizeof(T) > 2) return OF_VECTOR;                                        \
    else return OF_NUMBER;                                                                                      \
  }
FH_FUNCTION(exp, std::exp(x), x.exp())
FH_FUNCTION(expm1, std::expm1(x), x.expm1())
FH_FUNCTION(log, std::log(x), x.log())
FH_FUNCTION(log1p, std::log1p(x), x.log1p())
FH_FUNCTION(tanh, std::tanh(x), x.tanh())
FH_FUNCTION(sigmoid, T(1) / (T(1) + std::exp(-x)), T(1) / (T(1) + x.neg().exp()))
FH_FUNCTION(sin, std::sin(x), x.sin())
FH_FUNCTION(cos, std::cos(x), x.cos())
FH_FUNCTION(erf, std::erf(x), x.erf())
FH_INLINE float pow(float x, float y) { return math::pow(x, y); }
#if FH_HAS_VECTORS
FH_INLINE math::Vector pow(math::Vector x, math::Vector y) {
  return math::recast<math::Vector>(math::pow(math::recast<math::Floats>(x), math::recast<math::Floats>(y)));
}
template <int N>
FH_INLINE at::vec::VectorizedN<float, N> pow(at::vec::VectorizedN<float, N> x, at::vec::VectorizedN<float, N> y) {
  for (int i = 0; i < N; ++i) x[i] = pow(x[i], y[i]);
  return x;
}
#endif
template <int N> FH_INLINE float half_power(float x) { return math::half_power<N>(x); }
#if FH_HAS_VECTORS
template <int N> FH_INLINE math::Vector half_power(math::Vector x) {
  return math::recast<math::Vector>(math::half_power<N>(math::recast<math::Floats>(x)));
}
template <int N, int M> FH_INLINE at::vec::VectorizedN<float, M> half_power(at::vec::VectorizedN<float, M> x) {
  for (int i = 0; i < M; ++i) x[i] = half_power<N>(x[i]);
  return x;
}
#endif
template <class T, class U> FH_INLINE auto pow(T x, U y) {
  if constexpr (std::is_class_v<T> && sizeof(T) > 2) return x.pow(y);
  else return std::pow(x, y);
}
}  // namespace fh
#endif
