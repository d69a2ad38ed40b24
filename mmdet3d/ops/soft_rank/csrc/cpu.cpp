#include "correlation.h"
#include "pool.h"
#include <algorithm>

// Waiting for a second thread costs more than it saves where there is less work than this for each, in values.
static int workers(int threads, int64_t values, int64_t share) {
  return (int)std::min<int64_t>(threads, 1 + values / share);
}
static const int64_t POOLED = 1 << 16, STREAMED = 1 << 18;

template <typename T>
static void forward(int64_t rows, int64_t n, bool entropic, const void* values, double* pooled, int64_t* blocks, void* ranks,
                    int threads) {
#pragma omp parallel for num_threads(workers(threads, rows * n, POOLED))
  for (int64_t r = 0; r < rows; ++r)
    pool(entropic, n, (const T*)values + r * n, pooled + r * n, blocks + r * n, (T*)ranks + r * n);
}

template <typename T>
static void backward(int64_t rows, int64_t n, bool entropic, const void* grad_out, const void* ranks, const int64_t* blocks,
                     void* grad, int threads) {
#pragma omp parallel for num_threads(workers(threads, rows * n, POOLED))
  for (int64_t r = 0; r < rows; ++r)
    pool_backward(entropic, n, (const T*)grad_out + r * n, (const T*)ranks + r * n, blocks + r * n, (T*)grad + r * n);
}

// partial (rows, chunks, 5): sums of s, s s, t, t t, s t over a chunk. Both sides are taken less a value of their own (all
// of the student less its first, each row of the teacher less its first), so that a large mean costs no digits.
template <typename T>
static void correlation(int64_t rows, int64_t n, int64_t chunk, const T* student, const T* teacher, double* partial, T* rho,
                        double* summary, int threads) {
  const int64_t chunks = (n + chunk - 1) / chunk;
  const T first_s = student[0];
#pragma omp parallel for num_threads(workers(threads, rows * n, STREAMED))
  for (int64_t i = 0; i < rows * chunks; ++i) {
    const int64_t row = i / chunks, begin = i % chunks * chunk, end = std::min(n, begin + chunk);
    const T *s = student + row * n, *t = teacher + row * n, first_t = t[0];
    double sum_s = 0, sum_ss = 0, sum_t = 0, sum_tt = 0, sum_st = 0;
#pragma omp simd reduction(+ : sum_s, sum_ss, sum_t, sum_tt, sum_st)
    for (int64_t k = begin; k < end; ++k) {
      const double a = (double)s[k] - (double)first_s, b = (double)t[k] - (double)first_t;
      sum_s += a, sum_ss += a * a, sum_t += b, sum_tt += b * b, sum_st += a * b;
    }
    const double sums[5] = {sum_s, sum_ss, sum_t, sum_tt, sum_st};
    std::copy(sums, sums + 5, partial + i * 5);
  }
  correlate(rows, n, chunks, partial, student, teacher, rho, summary);
}

// grad = scale * d rho / d own, see correlation.h; `side` is 0 for the student, 1 for the teacher.
template <typename T>
static void gradient(int64_t rows, int64_t n, int64_t side, const T* other, const T* own, const double* summary,
                     const T* scale, T* grad, int threads) {
  const T a = (T)(summary[0] * (double)*scale), b = (T)(summary[1 + side] * (double)*scale);
#pragma omp parallel num_threads(workers(threads, rows * n, STREAMED))
  for (int64_t r = 0; r < rows; ++r) {
    const T *x = other + r * n, *y = own + r * n;
    T* out = grad + r * n;
    const T constant = (T)(summary[4 + side * rows + r] * (double)*scale);
#pragma omp for simd nowait
    for (int64_t k = 0; k < n; ++k) out[k] = a * x[k] - b * y[k] + constant;
  }
}

EXPORT int soft_rank_forward(int64_t dtype, int64_t rows, int64_t n, int64_t entropic, const void* values, double* pooled,
                             int64_t* blocks, void* ranks, int threads, void*) {
  (dtype ? forward<double> : forward<float>)(rows, n, entropic != 0, values, pooled, blocks, ranks, threads);
  return 0;
}

EXPORT int soft_rank_gradient(int64_t dtype, int64_t rows, int64_t n, int64_t entropic, const void* grad_out,
                              const void* ranks, const int64_t* blocks, void* grad, int threads, void*) {
  (dtype ? backward<double> : backward<float>)(rows, n, entropic != 0, grad_out, ranks, blocks, grad, threads);
  return 0;
}

EXPORT int spearman_correlation(int64_t dtype, int64_t rows, int64_t n, int64_t chunk, const void* student,
                                const void* teacher, double* partial, void* rho, double* summary, int threads, void*) {
  if (dtype)
    correlation(rows, n, chunk, (const double*)student, (const double*)teacher, partial, (double*)rho, summary, threads);
  else
    correlation(rows, n, chunk, (const float*)student, (const float*)teacher, partial, (float*)rho, summary, threads);
  return 0;
}

EXPORT int spearman_gradient(int64_t dtype, int64_t rows, int64_t n, int64_t side, const void* other, const void* own,
                             const double* summary, const void* scale, void* grad, int threads, void*) {
  if (dtype)
    gradient(rows, n, side, (const double*)other, (const double*)own, summary, (const double*)scale, (double*)grad, threads);
  else
    gradient(rows, n, side, (const float*)other, (const float*)own, summary, (const float*)scale, (float*)grad, threads);
  return 0;
}
