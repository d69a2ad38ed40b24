#include "pool.h"
#include <algorithm>
#include <omp.h>
#include <vector>
#ifdef __linux__
#include <sys/mman.h>
#endif

constexpr int64_t TILE = 128;   // cells that are summed before they are written
constexpr int64_t BLOCK = 16;   // channels, and items, that change places in the nearest cache
constexpr int64_t STRIP = 256;  // items that a thread turns at once

// No more threads than the work, in values read or written, is worth: waking and awaiting one costs microseconds.
static int team(int threads, int64_t work) { return (int)std::min<int64_t>(threads, 1 + work / 8192); }

// Fresh memory costs a page fault every 4 KiB, together more than the kernels' own work; large pages save most of it.
template <typename T>
static void use_large_pages(T* memory, int64_t count) {
#ifdef __linux__
  constexpr uintptr_t page = 1 << 21;
  uintptr_t first = ((uintptr_t)memory + page - 1) / page * page, last = (uintptr_t)(memory + count) / page * page;
  if (first < last) madvise((void*)first, last - first, MADV_HUGEPAGE);
#endif
}

EXPORT int locate_points(int64_t dtype, int64_t samples, int64_t points, GRID_ARGUMENTS, const void* geometry, int32_t* cells,
                         int threads, void*) {
  Grid grid = GRID;
  use_large_pages(cells, samples * points);
  return by_dtype(dtype, [&](auto* tag) {
    auto* places = (decltype(tag))geometry;
#pragma omp parallel for num_threads(team(threads, samples * points)) collapse(2)
    for (int64_t s = 0; s < samples; ++s)
      for (int64_t k = 0; k < points; ++k)
        cells[s * points + k] = locate(grid, places + (s * points + k) * 3, s);
    return 0;
  });
}

// Stable counting sort of the points by cell, dropped points first. Cell c gets the points order[starts[c]] to
// order[starts[c + 1] - 1]. Each thread owns a range of cells, so that no two write to one place.
EXPORT int group_points(int64_t points, int64_t num_cells, const int32_t* cells, int32_t* order, int32_t* starts, int threads,
                        void*) {
  use_large_pages(order, points);
  std::vector<int32_t> next(num_cells + 1, 0);  // bucket 0 holds what is dropped, bucket c + 1 the points of cell c
#pragma omp parallel num_threads(team(threads, points))
  {
    int64_t part = omp_get_thread_num(), parts = omp_get_num_threads();
    int32_t first = (int32_t)((num_cells + 1) * part / parts), last = (int32_t)((num_cells + 1) * (part + 1) / parts);
    for (int64_t k = 0; k < points; ++k)
      if (cells[k] + 1 >= first && cells[k] + 1 < last) ++next[cells[k] + 1];
  }
  for (int64_t bucket = 0, sum = 0; bucket <= num_cells; ++bucket) {
    int64_t count = next[bucket];
    next[bucket] = (int32_t)sum;
    starts[bucket] = (int32_t)(sum += count);
  }
#pragma omp parallel num_threads(team(threads, points))
  {
    int64_t part = omp_get_thread_num(), parts = omp_get_num_threads();
    auto boundary = [&](int64_t p) {  // between two threads, so that each has about as many points
      return p == parts ? num_cells + 1 : std::upper_bound(starts, starts + num_cells + 1, points * p / parts) - starts;
    };
    int32_t first = part ? (int32_t)boundary(part) : 0, last = (int32_t)boundary(part + 1);
    for (int64_t k = 0; k < points; ++k)
      if (cells[k] + 1 >= first && cells[k] + 1 < last) order[next[cells[k] + 1]++] = (int32_t)k;
  }
  return 0;
}

