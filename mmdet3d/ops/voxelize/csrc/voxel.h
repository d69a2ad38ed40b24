// Which voxel a point lies in, and how points get into slots.
#pragma once
#include "launch.h"
#include "scalar.h"

struct Grid {
  double lower[3], size[3];
  int64_t shape[3];
};

// Linear index of the voxel of a point x, y, z (z fastest); -1 outside the grid or not finite.
template <typename S>
HOST_DEVICE int64_t voxel_key(const Grid& grid, const S* point) {
  using T = typename wide<S>::type;
  int64_t key = 0;
  for (int k = 0; k < 3; ++k) {
    T cell = std::floor((widen(point[k]) - (T)grid.lower[k]) / (T)grid.size[k]);
    // Compared before the conversion to an integer, which is undefined for huge values and NaN.
    if (!(cell >= 0 && cell < (T)grid.shape[k])) return -1;
    key = key * grid.shape[k] + (int64_t)cell;
  }
  return key;
}

// Copies a point (F) into its slot of `voxels` (M, S, F), unless voxel or slot are beyond the bounds.
template <typename S>
HOST_DEVICE void store_point(const S* point, int64_t columns, int64_t voxel, int64_t slot, int64_t count, int64_t slots,
                             S* voxels) {
  if (voxel < 0 || voxel >= count || slot >= slots) return;
  S* target = voxels + (voxel * slots + slot) * columns;
  for (int64_t c = 0; c < columns; ++c) target[c] = point[c];
}

// The value at column c of the row `index` of `table` (size, F); 0 outside.
template <typename S>
HOST_DEVICE S value_at(const S* table, int64_t size, int64_t columns, int64_t index, int64_t c) {
  return index >= 0 && index < size ? table[index * columns + c] : (S)0;
}

// Calls `body` with a null pointer of an unsigned integer as wide as the storage type that `code` names.
template <typename Body>
int by_width(int64_t code, Body body) {
  if (code == 0) return body((uint32_t*)nullptr);
  return code == 1 ? body((uint64_t*)nullptr) : body((uint16_t*)nullptr);
}

#define GRID_ARGUMENTS                                                                                                   \
  int64_t dtype, int64_t points, int64_t columns, double x0, double y0, double z0, double sx, double sy, double sz,     \
      int64_t nx, int64_t ny, int64_t nz
#define GRID Grid{{x0, y0, z0}, {sx, sy, sz}, {nx, ny, nz}}
