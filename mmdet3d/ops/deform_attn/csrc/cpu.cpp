#include "attention.h"
#include <type_traits>

// Calls body with the number of channels as a constant if it is a common one, so that inner loops unroll; else with 0.
template <typename Body>
static void by_channels(int64_t channels, Body body) {
  switch (channels) {
    case 8: return body(std::integral_constant<int, 8>());
    case 10: return body(std::integral_constant<int, 10>());
    case 16: return body(std::integral_constant<int, 16>());
    case 32: return body(std::integral_constant<int, 32>());
    default: return body(std::integral_constant<int, 0>());
  }
}

// Below this a second thread costs more than it brings.
static int threads_for(const Attention& a, int64_t batch, int threads) {
  return batch * a.queries * a.heads * a.levels * a.points * a.channels < 1 << 15 ? 1 : threads;
}

template <typename T, int CHANNELS>
static void forward(const Attention& a, int64_t batch, const T* values, const T* locations, const T* weights,
                    T* outputs, int threads) {
  const int64_t channels = CHANNELS ? CHANNELS : a.channels, stride = a.heads * channels;
#pragma omp parallel for num_threads(threads_for(a, batch, threads))
  for (int64_t query = 0; query < batch * a.queries; ++query)
    for (int64_t head = 0; head < a.heads; ++head) {
      T* __restrict__ out = outputs + query * stride + head * channels;
      for (int64_t c = 0; c < channels; ++c) out[c] = 0;
      int64_t sample = (query * a.heads + head) * a.levels * a.points;
      for (int64_t level = 0; level < a.levels; ++level) {
        const T* image = values + (query / a.queries * a.pixels + a.shapes[level * 3 + 2]) * stride + head * channels;
        for (int64_t point = 0; point < a.points; ++point, ++sample) {
          const Corners<T> corners = a.corners(level, locations + sample * 2);
          for (int k = 0; k < 4; ++k) {
            if (corners.pixel[k] < 0) continue;
            const T* __restrict__ pixel = image + corners.pixel[k] * stride;
            const T factor = weights[sample] * corners.weight[k];
#pragma omp simd
            for (int64_t c = 0; c < channels; ++c) out[c] += factor * pixel[c];
          }
          for (int64_t c = 0; !corners.inside && c < channels; ++c) out[c] += weights[sample] * 0;  // NaN stays NaN
        }
      }
    }
}

// A thread owns a head of an item: all of its slice of grad_values, whose sums run in the order of the queries.
template <typename T, int CHANNELS>
static void backward(const Attention& a, int64_t batch, const T* values, const T* locations, const T* weights,
                     const T* grad_outputs, T* grad_values, T* grad_locations, T* grad_weights, int threads) {
  const int64_t channels = CHANNELS ? CHANNELS : a.channels, stride = a.heads * channels;
#pragma omp parallel for num_threads(threads_for(a, batch, threads))
  for (int64_t owned = 0; owned < batch * a.heads; ++owned) {
    const int64_t item = owned / a.heads, head = owned % a.heads, first = item * a.pixels * stride + head * channels;
    for (int64_t query = item * a.queries; query < (item + 1) * a.queries; ++query) {
      const T* __restrict__ grad_out = grad_outputs + query * stride + head * channels;
      int64_t sample = (query * a.heads + head) * a.levels * a.points;
      for (int64_t level = 0; level < a.levels; ++level)
        for (int64_t point = 0; point < a.points; ++point, ++sample) {
          const Corners<T> corners = a.corners(level, locations + sample * 2);
          T along = 0, down = 0, right = 0;
          for (int k = 0; k < 4; ++k) {
            if (corners.pixel[k] < 0) continue;
            const int64_t place = first + (a.shapes[level * 3 + 2] + corners.pixel[k]) * stride;
            const T* __restrict__ pixel = values + place;
            T* __restrict__ grad_pixel = grad_values + place;
            const T factor = weights[sample] * corners.weight[k];
            T product = 0;
#pragma omp simd reduction(+ : product)
            for (int64_t c = 0; c < channels; ++c) {
              product += grad_out[c] * pixel[c];
              grad_pixel[c] += factor * grad_out[c];
            }
            along += corners.weight[k] * product;
            down += corners.dy[k] * product;
            right += corners.dx[k] * product;
          }
          grad_weights[sample] = along;
          grad_locations[sample * 2] = weights[sample] * right * (T)a.shapes[level * 3 + 1];
          grad_locations[sample * 2 + 1] = weights[sample] * down * (T)a.shapes[level * 3];
        }
    }
  }
}

template <typename T>
static void forward_of(const Attention& a, int64_t batch, const void* values, const void* locations,
                       const void* weights, void* outputs, int threads) {
  by_channels(a.channels, [&](auto channels) {
    forward<T, channels.value>(a, batch, (const T*)values, (const T*)locations, (const T*)weights, (T*)outputs,
                               threads);
  });
}

template <typename T>
static void backward_of(const Attention& a, int64_t batch, const void* values, const void* locations,
                        const void* weights, const void* grad_outputs, void* grad_values, void* grad_locations,
                        void* grad_weights, int threads) {
  by_channels(a.channels, [&](auto channels) {
    backward<T, channels.value>(a, batch, (const T*)values, (const T*)locations, (const T*)weights,
                                (const T*)grad_outputs, (T*)grad_values, (T*)grad_locations, (T*)grad_weights, threads);
  });
}

EXPORT int attention_forward(ATTENTION_ARGUMENTS, const void* values, const void* locations, const void* weights,
                             void* outputs, int threads, void*) {
  (dtype ? forward_of<double> : forward_of<float>)(ATTENTION, batch, values, locations, weights, outputs, threads);
  return 0;
}

EXPORT int attention_gradient(ATTENTION_ARGUMENTS, const void* values, const void* locations, const void* weights,
                              const void* grad_outputs, void* grad_values, void* grad_locations, void* grad_weights,
                              int threads, void*) {
  (dtype ? backward_of<double> : backward_of<float>)(ATTENTION, batch, values, locations, weights, grad_outputs,
                                                     grad_values, grad_locations, grad_weights, threads);
  return 0;
}
