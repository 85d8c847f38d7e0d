#ifndef FH_ORDERING
#define FH_ORDERING
#include <algorithm>
#include <utility>
#include <vector>
namespace fh {
template <class T, class H, class X, class F>
static void running(const X* x, T* out, int64_t n, int64_t stride, H held, F step) {
  for (int64_t i = 0; i < n; ++i) {
    held = step(held, static_cast<H>(static_cast<T>(x[i * stride])));
    out[i * stride] = static_cast<T>(held);
  }
}
template <class T>
static C10_ALWAYS_INLINE bool is_nan(T x) { return x != x; }
// log(exp(a) + exp(b))
template <class T>
static C10_ALWAYS_INLINE T log_of_sum(T a, T b) {
  const T low = a < b ? a : b, high = a < b ? b : a;
  return low != high || std::isfinite(low) ? std::log1p(std::exp(low - high)) + high : b;
}
template <class T, class F>
static void extreme(const T* x, T* out, int64_t* places, int64_t n, int64_t stride, F beats) {
  T best = x[0];
  int64_t place = 0;
  for (int64_t i = 0; i < n; ++i) {
    const T v = x[i * stride];
    if (is_nan(v) || (!is_nan(best) && beats(v, best))) {
      best = v;
      place = i;
    }
    out[i * stride] = best;
    places[i * stride] = place;
  }
}
// NaN is the greatest.
template <bool FALLS, class T>
static C10_ALWAYS_INLINE bool before(T a, T b) {
  return FALLS ? (is_nan(a) && !is_nan(b)) || a > b : (!is_nan(a) && is_nan(b)) || a < b;
}
template <class T>
using Placed = std::vector<std::pair<T, int64_t>>;
template <class T>
static Placed<T>& placed(const T* x, int64_t n, int64_t stride) {
  static thread_local Placed<T> all;
  all.resize(n);
  for (int64_t i = 0; i < n; ++i) all[i] = {x[i * stride], i};
  return all;
}
template <class T>
static void store(const Placed<T>& all, int64_t n, T* out, int64_t* places, int64_t stride) {
  for (int64_t i = 0; i < n; ++i) {
    out[i * stride] = all[i].first;
    places[i * stride] = all[i].second;
  }
}
template <bool FALLS, class T>
static void sorted(const T* x, T* out, int64_t* places, int64_t n, int64_t stride) {
  auto& all = placed(x, n, stride);
  std::stable_sort(
      all.begin(), all.end(), [](const auto& a, const auto& b) { return before<FALLS>(a.first, b.first); });
  store(all, n, out, places, stride);
}
template <bool LARGEST, bool IN_ORDER, class T>
static void topk(const T* x, T* out, int64_t* places, int64_t n, int64_t k, int64_t stride) {
  auto& all = placed(x, n, stride);
  auto first = [](const auto& a, const auto& b) { return before<LARGEST>(a.first, b.first); };
  if (k * 64 <= n) {
    std::partial_sort(all.begin(), all.begin() + k, all.end(), first);
  } else {
    std::nth_element(all.begin(), all.begin() + k - 1, all.end(), first);
    if (IN_ORDER) std::sort(all.begin(), all.begin() + k - 1, first);
  }
  store(all, k, out, places, stride);
}
template <bool RIGHT, class T>
static C10_ALWAYS_INLINE int64_t place_in(const T* rows, int64_t n, T x) {
  int64_t start = 0, end = n;
  while (start < end) {
    const int64_t mid = start + (end - start) / 2;
    if (RIGHT ? !(rows[mid] > x) : !(rows[mid] >= x)) start = mid + 1;
    else end = mid;
  }
  return start;
}
}
#endif