// Where the samples of a box lie; the same arithmetic for the CPU, CUDA and the PyTorch twin.
#pragma once
#include "launch.h"

struct Geometry {
  int64_t boxes, images, channels, height, width, bins_y, bins_x;
  double scale;
  int64_t sampling_ratio;
  bool aligned;
};

// One axis of a box: `bins` bins of `size` pixels from `start`, `samples` samples each, on a map of `extent` pixels.
template <typename T>
struct Axis {
  T start, size;
  int64_t samples, extent;
};

template <typename T>
HOST_DEVICE Axis<T> make_axis(T lower, T upper, int64_t bins, int64_t extent, const Geometry& g) {
  T offset = g.aligned ? (T)0.5 : (T)0;
  T start = lower * (T)g.scale - offset, length = upper * (T)g.scale - offset - start;
  if (!g.aligned && length < 1) length = 1;
  T size = length / (T)bins;
  int64_t samples = g.sampling_ratio ? g.sampling_ratio : (int64_t)ceil(size);
  return {start, size, samples > 0 ? samples : 0, extent};
}

// box: image, x1, y1, x2, y2. False if the box has no answer; it is then NaN in one of its corners or names no image.
template <typename T>
HOST_DEVICE bool read_box(const Geometry& g, const T* box, int64_t* image, Axis<T>* y, Axis<T>* x) {
  if (!(box[0] >= 0 && box[0] < (T)g.images)) return false;
  for (int k = 1; k < 5; ++k)
    if (!(box[k] - box[k] == 0)) return false;
  *image = (int64_t)box[0];
  *y = make_axis(box[2], box[4], g.bins_y, g.height, g);
  *x = make_axis(box[1], box[3], g.bins_x, g.width, g);
  return true;
}

// The samples of a bin that can touch the map are among [first, last): a box far larger than the map costs no more.
template <typename T>
HOST_DEVICE void sample_range(const Axis<T>& a, int64_t bin, int64_t* first, int64_t* last) {
  *first = 0;
  *last = a.samples;
  if (!(a.size > 0)) return;
  double step = (double)a.size / (double)a.samples, begin = (double)a.start + (double)bin * (double)a.size;
  double low = floor((-1 - begin) / step) - 2, high = ceil(((double)a.extent - begin) / step) + 2;
  if (low > 0) *first = low < (double)a.samples ? (int64_t)low : a.samples;
  if (high < (double)a.samples) *last = high > 0 ? (int64_t)high : 0;
}

// The two pixels a sample lies between and the share of the upper one; false if it lies off the map.
template <typename T>
HOST_DEVICE bool locate(const Axis<T>& a, int64_t bin, int64_t sample, int64_t* low, int64_t* high, T* fraction) {
  T position = a.start + (T)bin * a.size + ((T)sample + (T)0.5) * a.size / (T)a.samples;
  if (!(position >= -1 && position <= (T)a.extent)) return false;
  if (position < 0) position = 0;
  if (position > (T)(a.extent - 1)) position = (T)(a.extent - 1);
  *low = (int64_t)position;
  *high = *low + 1 < a.extent ? *low + 1 : a.extent - 1;
  *fraction = position - (T)*low;
  return true;
}

// The arguments both entry points share, in the order in which Python passes them.
#define GEOMETRY_ARGUMENTS                                                                                         \
  int64_t dtype, int64_t boxes, int64_t images, int64_t channels, int64_t height, int64_t width, int64_t bins_y,   \
      int64_t bins_x, double scale, int64_t sampling_ratio, int64_t aligned
#define GEOMETRY \
  Geometry { boxes, images, channels, height, width, bins_y, bins_x, scale, sampling_ratio, aligned != 0 }
