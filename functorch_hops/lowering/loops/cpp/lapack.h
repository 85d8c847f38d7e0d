#ifndef FH_LAPACK
#define FH_LAPACK
#include <vector>
extern "C" {
void ssyevd_(const char*, const char*, const int*, float*, const int*, float*, float*, const int*, int*, const int*, int*);
void dsyevd_(
    const char*, const char*, const int*, double*, const int*, double*, double*, const int*, int*, const int*, int*);
void sgesdd_(
    const char*, const int*, const int*, float*, const int*, float*, float*, const int*, float*, const int*, float*,
    const int*, int*, int*);
void dgesdd_(
    const char*, const int*, const int*, double*, const int*, double*, double*, const int*, double*, const int*, double*,
    const int*, int*, int*);
}
namespace fh {
template <class T> struct Lapack;
template <> struct Lapack<float> {
  static constexpr auto syevd = ssyevd_;
  static constexpr auto gesdd = sgesdd_;
};
template <> struct Lapack<double> {
  static constexpr auto syevd = dsyevd_;
  static constexpr auto gesdd = dgesdd_;
};
// LAPACK's matrices are laid out by columns.
template <class T> static void turn(const T* from, T* to, int rows, int columns) {
  for (int j = 0; j < columns; ++j)
    for (int i = 0; i < rows; ++i) to[j * rows + i] = from[i * columns + j];
}
// Of symmetric matrices, of which the part 'L' or 'U' is read; without vectors if there is no place for them.
template <class T>
[[maybe_unused]] static C10_NOINLINE void eigen(
    int n, char part, int64_t count, const T* a, T* values, T* vectors, bool is_matrix) {
  const char job = vectors ? 'V' : 'N';
  const int asks = -1;
  int info = 0, n_integers = 0;
  T n_work = 0;
  std::vector<T> matrix(n * n);
  Lapack<T>::syevd(&job, &part, &n, matrix.data(), &n, values, &n_work, &asks, &n_integers, &asks, &info);
  const int size = int(n_work);
  std::vector<T> work(size);
  std::vector<int> integers(n_integers);
  for (int64_t batch = 0; batch < count; ++batch) {
    turn(a + batch * n * n, matrix.data(), n, n);
    Lapack<T>::syevd(
        &job, &part, &n, matrix.data(), &n, values + batch * n, work.data(), &size, integers.data(), &n_integers, &info);
    if (info != 0)
      failed(
          batch, info, "LinAlgError: linalg.eigh", is_matrix,
          "The algorithm failed to converge because the input matrix is ill-conditioned or has too many repeated "
          "eigenvalues (error code: #).");
    if (vectors) turn(matrix.data(), vectors + batch * n * n, n, n);
  }
}
// ``n_columns`` of u and rows of vh; without these if there is no place for them.
template <class T>
[[maybe_unused]] static C10_NOINLINE void singular(
    int m, int n, int k, bool is_full, int64_t count, const T* a, T* u, T* values, T* vh, bool is_matrix) {
  const char job = !u ? 'N' : is_full ? 'A' : 'S';
  const int asks = -1, columns = is_full ? m : k, rows = is_full ? n : k;
  int info = 0;
  T n_work = 0;
  std::vector<T> matrix(m * n), left(u ? m * columns : 1), right(u ? rows * n : 1);
  std::vector<int> integers(8 * k);
  Lapack<T>::gesdd(
      &job, &m, &n, matrix.data(), &m, values, left.data(), &m, right.data(), &rows, &n_work, &asks, integers.data(), &info);
  const int size = int(n_work);
  std::vector<T> work(size);
  for (int64_t batch = 0; batch < count; ++batch) {
    turn(a + batch * m * n, matrix.data(), m, n);
    Lapack<T>::gesdd(
        &job, &m, &n, matrix.data(), &m, values + batch * k, left.data(), &m, right.data(), &rows, work.data(), &size,
        integers.data(), &info);
    if (info == -4)
      failed(
          batch, info, "LinAlgError: linalg.svd", is_matrix,
          "The algorithm failed to converge because the input matrix contained non-finite values.");
    if (info != 0)
      failed(
          batch, info, "LinAlgError: linalg.svd", is_matrix,
          "The algorithm failed to converge because the input matrix is ill-conditioned or has too many repeated "
          "singular values (error code: #).");
    if (!u) continue;
    turn(left.data(), u + batch * m * columns, columns, m);
    turn(right.data(), vh + batch * rows * n, n, rows);
  }
}
}
#endif
