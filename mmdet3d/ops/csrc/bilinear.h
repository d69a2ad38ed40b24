// Bilinear sampling with zeros outside the image. Integer coordinates are pixel centres.
#pragma once
#include "launch.h"

// The four pixels around a point: where they lie, how much each counts, and how that changes with the point.
template <typename T>
struct Corners {
  int64_t pixel[4];  // row-major index in the image; -1 for a pixel outside
  T weight[4], dy[4], dx[4];
  bool inside;  // at least one pixel is in the image

  HOST_DEVICE Corners(T y, T x, int64_t height, int64_t width) {
    inside = y > -1 && x > -1 && y < (T)height && x < (T)width;  // NaN is outside
    if (!inside) {
      for (int k = 0; k < 4; ++k) pixel[k] = -1, weight[k] = dy[k] = dx[k] = 0;
      return;
    }
    T top = floor(y), left = floor(x), down = y - top, right = x - left;
    for (int k = 0; k < 4; ++k) {
      int64_t row = (int64_t)top + k / 2, column = (int64_t)left + k % 2;
      bool present = row >= 0 && row < height && column >= 0 && column < width;
      T vertical = k / 2 ? down : 1 - down, horizontal = k % 2 ? right : 1 - right;
      pixel[k] = present ? row * width + column : -1;
      weight[k] = vertical * horizontal;
      dy[k] = k / 2 ? horizontal : -horizontal;
      dx[k] = k % 2 ? vertical : -vertical;
    }
  }
};
