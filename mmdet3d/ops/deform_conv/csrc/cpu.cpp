#include "convolution.h"
#include "products.h"
#include <algorithm>
#include <numeric>
#include <vector>

// Below this a second thread costs more than it brings.
static int threads_for(const Convolution& d, int threads) {
  return d.rows * d.taps() * d.channels < 1 << 15 ? 1 : threads;
}

// Calls body(channel, columns, count) for the channels [from, to), cut where a group of the columns ends.
template <typename T, typename Body>
static inline void for_runs(const Convolution& d, T* columns, int64_t row, int64_t tap, int64_t from, int64_t to,
                            Body body) {
  const int64_t width = d.channels / d.groups;
  for (int64_t c = from, end; c < to; c = end) {
    end = std::min(to, (c / width + 1) * width);
    body(c, columns + d.column_place(row, tap, c), end - c);
  }
}

template <typename T>
static void gather(const Convolution& d, const void* images_, const void* offset_, const void* mask_, void* columns_,
                   int threads) {
  const T *images = (const T*)images_, *offset = (const T*)offset_, *mask = (const T*)mask_;
#pragma omp parallel for num_threads(threads_for(d, threads))
  for (int64_t row = 0; row < d.rows; ++row)
    for (int64_t tap = 0; tap < d.taps(); ++tap)
      for (int64_t group = 0; group < d.deform_groups; ++group) {
        const int64_t place = d.mask_place(row, tap, group);
        const Corners<T> corners = d.corners(row, tap, offset + d.offset_place(place));
        const T scale = mask ? mask[place] : (T)1;
        const T* image = images + d.image(row) * d.channels;
        for_runs(d, (T*)columns_, row, tap, d.channel(group), d.channel(group + 1),
                 [&](int64_t c, T* out, int64_t count) {
                   for (int64_t j = 0; j < count; ++j) out[j] = scale * 0;  // NaN stays NaN
                   for (int k = 0; k < 4; ++k) {
                     if (corners.pixel[k] < 0) continue;
                     const T* __restrict__ pixel = image + corners.pixel[k] * d.channels + c;
                     const T factor = scale * corners.weight[k];
#pragma omp simd
                     for (int64_t j = 0; j < count; ++j) out[j] += factor * pixel[j];
                   }
                 });
      }
}

// Gradients of offset and mask: a thread owns an output pixel.
template <typename T>
static void differentiate(const Convolution& d, const void* images_, const void* offset_, const void* mask_,
                          const void* grad_columns_, void* grad_offset_, void* grad_mask_, int threads) {
  const T *images = (const T*)images_, *offset = (const T*)offset_, *mask = (const T*)mask_;
#pragma omp parallel for num_threads(threads_for(d, threads))
  for (int64_t row = 0; row < d.rows; ++row)
    for (int64_t tap = 0; tap < d.taps(); ++tap)
      for (int64_t group = 0; group < d.deform_groups; ++group) {
        const int64_t place = d.mask_place(row, tap, group), offset_place = d.offset_place(place);
        const Corners<T> corners = d.corners(row, tap, offset + offset_place);
        const T scale = mask ? mask[place] : (T)1;
        const T* image = images + d.image(row) * d.channels;
        T along = 0, down = 0, right = 0;
        for_runs(d, (const T*)grad_columns_, row, tap, d.channel(group), d.channel(group + 1),
                 [&](int64_t c, const T* grad, int64_t count) {
                   for (int k = 0; k < 4; ++k) {
                     if (corners.pixel[k] < 0) continue;
                     const T* pixel = image + corners.pixel[k] * d.channels + c;
                     T product = 0;
#pragma omp simd reduction(+ : product)
                     for (int64_t j = 0; j < count; ++j) product += grad[j] * pixel[j];
                     along += corners.weight[k] * product;
                     down += corners.dy[k] * product;
                     right += corners.dx[k] * product;
                   }
                 });
        ((T*)grad_offset_)[offset_place] = scale * down;
        ((T*)grad_offset_)[offset_place + d.size()] = scale * right;
        if (mask) ((T*)grad_mask_)[place] = along;
      }
}

