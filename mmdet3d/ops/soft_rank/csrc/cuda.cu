#include "correlation.h"
#include "pool.h"

template <typename T>
KERNEL forward(int64_t rows, int64_t n, bool entropic, const T* values, double* pooled, int64_t* blocks, T* ranks) {
  FOR_ITEMS(r, rows) pool(entropic, n, values + r * n, pooled + r * n, blocks + r * n, ranks + r * n);
}

template <typename T>
KERNEL backward(int64_t rows, int64_t n, bool entropic, const T* grad_out, const T* ranks, const int64_t* blocks, T* grad) {
  FOR_ITEMS(r, rows) pool_backward(entropic, n, grad_out + r * n, ranks + r * n, blocks + r * n, grad + r * n);
}

// One warp a chunk; see cpu.cpp for what is summed.
template <typename T>
KERNEL moments(int64_t items, int64_t n, int64_t chunk, const T* student, const T* teacher, double* partial) {
  const int64_t chunks = (n + chunk - 1) / chunk;
  FOR_WARPS(i, items) {
    const int64_t row = i / chunks, begin = i % chunks * chunk, end = begin + chunk < n ? begin + chunk : n;
    const T *s = student + row * n, *t = teacher + row * n;
    const double first_s = (double)student[0], first_t = (double)t[0];
    double sums[5] = {0, 0, 0, 0, 0};
    for (int64_t k = begin + lane(); k < end; k += LANES) {
      const double a = (double)s[k] - first_s, b = (double)t[k] - first_t;
      sums[0] += a, sums[1] += a * a, sums[2] += b, sums[3] += b * b, sums[4] += a * b;
    }
    for (int m = 0; m < 5; ++m) {
      const double sum = warp_sum(sums[m]);
      if (lane() == 0) partial[i * 5 + m] = sum;
    }
  }
}

// One item: few rows, and sums that are few already.
template <typename T>
KERNEL correlation(int64_t items, int64_t rows, int64_t n, int64_t chunk, const double* partial, const T* student,
                   const T* teacher, T* rho, double* summary) {
  FOR_ITEMS(i, items) correlate(rows, n, (n + chunk - 1) / chunk, partial, student, teacher, rho, summary);
}

// See cpu.cpp.
template <typename T>
KERNEL gradient(int64_t items, int64_t rows, int64_t n, int64_t side, const T* other, const T* own, const double* summary,
                const T* scale, T* grad) {
  const double* constants = summary + 4 + side * rows;
  FOR_ITEMS(i, items)
    grad[i] = (T)((double)*scale * (summary[0] * (double)other[i] - summary[1 + side] * (double)own[i] + constants[i / n]));
}

template <typename T>
static void correlate_rows(int64_t rows, int64_t n, int64_t chunk, const T* student, const T* teacher, double* partial, T* rho,
                           double* summary, void* stream) {
  LAUNCH_WARPS(moments<T>, rows * ((n + chunk - 1) / chunk), stream, n, chunk, student, teacher, partial);
  LAUNCH(correlation<T>, 1, stream, rows, n, chunk, partial, student, teacher, rho, summary);
}

EXPORT int soft_rank_forward(int64_t dtype, int64_t rows, int64_t n, int64_t entropic, const void* values, double* pooled,
                             int64_t* blocks, void* ranks, int device, void* stream) {
  if (int error = begin(device)) return error;
  if (dtype)
    LAUNCH(forward<double>, rows, stream, n, entropic != 0, (const double*)values, pooled, blocks, (double*)ranks);
  else
    LAUNCH(forward<float>, rows, stream, n, entropic != 0, (const float*)values, pooled, blocks, (float*)ranks);
  return finish();
}

EXPORT int soft_rank_gradient(int64_t dtype, int64_t rows, int64_t n, int64_t entropic, const void* grad_out,
                              const void* ranks, const int64_t* blocks, void* grad, int device, void* stream) {
  if (int error = begin(device)) return error;
  if (dtype)
    LAUNCH(backward<double>, rows, stream, n, entropic != 0, (const double*)grad_out, (const double*)ranks, blocks,
           (double*)grad);
  else
    LAUNCH(backward<float>, rows, stream, n, entropic != 0, (const float*)grad_out, (const float*)ranks, blocks, (float*)grad);
  return finish();
}

EXPORT int spearman_correlation(int64_t dtype, int64_t rows, int64_t n, int64_t chunk, const void* student,
                                const void* teacher, double* partial, void* rho, double* summary, int device, void* stream) {
  if (int error = begin(device)) return error;
  if (dtype)
    correlate_rows(rows, n, chunk, (const double*)student, (const double*)teacher, partial, (double*)rho, summary, stream);
  else
    correlate_rows(rows, n, chunk, (const float*)student, (const float*)teacher, partial, (float*)rho, summary, stream);
  return finish();
}

EXPORT int spearman_gradient(int64_t dtype, int64_t rows, int64_t n, int64_t side, const void* other, const void* own,
                             const double* summary, const void* scale, void* grad, int device, void* stream) {
  if (int error = begin(device)) return error;
  if (dtype)
    LAUNCH(gradient<double>, rows * n, stream, rows, n, side, (const double*)other, (const double*)own, summary,
           (const double*)scale, (double*)grad);
  else
    LAUNCH(gradient<float>, rows * n, stream, rows, n, side, (const float*)other, (const float*)own, summary,
           (const float*)scale, (float*)grad);
  return finish();
}
