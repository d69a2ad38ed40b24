#include "iou.h"

#include <new>
#include <vector>

// Below these, waiting for a second thread on a busy machine costs more than it saves; most of all pairs are far apart.
constexpr int64_t MANY_PAIRS = 1 << 16, MANY_ROWS = 1 << 13;
constexpr int OUT_OF_MEMORY = 12;

template <typename T>
static std::vector<Box> make_boxes(const T* values, int64_t count, bool space) {
  std::vector<Box> boxes(count);
  for (int64_t i = 0; i < count; ++i) boxes[i] = make_box(values + i * (space ? 7 : 5), space);
  return boxes;
}

template <typename T>
static void all_pairs(int64_t n, int64_t m, bool space, const T* first, const T* second, T* out, int threads) {
  std::vector<Box> a = make_boxes(first, n, space), b = make_boxes(second, m, space);
#pragma omp parallel for num_threads(threads) if (n * m > MANY_PAIRS)
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < m; ++j) out[i * m + j] = (T)iou(a[i], b[j]);
}

template <typename T>
static void row_by_row(int64_t n, bool space, const T* first, const T* second, T* out, int threads) {
  int64_t columns = space ? 7 : 5;
#pragma omp parallel for num_threads(threads) if (n > MANY_ROWS)
  for (int64_t i = 0; i < n; ++i)
    out[i] = (T)iou(make_box(first + i * columns, space), make_box(second + i * columns, space));
}

EXPORT int iou_pairs(int64_t dtype, int64_t n, int64_t m, int64_t space, const void* first, const void* second, void* out,
                     int threads, void*) try {
  if (dtype)
    all_pairs(n, m, space, (const double*)first, (const double*)second, (double*)out, threads);
  else
    all_pairs(n, m, space, (const float*)first, (const float*)second, (float*)out, threads);
  return 0;
} catch (const std::bad_alloc&) {
  return OUT_OF_MEMORY;
}

EXPORT int iou_rows(int64_t dtype, int64_t n, int64_t space, const void* first, const void* second, void* out, int threads,
                    void*) {
  if (dtype)
    row_by_row(n, space, (const double*)first, (const double*)second, (double*)out, threads);
  else
    row_by_row(n, space, (const float*)first, (const float*)second, (float*)out, threads);
  return 0;
}
