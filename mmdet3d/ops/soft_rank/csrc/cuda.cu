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

template <typename T>
KERNEL blend(int64_t items, int64_t n, const T* other, const T* own, const double* factors, const double* constants, T* grad) {
  FOR_ITEMS(i, items)
    grad[i] = (T)(factors[0] * (double)other[i] - factors[1] * (double)own[i] + constants[i / n]);
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

EXPORT int spearman_moments(int64_t dtype, int64_t rows, int64_t n, int64_t chunk, const void* student, const void* teacher,
                            double* partial, int device, void* stream) {
  if (int error = begin(device)) return error;
  const int64_t items = rows * ((n + chunk - 1) / chunk);
  if (dtype)
    LAUNCH_WARPS(moments<double>, items, stream, n, chunk, (const double*)student, (const double*)teacher, partial);
  else
    LAUNCH_WARPS(moments<float>, items, stream, n, chunk, (const float*)student, (const float*)teacher, partial);
  return finish();
}

EXPORT int spearman_blend(int64_t dtype, int64_t rows, int64_t n, const void* other, const void* own, const double* factors,
                          const double* constants, void* grad, int device, void* stream) {
  if (int error = begin(device)) return error;
  if (dtype)
    LAUNCH(blend<double>, rows * n, stream, n, (const double*)other, (const double*)own, factors, constants, (double*)grad);
  else
    LAUNCH(blend<float>, rows * n, stream, n, (const float*)other, (const float*)own, factors, constants, (float*)grad);
  return finish();
}
