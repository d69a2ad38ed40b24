// One thread per output element; the gradient adds with atomics, so its last bits depend on the order of arrival.
#include "region.h"

// Calls visit(pixel, weight) for the four pixels of every sample of one bin. False if the box has no answer.
template <typename T, typename Visit>
HOST_DEVICE bool visit_bin(const Geometry& g, const T* box, int64_t bin_y, int64_t bin_x, Visit visit) {
  Axis<T> y, x;
  int64_t image;
  if (!read_box(g, box, &image, &y, &x)) return false;
  int64_t first_y, last_y, first_x, last_x, low_y, high_y, low_x, high_x;
  T up, right;
  sample_range(y, bin_y, &first_y, &last_y);
  sample_range(x, bin_x, &first_x, &last_x);
  const T share = (T)1 / ((T)y.samples * (T)x.samples);
  for (int64_t i = first_y; i < last_y; ++i) {
    if (!locate(y, bin_y, i, &low_y, &high_y, &up)) continue;
    for (int64_t j = first_x; j < last_x; ++j) {
      if (!locate(x, bin_x, j, &low_x, &high_x, &right)) continue;
      visit(image, low_y * g.width + low_x, (1 - up) * (1 - right) * share);
      visit(image, low_y * g.width + high_x, (1 - up) * right * share);
      visit(image, high_y * g.width + low_x, up * (1 - right) * share);
      visit(image, high_y * g.width + high_x, up * right * share);
    }
  }
  return true;
}

template <typename T>
KERNEL forward(int64_t items, Geometry g, const T* features, const T* boxes, T* out) {
  const int64_t bins = g.bins_y * g.bins_x, pixels = g.height * g.width;
  FOR_ITEMS(i, items) {
    const int64_t bin = i % bins, channel = i / bins % g.channels, k = i / bins / g.channels;
    T sum = 0;
    const bool found = visit_bin(g, boxes + k * 5, bin / g.bins_x, bin % g.bins_x, [&](int64_t image, int64_t pixel, T weight) {
      sum += weight * features[(image * g.channels + channel) * pixels + pixel];
    });
    out[i] = found ? sum : (T)NAN;
  }
}

template <typename T>
KERNEL backward(int64_t items, Geometry g, const T* grad_out, const T* boxes, T* grad) {
  const int64_t bins = g.bins_y * g.bins_x, pixels = g.height * g.width;
  FOR_ITEMS(i, items) {
    const int64_t bin = i % bins, channel = i / bins % g.channels, k = i / bins / g.channels;
    visit_bin(g, boxes + k * 5, bin / g.bins_x, bin % g.bins_x, [&](int64_t image, int64_t pixel, T weight) {
      atomic_add(grad + (image * g.channels + channel) * pixels + pixel, weight * grad_out[i]);
    });
  }
}

EXPORT int roi_align_forward(GEOMETRY_ARGUMENTS, const void* features, const void* box, void* out, int device, void* stream) {
  if (int error = begin(device)) return error;
  const int64_t items = boxes * channels * bins_y * bins_x;
  if (dtype)
    LAUNCH(forward<double>, items, stream, GEOMETRY, (const double*)features, (const double*)box, (double*)out);
  else
    LAUNCH(forward<float>, items, stream, GEOMETRY, (const float*)features, (const float*)box, (float*)out);
  return finish();
}

EXPORT int roi_align_gradient(GEOMETRY_ARGUMENTS, const void* grad_out, const void* box, void* grad, int device, void* stream) {
  if (int error = begin(device)) return error;
  const int64_t items = boxes * channels * bins_y * bins_x;
  if (dtype)
    LAUNCH(backward<double>, items, stream, GEOMETRY, (const double*)grad_out, (const double*)box, (double*)grad);
  else
    LAUNCH(backward<float>, items, stream, GEOMETRY, (const float*)grad_out, (const float*)box, (float*)grad);
  return finish();
}
