#include "pool.h"

constexpr int MOST = 4;  // sums that a lane keeps in registers: 128 channels of a warp

template <typename T>
KERNEL locate_all(int64_t points, int64_t per_sample, Grid grid, const T* geometry, int32_t* cells) {
  FOR_ITEMS(k, points) cells[k] = locate(grid, geometry + k * 3, k / per_sample);
}

EXPORT int locate_points(int64_t dtype, int64_t samples, int64_t points, GRID_ARGUMENTS, const void* geometry, int32_t* cells,
                         int device, void* stream) {
  if (int error = begin(device)) return error;
  Grid grid = GRID;
  return by_dtype(dtype, [&](auto* tag) {
    LAUNCH(locate_all, samples * points, stream, points, grid, (decltype(tag))geometry, cells);
    return finish();
  });
}

// Calls `body` with the number of sums a lane keeps, as a constant.
template <int N>
struct Count { static constexpr int value = N; };
template <typename Body>
void by_channels(int64_t channels, Body body) {
  switch ((channels + LANES - 1) / LANES) {
    case 0: case 1: return body(Count<1>());
    case 2: return body(Count<2>());
    case 3: return body(Count<3>());
    default: return body(Count<MOST>());
  }
}

// A warp owns a cell, its lanes the channels.
template <int SUMS, typename T>
KERNEL pool(int64_t cells, Frustum frustum, int64_t raster, int64_t channels, const int32_t* order, const int32_t* starts,
            const T* weights, const T* rows, typename wide<T>::type* out) {
  using W = typename wide<T>::type;
  FOR_WARPS(cell, cells) {
    int64_t first = starts[cell], last = starts[cell + 1], plane = cell / raster;
    for (int64_t channel = lane(); channel < channels; channel += SUMS * LANES) {
      W sum[SUMS] = {};
#pragma unroll 4
      for (int64_t k = first; k < last; ++k) {
        int64_t point = order[k];
        W weight = weights ? widen(weights[point]) : (W)1;
        const T* row = rows + frustum.pixel(point) * channels + channel;
        for (int i = 0; i < SUMS; ++i)
          if (channel + i * LANES < channels) sum[i] += weight * widen(row[i * LANES]);
      }
      W* to = out + (plane * channels + channel) * raster + (cell - plane * raster);
      for (int i = 0; i < SUMS; ++i)
        if (channel + i * LANES < channels) to[i * LANES * raster] = sum[i];
    }
  }
}

EXPORT int pool_forward(int64_t dtype, int64_t bins, int64_t pixels, int64_t planes, int64_t cells, int64_t channels,
                        const int32_t* order, const int32_t* starts, const void* weights, const void* rows, void* out,
                        int device, void* stream) {
  if (int error = begin(device)) return error;
  Frustum frustum(bins, pixels);
  return by_dtype(dtype, [&](auto* tag) {
    using Pointer = decltype(tag);
    using T = std::remove_pointer_t<Pointer>;
    by_channels(channels, [&](auto count) {
      auto kernel = pool<decltype(count)::value, T>;
      LAUNCH_WARPS(kernel, planes * cells, stream, frustum, cells, channels, order, starts, (Pointer)weights, (Pointer)rows,
                   (typename wide<T>::type*)out);
    });
    return finish();
  });
}

// A warp owns a pixel, its lanes the channels. Warps go down the columns: what one pixel needs, the pixel below it mostly
// needs too, and at the same time.
template <int SUMS, typename T>
KERNEL unpool(int64_t pixels, int64_t bins, int64_t height, int64_t width, int64_t channels, const int32_t* cells,
              const T* weights, const T* rows, const typename wide<T>::type* grad_out,
              typename wide<T>::type* grad_weights, typename wide<T>::type* grad_rows) {
  using W = typename wide<T>::type;
  int64_t plane = height * width;
  FOR_WARPS(item, pixels) {
    int64_t image = item / plane, place = item % height * width + item % plane / height;
    int64_t start = image * bins * plane + place, row = (image * plane + place) * channels;
    for (int64_t base = 0; base == 0 || base < channels; base += SUMS * LANES) {
      int64_t first = base + lane();
      W own[SUMS], sum[SUMS];
      for (int i = 0; i < SUMS; ++i) {
        own[i] = first + i * LANES < channels ? widen(rows[row + first + i * LANES]) : (W)0;
        sum[i] = 0;
      }
#pragma unroll 4
      for (int64_t d = 0; d < bins; ++d) {
        int64_t point = start + d * plane, cell = cells[point];
        W dot = 0;
        if (cell >= 0) {
          W weight = widen(weights[point]);
          for (int i = 0; i < SUMS; ++i)
            if (first + i * LANES < channels) {
              W grad = grad_out[cell * channels + first + i * LANES];
              dot += grad * own[i];
              sum[i] += weight * grad;
            }
          dot = warp_sum(dot);
        }
        if (lane() == 0) grad_weights[point] = base ? grad_weights[point] + dot : dot;
      }
      for (int i = 0; i < SUMS; ++i)
        if (first + i * LANES < channels) grad_rows[row + first + i * LANES] = sum[i];
    }
  }
}

EXPORT int pool_gradient(int64_t dtype, int64_t images, int64_t bins, int64_t height, int64_t width, int64_t channels,
                         const int32_t* cells, const void* weights, const void* rows, const void* grad_out,
                         void* grad_weights, void* grad_rows, int device, void* stream) {
  if (int error = begin(device)) return error;
  return by_dtype(dtype, [&](auto* tag) {
    using Pointer = decltype(tag);
    using T = std::remove_pointer_t<Pointer>;
    using Wide = typename wide<T>::type*;
    by_channels(channels, [&](auto count) {
      auto kernel = unpool<decltype(count)::value, T>;
      LAUNCH_WARPS(kernel, images * height * width, stream, bins, height, width, channels, cells, (Pointer)weights,
                   (Pointer)rows, (Wide)grad_out, (Wide)grad_weights, (Wide)grad_rows);
    });
    return finish();
  });
}

template <typename T>
KERNEL gather(int64_t points, int64_t channels, const int32_t* cells, const T* grad_out, T* grad) {
  FOR_WARPS(k, points) {
    int64_t cell = cells[k];
    for (int64_t c = lane(); c < channels; c += LANES) grad[k * channels + c] = cell < 0 ? (T)0 : grad_out[cell * channels + c];
  }
}

EXPORT int gather_gradient(int64_t dtype, int64_t points, int64_t channels, const int32_t* cells, const void* grad_out,
                           void* grad, int device, void* stream) {
  if (int error = begin(device)) return error;
  if (dtype)
    LAUNCH_WARPS(gather<double>, points, stream, channels, cells, (const double*)grad_out, (double*)grad);
  else
    LAUNCH_WARPS(gather<float>, points, stream, channels, cells, (const float*)grad_out, (float*)grad);
  return finish();
}
