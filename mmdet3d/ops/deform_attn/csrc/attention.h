// Sizes of multi-scale deformable attention, and where a location lies in the image of its level.
// Row-major tensors: value (B, S, M, C), locations (B, Q, M, L, P, 2) as x, y, weights (B, Q, M, L, P),
// out (B, Q, M, C).
#pragma once
#include "bilinear.h"

struct Attention {
  int64_t pixels, heads, channels, queries, levels, points;  // S, M, C, Q, L, P
  const int64_t* shapes;                                     // (L, 3): height, width, first pixel

  // The corners of one location at a level; pixel indices count from the level's first pixel.
  template <typename T>
  HOST_DEVICE Corners<T> corners(int64_t level, const T* location) const {
    int64_t height = shapes[level * 3], width = shapes[level * 3 + 1];
    return Corners<T>(location[1] * (T)height - (T)0.5, location[0] * (T)width - (T)0.5, height, width);
  }
};

#define ATTENTION_ARGUMENTS                                                                                          \
  int64_t dtype, int64_t batch, int64_t pixels, int64_t heads, int64_t channels, int64_t queries, int64_t levels,   \
      int64_t points, const int64_t* shapes
#define ATTENTION Attention{pixels, heads, channels, queries, levels, points, shapes}
