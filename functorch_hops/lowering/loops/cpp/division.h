#ifndef FH_DIVISION
#define FH_DIVISION
#include <torch/csrc/inductor/cpp_prefix.h>
namespace fh {
[[noreturn]] static C10_NOINLINE void division_by_zero() { throw std::runtime_error("ZeroDivisionError"); }
template <class T>
static C10_ALWAYS_INLINE void check_divisor(const T& divisor) {
  if constexpr (std::is_integral_v<T>) {
    if (C10_UNLIKELY(divisor == 0)) division_by_zero();
  } else if constexpr (!std::is_floating_point_v<T>) {
    typename T::value_type lanes[T::size()];
    divisor.store(lanes);
    for (const auto& lane : lanes) check_divisor(lane);
  }
}
}
// torch's kernels note a zero in a variable of the process, which points to the kernel that began last, in any thread,
// and to nothing that lives after one that threw. Here a zero throws.
#define FH_CHECKED(name)                                                             \
  static constexpr auto name = [](const auto& a, const auto& b) -> decltype(auto) { \
    fh::check_divisor(b);                                                            \
    return ::name(a, b);                                                             \
  };
#endif
