// Where a frustum point comes from and where it falls; shared by both devices.
#pragma once
#include "scalar.h"
#include "launch.h"

struct Grid {
  double lower[3], size[3];  // metres
  int64_t shape[3];          // cells X, Y, Z
  bool floor;                // drop points below the lower border, which truncation toward zero keeps
};

// Flat cell ((sample * Z + z) * X + x) * Y + y of a point (x, y, z in metres), -1 outside the grid.
template <typename T>
HOST_DEVICE int32_t locate(const Grid& grid, const T* point, int64_t sample) {
  using W = typename wide<T>::type;
  W position[3];
  bool inside = true;
  for (int a = 0; a < 3; ++a) {
    position[a] = (widen(point[a]) - (W)grid.lower[a]) / (W)grid.size[a];
    // Compared before the conversion to integers, which is undefined for NaN and huge values.
    inside &= (grid.floor ? position[a] >= 0 : position[a] > -1) & (position[a] < (W)grid.shape[a]);
  }
  int64_t index[3];
  for (int a = 0; a < 3; ++a) index[a] = (int64_t)(inside ? position[a] : (W)0);
  int64_t flat = ((sample * grid.shape[2] + index[2]) * grid.shape[0] + index[0]) * grid.shape[1] + index[1];
  return inside ? (int32_t)flat : -1;
}

// Division of 0 <= n < 2^31 by a fixed number, without a division: exact, since magic * divisor exceeds 2^(31 + shift) by
// less than 2^shift.
struct Divisor {
  uint64_t magic;
  int shift;
  explicit Divisor(int64_t divisor) : shift(0) {
    while (((int64_t)1 << shift) < divisor) ++shift;
    magic = divisor ? (((uint64_t)1 << (31 + shift)) + divisor - 1) / divisor : 0;
    shift += 31;
  }
  HOST_DEVICE int64_t operator()(int64_t n) const { return (int64_t)((uint64_t)n * magic >> shift); }
};

// Points are numbered (image, bin, row, column), pixels (image, row, column).
struct Frustum {
  int64_t bins, plane;  // depth bins of a pixel, pixels of an image
  Divisor by_bins, by_plane;
  Frustum(int64_t bins, int64_t plane) : bins(bins), plane(plane), by_bins(bins), by_plane(plane) {}
  HOST_DEVICE int64_t pixel(int64_t point) const {
    int64_t slice = by_plane(point);
    return point - (slice - by_bins(slice)) * plane;
  }
};

// The arguments of locate_points, in the order in which Python passes them.
#define GRID_ARGUMENTS                                                                                                   \
  double x0, double y0, double z0, double sx, double sy, double sz, int64_t nx, int64_t ny, int64_t nz, int64_t floor
#define GRID Grid{{x0, y0, z0}, {sx, sy, sz}, {nx, ny, nz}, floor != 0}
