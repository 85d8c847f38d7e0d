#ifndef FH_SCATTERING
#define FH_SCATTERING
namespace fh {
[[noreturn]] static C10_NOINLINE void out_of_range(int64_t place, int64_t dim, int64_t size) {
  throw std::runtime_error(
      "index " + std::to_string(place) + " is out of bounds for dimension " + std::to_string(dim) + " with size " +
      std::to_string(size));
}
// Combine a value with the one at ``place`` of a row. A NaN stays one.
template <class T, class F>
static C10_ALWAYS_INLINE void scatter(
    T* row, int64_t place, int64_t dim, int64_t size, int64_t stride, T value, F combine) {
  if (place < 0 || place >= size) out_of_range(place, dim, size);
  T& held = row[place * stride];
  held = value == value ? combine(held, value) : value;
}
}
#endif
