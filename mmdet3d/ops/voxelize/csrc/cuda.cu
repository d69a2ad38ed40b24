#include "voxel.h"

template <typename S>
KERNEL keys_of(int64_t points, Grid grid, int64_t columns, const S* data, int64_t* keys) {
  FOR_ITEMS(p, points) keys[p] = voxel_key(grid, data + p * columns);
}

template <typename S>
KERNEL clear_unused(int64_t elements, int64_t columns, int64_t slots, const int32_t* counts, S* voxels) {
  FOR_ITEMS(i, elements)
    if (i / columns % slots >= counts[i / columns / slots]) voxels[i] = 0;
}

template <typename S>
KERNEL store(int64_t points, int64_t columns, int64_t count, int64_t slots, const S* data, const int64_t* index,
             const int32_t* slot, S* voxels) {
  FOR_ITEMS(p, points) store_point(data + p * columns, columns, index[p], slot[p], count, slots, voxels);
}

// order (P) are the rows sorted by group, starts (size + 1) where each group begins in it.
template <typename T>
KERNEL reduce(int64_t elements, int64_t columns, bool largest, const T* features, const int64_t* order,
              const int64_t* starts, T* out) {
  FOR_ITEMS(i, elements) {
    int64_t group = i / columns, column = i % columns;
    T result = 0;
    for (int64_t k = starts[group]; k < starts[group + 1]; ++k) {
      T value = features[order[k] * columns + column];
      if (!largest)
        result += value;
      else if (k == starts[group] || value > result || value != value)
        result = value;
    }
    out[i] = result;
  }
}

template <typename S>
KERNEL gather(int64_t elements, int64_t columns, int64_t size, const S* table, const int64_t* index, S* out) {
  FOR_ITEMS(i, elements) out[i] = value_at(table, size, columns, index[i / columns], i % columns);
}

EXPORT int voxel_keys(GRID_ARGUMENTS, const void* data, int64_t* keys, int device, void* stream) {
  if (int error = begin(device)) return error;
  return by_dtype(dtype, [&](auto* type) {
    LAUNCH(keys_of, points, stream, GRID, columns, (decltype(type))data, keys);
    return finish();
  });
}

EXPORT int fill_voxels(int64_t dtype, int64_t points, int64_t columns, int64_t count, int64_t slots, const void* data,
                       const int64_t* index, const int32_t* slot, const int32_t* counts, void* voxels, int device,
                       void* stream) {
  if (int error = begin(device)) return error;
  return by_width(dtype, [&](auto* type) {
    auto* target = (decltype(type))voxels;
    LAUNCH(clear_unused, count * slots * columns, stream, columns, slots, counts, target);
    LAUNCH(store, points, stream, columns, count, slots, (decltype(type))data, index, slot, target);
    return finish();
  });
}

EXPORT int scatter_rows(int64_t dtype, int64_t columns, int64_t size, int64_t largest, const void* features,
                        const int64_t* order, const int64_t* starts, void* out, int device, void* stream) {
  if (int error = begin(device)) return error;
  if (dtype)
    LAUNCH(reduce, size * columns, stream, columns, largest != 0, (const double*)features, order, starts, (double*)out);
  else
    LAUNCH(reduce, size * columns, stream, columns, largest != 0, (const float*)features, order, starts, (float*)out);
  return finish();
}

EXPORT int gather_rows(int64_t dtype, int64_t rows, int64_t columns, int64_t size, const void* table, const int64_t* index,
                       void* out, int device, void* stream) {
  if (int error = begin(device)) return error;
  return by_width(dtype, [&](auto* type) {
    using S = decltype(type);
    LAUNCH(gather, rows * columns, stream, columns, size, (S)table, index, (S)out);
    return finish();
  });
}
