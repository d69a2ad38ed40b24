// A box is separable: its bins are R * plane * C^T with banded matrices R (bins_y, height) and C (bins_x, width), so each
// pixel of a box is read once, instead of four times per sample.
#include "region.h"
#include <algorithm>
#include <cmath>
#include <vector>

// A banded matrix (bins, extent): row b is zero outside of [low[b], high[b]).
template <typename T>
struct Band {
  int64_t bins, extent, begin, end;  // all rows lie within [begin, end)
  std::vector<T> weights;
  std::vector<int64_t> low, high;

  Band(int64_t bins, int64_t extent) : bins(bins), extent(extent), weights(bins * extent), low(bins), high(bins) {}

  const T* row(int64_t b) const { return weights.data() + b * extent; }

  void fill(const Axis<T>& axis) {
    begin = extent, end = 0;
    for (int64_t b = 0; b < bins; ++b) {
      T* values = weights.data() + b * extent;
      std::fill(values, values + extent, (T)0);
      low[b] = extent, high[b] = 0;
      int64_t first, last, lower, upper;
      T fraction;
      sample_range(axis, b, &first, &last);
      for (int64_t i = first; i < last; ++i) {
        if (!locate(axis, b, i, &lower, &upper, &fraction)) continue;
        values[lower] += (1 - fraction) / (T)axis.samples;
        values[upper] += fraction / (T)axis.samples;
        low[b] = std::min(low[b], lower);
        high[b] = std::max(high[b], upper + 1);
      }
      begin = std::min(begin, low[b]);
      end = std::max(end, high[b]);
    }
  }
};

// Working memory of one thread.
template <typename T>
struct Cutter {
  const Geometry& g;
  Band<T> rows, columns;
  std::vector<T> middle;  // (height, bins_x)
  int64_t image = 0;

  explicit Cutter(const Geometry& g)
      : g(g), rows(g.bins_y, g.height), columns(g.bins_x, g.width), middle(g.height * g.bins_x) {}

  bool open(const T* box) {
    Axis<T> y, x;
    if (!read_box(g, box, &image, &y, &x)) return false;
    rows.fill(y);
    columns.fill(x);
    return true;
  }

  void gather(const T* plane, T* out) {
    for (int64_t r = rows.begin; r < rows.end; ++r)
      for (int64_t b = 0; b < g.bins_x; ++b) {
        const T *weights = columns.row(b), *pixels = plane + r * g.width;
        T sum = 0;
        for (int64_t c = columns.low[b]; c < columns.high[b]; ++c) sum += weights[c] * pixels[c];
        middle[r * g.bins_x + b] = sum;
      }
    for (int64_t a = 0; a < g.bins_y; ++a) {
      T* target = out + a * g.bins_x;
      std::fill(target, target + g.bins_x, (T)0);
      for (int64_t r = rows.low[a]; r < rows.high[a]; ++r)
        for (int64_t b = 0; b < g.bins_x; ++b) target[b] += rows.row(a)[r] * middle[r * g.bins_x + b];
    }
  }

  void scatter(const T* grad_out, T* plane) {
    if (rows.begin < rows.end) std::fill(&middle[rows.begin * g.bins_x], &middle[0] + rows.end * g.bins_x, (T)0);
    for (int64_t a = 0; a < g.bins_y; ++a)
      for (int64_t r = rows.low[a]; r < rows.high[a]; ++r)
        for (int64_t b = 0; b < g.bins_x; ++b) middle[r * g.bins_x + b] += rows.row(a)[r] * grad_out[a * g.bins_x + b];
    for (int64_t r = rows.begin; r < rows.end; ++r)
      for (int64_t b = 0; b < g.bins_x; ++b) {
        const T *weights = columns.row(b), share = middle[r * g.bins_x + b];
        T* pixels = plane + r * g.width;
        for (int64_t c = columns.low[b]; c < columns.high[b]; ++c) pixels[c] += weights[c] * share;
      }
  }
};

template <typename T>
static void forward(const Geometry& g, const void* features, const void* boxes, void* out, int threads) {
  const int64_t bins = g.bins_y * g.bins_x, pixels = g.height * g.width;
#pragma omp parallel num_threads(threads)
  {
    Cutter<T> cutter(g);
#pragma omp for schedule(dynamic)
    for (int64_t k = 0; k < g.boxes; ++k) {
      T* target = (T*)out + k * g.channels * bins;
      if (!cutter.open((const T*)boxes + k * 5)) {
        std::fill(target, target + g.channels * bins, (T)NAN);
        continue;
      }
      for (int64_t c = 0; c < g.channels; ++c)
        cutter.gather((const T*)features + (cutter.image * g.channels + c) * pixels, target + c * bins);
    }
  }
}

// A thread owns planes (image, channel) and adds the boxes in their order: one result for any number of threads.
template <typename T>
static void backward(const Geometry& g, const void* grad_out, const void* boxes, void* grad, int threads) {
  const int64_t bins = g.bins_y * g.bins_x, pixels = g.height * g.width, planes = g.images * g.channels;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int t = 0; t < threads; ++t) {
    const int64_t begin = planes * t / threads, end = planes * (t + 1) / threads;
    Cutter<T> cutter(g);
    for (int64_t k = 0; k < g.boxes; ++k) {
      if (!cutter.open((const T*)boxes + k * 5)) continue;
      const int64_t first = cutter.image * g.channels;
      for (int64_t p = std::max(begin, first); p < std::min(end, first + g.channels); ++p)
        cutter.scatter((const T*)grad_out + (k * g.channels + p - first) * bins, (T*)grad + p * pixels);
    }
  }
}

EXPORT int roi_align_forward(GEOMETRY_ARGUMENTS, const void* features, const void* box, void* out, int threads, void*) {
  (dtype ? forward<double> : forward<float>)(GEOMETRY, features, box, out, threads);
  return 0;
}

EXPORT int roi_align_gradient(GEOMETRY_ARGUMENTS, const void* grad_out, const void* box, void* grad, int threads, void*) {
  (dtype ? backward<double> : backward<float>)(GEOMETRY, grad_out, box, grad, threads);
  return 0;
}
