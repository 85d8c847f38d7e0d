#ifndef FH_LINEAR
#define FH_LINEAR
namespace fh {
template <class T>
struct Matrix {
  T* p;
  int64_t s0, s1;
  C10_ALWAYS_INLINE T& operator()(int64_t i, int64_t j) const { return p[i * s0 + j * s1]; }
};
template <class T, int N, int K, class A>
static C10_ALWAYS_INLINE void copy(const A& from, const Matrix<T>& to) {
  for (int i = 0; i < N; ++i)
    for (int j = 0; j < K; ++j) to(i, j) = from(i, j);
}
template <class T, int N, int K>
struct Local {
  T values[N * K];
  Matrix<T> view{values, K, 1};
  template <class A>
  explicit Local(const A& from) { copy<T, N, K>(from, view); }
};
// Solve a x = b in place of b, for the triangle of a.
template <class T, int N, int K>
static C10_ALWAYS_INLINE void substitute(const Matrix<T>& a, const Matrix<T>& x, bool upper, bool unit) {
  for (int s = 0; s < N; ++s) {
    const int i = upper ? N - 1 - s : s;
    for (int r = 0; r < s; ++r) {
      const int k = upper ? N - 1 - r : r;
      for (int j = 0; j < K; ++j) x(i, j) -= a(i, k) * x(k, j);
    }
    if (!unit)
      for (int j = 0; j < K; ++j) x(i, j) /= a(i, i);
  }
}
// Rows are exchanged as in LAPACK's getrf. Returns the first column without a pivot, counted from 1, or 0.
template <class T, int N>
static C10_ALWAYS_INLINE int factor(const Matrix<T>& a, int32_t* pivots) {
  int info = 0;
  for (int j = 0; j < N; ++j) {
    int p = j;
    for (int i = j + 1; i < N; ++i)
      if (std::abs(a(i, j)) > std::abs(a(p, j))) p = i;
    pivots[j] = p + 1;
    if (a(p, j) == T(0)) {
      if (info == 0) info = j + 1;
      continue;
    }
    if (p != j)
      for (int k = 0; k < N; ++k) std::swap(a(j, k), a(p, k));
    for (int i = j + 1; i < N; ++i) {
      a(i, j) /= a(j, j);
      for (int k = j + 1; k < N; ++k) a(i, k) -= a(i, j) * a(j, k);
    }
  }
  return info;
}
[[noreturn]] [[maybe_unused]] static C10_NOINLINE void no_pivot() {
  throw std::runtime_error(
      "pivots passed to lu_unpack must be between 1 and LU.size(-2) inclusive."
      "Did you properly pass the result of lu_factor?");
}
// Pivots may be data, and no row.
template <int N>
static C10_ALWAYS_INLINE int row_of(int32_t pivot) {
  if (pivot < 1 || pivot > N) no_pivot();
  return pivot - 1;
}
// With the factors of a: a x = b, or the same of the transposed a.
template <class T, int N, int K>
static C10_ALWAYS_INLINE void solve_factored(
    const Matrix<T>& lu, const int32_t* pivots, const Matrix<T>& x, bool adjoint) {
  auto exchange = [&](int i) {
    const int p = row_of<N>(pivots[i]);
    if (p != i)
      for (int j = 0; j < K; ++j) std::swap(x(i, j), x(p, j));
  };
  if (adjoint) {
    const Matrix<T> turned{lu.p, lu.s1, lu.s0};
    substitute<T, N, K>(turned, x, false, false);
    substitute<T, N, K>(turned, x, true, true);
    for (int i = N - 1; i >= 0; --i) exchange(i);
  } else {
    for (int i = 0; i < N; ++i) exchange(i);
    substitute<T, N, K>(lu, x, false, true);
    substitute<T, N, K>(lu, x, true, false);
  }
}
template <class T, int N, int K>
static void solve(
    Matrix<const T> a, Matrix<const T> b, Matrix<T> x,
    Matrix<T> factors, int32_t* pivots, int32_t* info, bool adjoint) {
  Local<T, N, N> lu(a);
  *info = factor<T, N>(lu.view, pivots);
  Local<T, N, K> y(b);
  solve_factored<T, N, K>(lu.view, pivots, y.view, adjoint);
  copy<T, N, K>(y.view, x);
  copy<T, N, N>(lu.view, factors);
}
template <class T, int N>
static void inverse(Matrix<const T> a, Matrix<T> x, int32_t* info) {
  Local<T, N, N> lu(a);
  int32_t pivots[N];
  *info = factor<T, N>(lu.view, pivots);
  Local<T, N, N> y([](int i, int j) { return T(i == j); });
  solve_factored<T, N, N>(lu.view, pivots, y.view, false);
  copy<T, N, N>(y.view, x);
}
template <class T, int N>
static void factored(Matrix<const T> a, Matrix<T> factors, int32_t* pivots, int32_t* info) {
  Local<T, N, N> lu(a);
  *info = factor<T, N>(lu.view, pivots);
  copy<T, N, N>(lu.view, factors);
}
template <class T, int N, int K>
static void solve_with_factors(
    Matrix<const T> factors, const int32_t* pivots, Matrix<const T> b, Matrix<T> x, bool adjoint) {
  Local<T, N, N> lu(factors);
  Local<T, N, K> y(b);
  solve_factored<T, N, K>(lu.view, pivots, y.view, adjoint);
  copy<T, N, K>(y.view, x);
}
// The permutation and the triangles of which they are the factors.
template <class T, int N>
static void unpacked(Matrix<const T> factors, const int32_t* pivots, Matrix<T> p, Matrix<T> l, Matrix<T> u) {
  int rows[N];
  for (int i = 0; i < N; ++i) rows[i] = i;
  for (int i = 0; i < N; ++i) std::swap(rows[i], rows[row_of<N>(pivots[i])]);
  for (int i = 0; i < N; ++i)
    for (int j = 0; j < N; ++j) {
      p(i, j) = T(rows[j] == i);
      l(i, j) = j < i ? factors(i, j) : T(i == j);
      u(i, j) = j < i ? T(0) : factors(i, j);
    }
}
// Rows and columns from j on, reflected at the plane to which v = (1, x(j + 1, j), ...) is normal.
template <class T, int N, int K>
static C10_ALWAYS_INLINE void reflect(const Matrix<T>& x, int j, T tau, const Matrix<T>& y, int first) {
  for (int k = first; k < K; ++k) {
    T sum = y(j, k);
    for (int i = j + 1; i < N; ++i) sum += x(i, j) * y(i, k);
    sum *= tau;
    y(j, k) -= sum;
    for (int i = j + 1; i < N; ++i) y(i, k) -= sum * x(i, j);
  }
}
// a = q r by reflections, with the signs of LAPACK's geqrf; q has K columns.
template <class T, int N, int M, int K>
static void orthogonal_and_triangle(Matrix<const T> a, Matrix<T> q, Matrix<T> r) {
  constexpr int S = N < M ? N : M;
  Local<T, N, M> local(a);
  const auto& x = local.view;
  T taus[S];
  for (int j = 0; j < S; ++j) {
    T below = 0, largest = std::abs(x(j, j)), sum = 0;
    for (int i = j + 1; i < N; ++i) below = std::max(std::abs(x(i, j)), below);
    for (int i = j + 1; i < N; ++i) sum += x(i, j);
    taus[j] = 0;
    if (below == T(0) && sum == T(0)) continue;
    largest = std::max(largest, below);
    sum = 0;
    for (int i = j; i < N; ++i) sum += (x(i, j) / largest) * (x(i, j) / largest);
    const T alpha = x(j, j), beta = -std::copysign(largest * std::sqrt(sum), alpha);
    taus[j] = (beta - alpha) / beta;
    for (int i = j + 1; i < N; ++i) x(i, j) /= alpha - beta;
    x(j, j) = beta;
    reflect<T, N, M>(x, j, taus[j], x, j + 1);
  }
  Local<T, N, K> y([](int i, int j) { return T(i == j); });
  for (int j = S - 1; j >= 0; --j) reflect<T, N, K>(x, j, taus[j], y.view, 0);
  copy<T, N, K>(y.view, q);
  copy<T, K, M>([&](int i, int j) { return j < i ? T(0) : x(i, j); }, r);
}
template <class T, int N>
static C10_ALWAYS_INLINE void multiply(const Matrix<T>& a, const Matrix<T>& b, const Matrix<T>& c) {
  for (int i = 0; i < N; ++i) {
    for (int j = 0; j < N; ++j) c(i, j) = 0;
    for (int k = 0; k < N; ++k)
      for (int j = 0; j < N; ++j) c(i, j) += a(i, k) * b(k, j);
  }
}
// exp(a) = exp(a / 2^s)^(2^s): the first 16 powers are enough where the norm is at most 3/4. They are grouped by the
// fourth (Paterson and Stockmeyer, 1973).
template <class T, int N>
static void exponential(Matrix<const T> a, Matrix<T> result) {
  T norm = 0;
  for (int j = 0; j < N; ++j) {
    T sum = 0;
    for (int i = 0; i < N; ++i) sum += std::abs(a(i, j));
    norm = sum <= norm ? norm : sum;
  }
  const int s = std::isfinite(norm) && norm > T(0.75) ? int(std::ceil(std::log2(norm / T(0.75)))) : 0;
  const T scale = std::ldexp(T(1), -s);
  const auto zero = [](int, int) { return T(0); };
  Local<T, N, N> a1([&](int i, int j) { return a(i, j) * scale; }), a2(zero), a3(zero), a4(zero), x(zero), y(zero);
  multiply<T, N>(a1.view, a1.view, a2.view);
  multiply<T, N>(a2.view, a1.view, a3.view);
  multiply<T, N>(a2.view, a2.view, a4.view);
  T factorials[17] = {1};
  for (int k = 1; k <= 16; ++k) factorials[k] = factorials[k - 1] * T(k);
  copy<T, N, N>([&](int i, int j) { return a4.view(i, j) / factorials[16]; }, x.view);
  for (int k = 12; k >= 0; k -= 4) {
    for (int i = 0; i < N; ++i)
      for (int j = 0; j < N; ++j)
        x.view(i, j) += T(i == j) / factorials[k] + a1.view(i, j) / factorials[k + 1] +
            a2.view(i, j) / factorials[k + 2] + a3.view(i, j) / factorials[k + 3];
    if (k == 0) break;
    multiply<T, N>(x.view, a4.view, y.view);
    copy<T, N, N>(y.view, x.view);
  }
  for (int k = 0; k < s; ++k) {
    multiply<T, N>(x.view, x.view, y.view);
    copy<T, N, N>(y.view, x.view);
  }
  copy<T, N, N>(x.view, result);
}
// The lower factor, from the lower triangle.
template <class T, int N>
static void cholesky(Matrix<const T> a, Matrix<T> x, int32_t* info) {
  Local<T, N, N> lower([&](int i, int j) { return j > i ? T(0) : a(i, j); });
  const auto& l = lower.view;
  *info = 0;
  for (int j = 0; j < N && *info == 0; ++j) {
    for (int k = 0; k < j; ++k) l(j, j) -= l(j, k) * l(j, k);
    if (!(l(j, j) > T(0))) {
      *info = j + 1;
      break;
    }
    l(j, j) = std::sqrt(l(j, j));
    for (int i = j + 1; i < N; ++i) {
      for (int k = 0; k < j; ++k) l(i, j) -= l(i, k) * l(j, k);
      l(i, j) /= l(j, j);
    }
  }
  copy<T, N, N>(l, x);
}
template <class T, int N, int K>
static void triangular(Matrix<const T> a, Matrix<const T> b, Matrix<T> x, bool upper, bool unit) {
  Local<T, N, N> m(a);
  Local<T, N, K> y(b);
  substitute<T, N, K>(m.view, y.view, upper, unit);
  copy<T, N, K>(y.view, x);
}
template <class T, int N, int K>
static void cholesky_solve(Matrix<const T> a, Matrix<const T> b, Matrix<T> x) {
  Local<T, N, N> m(a);
  Local<T, N, K> y(b);
  substitute<T, N, K>(m.view, y.view, false, false);
  substitute<T, N, K>(Matrix<T>{m.values, 1, N}, y.view, true, false);
  copy<T, N, K>(y.view, x);
}
template <class T, int N>
static T sign_of(const int32_t* pivots) {
  bool odd = false;
  for (int i = 0; i < N; ++i) odd ^= pivots[i] != i + 1;
  return odd ? T(-1) : T(1);
}
template <class T, int N>
static void determinant(Matrix<const T> a, Matrix<T> factors, int32_t* pivots, T* result) {
  Local<T, N, N> lu(a);
  factor<T, N>(lu.view, pivots);
  T product = sign_of<T, N>(pivots);
  for (int i = 0; i < N; ++i) product *= lu.view(i, i);
  *result = product;
  copy<T, N, N>(lu.view, factors);
}
template <class T, int N>
static void sign_and_log(Matrix<const T> a, Matrix<T> factors, int32_t* pivots, T* sign, T* log) {
  Local<T, N, N> lu(a);
  factor<T, N>(lu.view, pivots);
  T s = sign_of<T, N>(pivots), sum = 0;
  for (int i = 0; i < N; ++i) {
    const T u = lu.view(i, i);
    s *= u == u ? T((u > T(0)) - (u < T(0))) : u;
    sum += std::log(std::abs(u));
  }
  *sign = s;
  *log = sum;
  copy<T, N, N>(lu.view, factors);
}
[[maybe_unused]] static C10_NOINLINE void failed(
    int64_t place, int32_t info, const char* name, bool is_matrix, const char* said) {
  std::string text = std::string(name) + ": ";
  if (!is_matrix) text += "(Batch element " + std::to_string(place) + "): ";
  for (; *said; ++said) text += *said == '#' ? std::to_string(info) : std::string(1, *said);
  throw std::runtime_error(text);
}
[[maybe_unused]] static C10_ALWAYS_INLINE void check(
    const int32_t* info, int64_t count, const char* name, bool is_matrix, const char* said) {
  for (int64_t i = 0; i < count; ++i)
    if (info[i] != 0) failed(i, info[i], name, is_matrix, said);
}
}
#endif