#include "decorate.h"

template <typename T>
static void forward(const Decoration& d, int64_t pillars, const void* points, const int64_t* counts, const int64_t* cells,
                    void* out, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t m = 0; m < pillars; ++m)
    decorate(d, (const T*)points + m * d.slots * d.inputs, counts[m], cells + m * 3, (T*)out + m * d.slots * d.outputs);
}

template <typename T>
static void backward(const Decoration& d, int64_t pillars, const void* points, const int64_t* counts, const void* grad_out,
                     void* grad, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t m = 0; m < pillars; ++m)
    decorate_backward(d, (const T*)points + m * d.slots * d.inputs, counts[m],
                      (const T*)grad_out + m * d.slots * d.outputs, (T*)grad + m * d.slots * d.inputs);
}

EXPORT int decorate_forward(DECORATION_ARGUMENTS, const void* points, const int64_t* counts, const int64_t* cells, void* out,
                            int threads, void*) {
  (dtype ? forward<double> : forward<float>)(DECORATION, pillars, points, counts, cells, out, threads);
  return 0;
}

EXPORT int decorate_gradient(DECORATION_ARGUMENTS, const void* points, const int64_t* counts, const void* grad_out, void* grad,
                             int threads, void*) {
  (dtype ? backward<double> : backward<float>)(DECORATION, pillars, points, counts, grad_out, grad, threads);
  return 0;
}