// Gradient of the images: a thread owns a range of channels, and every sum runs in the order of rows and taps.
template <typename T>
static void scatter(const Convolution& d, const void* offset_, const void* mask_, const void* grad_columns_,
                    void* grad_images_, int threads) {
  const T *offset = (const T*)offset_, *mask = (const T*)mask_;
  const int64_t parts = threads_for(d, threads);
#pragma omp parallel for num_threads(parts)
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t from = d.channels * part / parts, to = d.channels * (part + 1) / parts;
    for (int64_t row = 0; row < d.rows; ++row)
      for (int64_t tap = 0; tap < d.taps(); ++tap)
        for (int64_t group = 0; group < d.deform_groups; ++group) {
          const int64_t first = std::max(from, d.channel(group)), last = std::min(to, d.channel(group + 1));
          if (first >= last) continue;
          const int64_t place = d.mask_place(row, tap, group);
          const Corners<T> corners = d.corners(row, tap, offset + d.offset_place(place));
          const T scale = mask ? mask[place] : (T)1;
          T* image = (T*)grad_images_ + d.image(row) * d.channels;
          for_runs(d, (const T*)grad_columns_, row, tap, first, last, [&](int64_t c, const T* grad, int64_t count) {
            for (int k = 0; k < 4; ++k) {
              if (corners.pixel[k] < 0) continue;
              T* __restrict__ pixel = image + corners.pixel[k] * d.channels + c;
              const T factor = scale * corners.weight[k];
#pragma omp simd
              for (int64_t j = 0; j < count; ++j) pixel[j] += factor * grad[j];
            }
          });
        }
  }
}

template <typename T>
static void backward(const Convolution& d, const void* images, const void* offset, const void* mask,
                     const void* grad_columns, void* grad_images, void* grad_offset, void* grad_mask, int threads) {
  differentiate<T>(d, images, offset, mask, grad_columns, grad_offset, grad_mask, threads);
  scatter<T>(d, offset, mask, grad_columns, grad_images, threads);
}

EXPORT int convolution_columns(CONVOLUTION_ARGUMENTS, const void* images, const void* offset, const void* mask,
                               void* columns, int threads, void*) {
  (dtype ? gather<double> : gather<float>)(CONVOLUTION, images, offset, mask, columns, threads);
  return 0;
}

EXPORT int convolution_gradient(CONVOLUTION_ARGUMENTS, const void* images, const void* offset, const void* mask,
                                const void* grad_columns, void* grad_images, void* grad_offset, void* grad_mask,
                                int threads, void*) {
  (dtype ? backward<double> : backward<float>)(CONVOLUTION, images, offset, mask, grad_columns, grad_images,
                                               grad_offset, grad_mask, threads);
  return 0;
}

// Group by group; the bits of a matrix library's products depend on its number of threads.

// out (G, rows, outputs) = left (G, rows, inputs) @ right (G, inputs, outputs).
EXPORT int grouped_products(int64_t dtype, int64_t groups, int64_t rows, int64_t inputs, int64_t outputs,
                            const void* left, const void* right, void* out, int threads, void*) {
  std::vector<int32_t> all(rows);
  std::iota(all.begin(), all.end(), 0);
  auto run = [&](auto zero) {
    using T = decltype(zero);
    for (int64_t g = 0; g < groups; ++g)
      convolve(1, rows, inputs, outputs, (const T*)left + g * rows * inputs, (const T*)right + g * inputs * outputs,
               all.data(), (T*)out + g * rows * outputs, threads);
  };
  dtype ? run(0.0) : run(0.0f);
  return 0;
}

// out (G, inputs, outputs) = left (G, rows, inputs) transposed @ right (G, rows, outputs).
EXPORT int grouped_outer_products(int64_t dtype, int64_t groups, int64_t rows, int64_t inputs, int64_t outputs,
                                  const void* left, const void* right, void* out, int threads, void*) {
  std::vector<int32_t> all(rows);
  std::iota(all.begin(), all.end(), 0);
  auto run = [&](auto zero) {
    using T = decltype(zero);
    for (int64_t g = 0; g < groups; ++g)
      weight_gradient(1, rows, inputs, outputs, (const T*)left + g * rows * inputs,
                      (const T*)right + g * rows * outputs, all.data(), (T*)out + g * inputs * outputs, threads);
  };
  dtype ? run(0.0) : run(0.0f);
  return 0;
}
