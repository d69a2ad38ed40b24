#include "attention.h"

// One thread a channel of a query, so that neighbouring threads read neighbouring memory.
template <typename T>
KERNEL forward(int64_t items, Attention a, const T* value, const T* locations, const T* weights, T* out) {
  const int64_t stride = a.heads * a.channels;
  FOR_ITEMS(i, items) {
    const int64_t query = i / stride, channel = i % stride;
    int64_t sample = i / a.channels * a.levels * a.points;
    T sum = 0;
    for (int64_t level = 0; level < a.levels; ++level) {
      const T* image = value + (query / a.queries * a.pixels + a.shapes[level * 3 + 2]) * stride + channel;
      for (int64_t point = 0; point < a.points; ++point, ++sample) {
        Corners<T> corners = a.corners(level, locations + sample * 2);
        T sampled = 0;
        for (int k = 0; k < 4; ++k)
          if (corners.pixel[k] >= 0) sampled += corners.weight[k] * image[corners.pixel[k] * stride];
        sum += weights[sample] * sampled;
      }
    }
    out[i] = sum;
  }
}

// One warp a sample, its lanes over channels. Queries meet in grad_value by atomic additions, in no fixed order.
template <typename T>
KERNEL backward(int64_t items, Attention a, const T* value, const T* locations, const T* weights, const T* grad_out,
                T* grad_value, T* grad_locations, T* grad_weights) {
  const int64_t stride = a.heads * a.channels, per_head = a.levels * a.points;
  FOR_WARPS(sample, items) {
    const int64_t row = sample / per_head, level = sample / a.points % a.levels;
    const int64_t head = row % a.heads, item = row / a.heads / a.queries;
    const int64_t first = (item * a.pixels + a.shapes[level * 3 + 2]) * stride + head * a.channels;
    Corners<T> corners = a.corners(level, locations + sample * 2);
    T along = 0, down = 0, right = 0;
    for (int64_t c = lane(); c < a.channels; c += LANES) {
      const T grad = grad_out[row * a.channels + c];
      for (int k = 0; k < 4; ++k) {
        if (corners.pixel[k] < 0) continue;
        const int64_t place = first + corners.pixel[k] * stride + c;
        const T product = grad * value[place];
        along += corners.weight[k] * product;
        down += corners.dy[k] * product;
        right += corners.dx[k] * product;
        atomic_add(grad_value + place, weights[sample] * corners.weight[k] * grad);
      }
    }
    along = warp_sum(along), down = warp_sum(down), right = warp_sum(right);
    if (lane() == 0) {
      grad_weights[sample] = along;
      grad_locations[sample * 2] = weights[sample] * right * (T)a.shapes[level * 3 + 1];
      grad_locations[sample * 2 + 1] = weights[sample] * down * (T)a.shapes[level * 3];
    }
  }
}

EXPORT int attention_forward(ATTENTION_ARGUMENTS, const void* value, const void* locations, const void* weights,
                             void* out, int device, void* stream) {
  if (int error = begin(device)) return error;
  const int64_t items = batch * queries * heads * channels;
  if (dtype)
    LAUNCH(forward<double>, items, stream, ATTENTION, (const double*)value, (const double*)locations,
           (const double*)weights, (double*)out);
  else
    LAUNCH(forward<float>, items, stream, ATTENTION, (const float*)value, (const float*)locations,
           (const float*)weights, (float*)out);
  return finish();
}

EXPORT int attention_gradient(ATTENTION_ARGUMENTS, const void* value, const void* locations, const void* weights,
                              const void* grad_out, void* grad_value, void* grad_locations, void* grad_weights,
                              int device, void* stream) {
  if (int error = begin(device)) return error;
  const int64_t samples = batch * queries * heads * levels * points;
  if (dtype)
    LAUNCH_WARPS(backward<double>, samples, stream, ATTENTION, (const double*)value, (const double*)locations,
                 (const double*)weights, (const double*)grad_out, (double*)grad_value, (double*)grad_locations,
                 (double*)grad_weights);
  else
    LAUNCH_WARPS(backward<float>, samples, stream, ATTENTION, (const float*)value, (const float*)locations,
                 (const float*)weights, (const float*)grad_out, (float*)grad_value, (float*)grad_locations,
                 (float*)grad_weights);
  return finish();
}