// Some items of (channels, items) to (items, channels); the channels of the input are `stride` apart.
template <typename T>
static void turn_strip(int64_t channels, int64_t stride, int64_t count, const T* in, T* out) {
  for (int64_t c = 0; c < channels; c += BLOCK)
    for (int64_t i = 0; i < count; i += BLOCK) {
      const T* from = in + c * stride + i;
      T* to = out + i * channels + c;
      if (c + BLOCK <= channels && i + BLOCK <= count) {
        T block[BLOCK][BLOCK];
        for (int64_t x = 0; x < BLOCK; ++x)
          for (int64_t y = 0; y < BLOCK; ++y) block[x][y] = from[x * stride + y];
        for (int64_t y = 0; y < BLOCK; ++y)
          for (int64_t x = 0; x < BLOCK; ++x) to[y * channels + x] = block[x][y];
      } else {
        for (int64_t x = 0; x < std::min(BLOCK, channels - c); ++x)
          for (int64_t y = 0; y < std::min(BLOCK, count - i); ++y) to[y * channels + x] = from[x * stride + y];
      }
    }
}

// (planes, channels, items) to (planes, items, channels).
template <typename T>
static void turn(int64_t planes, int64_t channels, int64_t items, const T* in, T* out, int threads) {
  use_large_pages(out, planes * channels * items);
#pragma omp parallel for num_threads(team(threads, planes * channels * items)) collapse(2)
  for (int64_t p = 0; p < planes; ++p)
    for (int64_t i = 0; i < (items + STRIP - 1) / STRIP; ++i)
      turn_strip(channels, items, std::min(STRIP, items - i * STRIP), in + p * channels * items + i * STRIP,
                 out + (p * items + i * STRIP) * channels);
}

EXPORT int channels_last(int64_t dtype, int64_t planes, int64_t channels, int64_t items, const void* in, void* out, int threads,
                         void*) {
  if (dtype)
    turn(planes, channels, items, (const double*)in, (double*)out, threads);
  else
    turn(planes, channels, items, (const float*)in, (float*)out, threads);
  return 0;
}

// sum (channels) += the rows of the points, weighted; several rows at a time, so that sums are loaded and stored less.
template <typename T>
static void add_rows(const Frustum& frustum, const int32_t* points, int64_t count, int64_t channels, const T* weights,
                     const T* rows, T* sum) {
  auto row = [&](int64_t k) { return rows + frustum.pixel(points[k]) * channels; };
  auto weight = [&](int64_t k) { return weights ? weights[points[k]] : (T)1; };
  int64_t k = 0;
  for (; k + 4 <= count; k += 4) {
    const T *r0 = row(k), *r1 = row(k + 1), *r2 = row(k + 2), *r3 = row(k + 3);
    T w0 = weight(k), w1 = weight(k + 1), w2 = weight(k + 2), w3 = weight(k + 3);
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) sum[c] += (w0 * r0[c] + w1 * r1[c]) + (w2 * r2[c] + w3 * r3[c]);
  }
  for (; k < count; ++k) {
    const T* r = row(k);
    T w = weight(k);
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) sum[c] += w * r[c];
  }
}

template <typename T>
static void pool(const Frustum& frustum, int64_t planes, int64_t cells, int64_t channels, const int32_t* order,
                 const int32_t* starts, const T* weights, const T* rows, T* out, int threads) {
  int64_t tiles = (cells + TILE - 1) / TILE;
  use_large_pages(out, planes * channels * cells);
#pragma omp parallel num_threads(team(threads, (planes * cells + starts[planes * cells]) * channels))
  {
    std::vector<T> sums(TILE * channels);
#pragma omp for collapse(2) schedule(dynamic, 16)
    for (int64_t p = 0; p < planes; ++p)
      for (int64_t t = 0; t < tiles; ++t) {
        int64_t first = t * TILE, count = std::min(TILE, cells - first);
        std::fill(sums.begin(), sums.end(), (T)0);
        for (int64_t i = 0; i < count; ++i) {
          const int32_t* start = starts + p * cells + first + i;
          add_rows(frustum, order + start[0], start[1] - start[0], channels, weights, rows, sums.data() + i * channels);
        }
        for (int64_t c = 0; c < channels; ++c)
          for (int64_t i = 0; i < count; ++i) out[(p * channels + c) * cells + first + i] = sums[i * channels + c];
      }
  }
}

