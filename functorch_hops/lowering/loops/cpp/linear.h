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
// With the factors of a: a x = b, or the same of the transposed a.
template <class T, int N, int K>
static C10_ALWAYS_INLINE void solve_factored(
    const Matrix<T>& lu, const int32_t* pivots, const Matrix<T>& x, bool adjoint) {
  auto exchange = [&](int i) {
    const int p = pivots[i] - 1;
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
    int64_t place, int32_t info, const char* name, bool is_matrix, const char* before, const char* after) {
  std::string text = "LinAlgError: " + std::string(name) + ": ";
  if (!is_matrix) text += "(Batch element " + std::to_string(place) + "): ";
  text += before;
  if (after) text += std::to_string(info) + after;
  throw std::runtime_error(text);
}
[[maybe_unused]] static C10_ALWAYS_INLINE void check(
    const int32_t* info, int64_t count, const char* name, bool is_matrix, const char* before, const char* after) {
  for (int64_t i = 0; i < count; ++i)
    if (info[i] != 0) failed(i, info[i], name, is_matrix, before, after);
}
}
#endif