EXPORT int pool_forward(int64_t dtype, int64_t bins, int64_t pixels, int64_t planes, int64_t cells, int64_t channels,
                        const int32_t* order, const int32_t* starts, const void* weights, const void* rows, void* out,
                        int threads, void*) {
  Frustum frustum(bins, pixels);
  if (dtype)
    pool(frustum, planes, cells, channels, order, starts, (const double*)weights, (const double*)rows, (double*)out, threads);
  else
    pool(frustum, planes, cells, channels, order, starts, (const float*)weights, (const float*)rows, (float*)out, threads);
  return 0;
}

// One pixel: its points are `plane` apart; the gradient of its row is summed, that of each weight is a dot product.
template <typename T>
static void unpool_pixel(int64_t bins, int64_t plane, int64_t channels, const int32_t* cells, const T* weights, const T* row,
                         const T* grad_out, T* grad_weights, T* grad_row) {
  std::fill(grad_row, grad_row + channels, (T)0);
  for (int64_t d = 0; d < bins; ++d) {
    T dot = 0, weight = weights[d * plane];
    if (cells[d * plane] >= 0) {
      const T* grad = grad_out + cells[d * plane] * channels;
#pragma omp simd reduction(+ : dot)
      for (int64_t c = 0; c < channels; ++c) {
        dot += grad[c] * row[c];
        grad_row[c] += weight * grad[c];
      }
    }
    grad_weights[d * plane] = dot;
  }
}

// Down the columns: what one pixel needs, the pixel below it mostly needs too.
template <typename T>
static void unpool(int64_t images, int64_t bins, int64_t height, int64_t width, int64_t channels, const int32_t* cells,
                   const T* weights, const T* rows, const T* grad_out, T* grad_weights, T* grad_rows, int threads) {
  int64_t plane = height * width;
  use_large_pages(grad_weights, images * bins * plane);
  use_large_pages(grad_rows, images * plane * channels);
#pragma omp parallel for num_threads(team(threads, images * bins * plane * channels)) collapse(2) schedule(dynamic, 4)
  for (int64_t n = 0; n < images; ++n)
    for (int64_t u = 0; u < width; ++u)
      for (int64_t v = 0; v < height; ++v) {
        int64_t point = n * bins * plane + v * width + u, row = (n * plane + v * width + u) * channels;
        unpool_pixel(bins, plane, channels, cells + point, weights + point, rows + row, grad_out, grad_weights + point,
                     grad_rows + row);
      }
}

EXPORT int pool_gradient(int64_t dtype, int64_t images, int64_t bins, int64_t height, int64_t width, int64_t channels,
                         const int32_t* cells, const void* weights, const void* rows, const void* grad_out,
                         void* grad_weights, void* grad_rows, int threads, void*) {
  if (dtype)
    unpool(images, bins, height, width, channels, cells, (const double*)weights, (const double*)rows, (const double*)grad_out,
           (double*)grad_weights, (double*)grad_rows, threads);
  else
    unpool(images, bins, height, width, channels, cells, (const float*)weights, (const float*)rows, (const float*)grad_out,
           (float*)grad_weights, (float*)grad_rows, threads);
  return 0;
}

// The gradient of features that were lifted elsewhere: every point gets its cell's row.
template <typename T>
static void gather(int64_t points, int64_t channels, const int32_t* cells, const T* grad_out, T* grad, int threads) {
  use_large_pages(grad, points * channels);
#pragma omp parallel for num_threads(team(threads, points * channels))
  for (int64_t k = 0; k < points; ++k) {
    T* to = grad + k * channels;
    if (cells[k] < 0)
      std::fill(to, to + channels, (T)0);
    else
      std::copy_n(grad_out + cells[k] * channels, channels, to);
  }
}

EXPORT int gather_gradient(int64_t dtype, int64_t points, int64_t channels, const int32_t* cells, const void* grad_out,
                           void* grad, int threads, void*) {
  if (dtype)
    gather(points, channels, cells, (const double*)grad_out, (double*)grad, threads);
  else
    gather(points, channels, cells, (const float*)grad_out, (float*)grad, threads);
  return 0;
}
