// The parts of a sparse convolution around cuBLAS: lists of pairs before the products, sums with one owner after them.
#include "launch.h"
#include "scalar.h"
#include <type_traits>

// neighbors (offsets, rows) with -1 for none, slots: the number of pairs up to and including each place, less one.
KERNEL list(int64_t places, int64_t rows, const int32_t* neighbors, const int64_t* slots, int32_t* inputs,
            int32_t* outputs) {
  FOR_ITEMS(i, places) {
    if (neighbors[i] < 0) continue;
    inputs[slots[i]] = neighbors[i];
    outputs[slots[i]] = (int32_t)(i % rows);
  }
}

// One item per value of out (rows, channels); products hold the pairs of offsets first..last-1, slot `begin` first.
template <typename T>
KERNEL sum(int64_t values, int64_t channels, int64_t first, int64_t last, int64_t rows, int64_t begin,
           const T* products, const int32_t* neighbors, const int64_t* slots, typename wide<T>::type* out) {
  FOR_ITEMS(i, values) {
    int64_t row = i / channels, channel = i % channels;
    typename wide<T>::type sum = out[i];
    for (int64_t place = first * rows + row; place < last * rows; place += rows)
      if (neighbors[place] >= 0) sum += widen(products[(slots[place] - begin) * channels + channel]);
    out[i] = sum;
  }
}

EXPORT int list_pairs(int64_t offsets, int64_t rows, const int32_t* neighbors, const int64_t* slots, int32_t* inputs,
                      int32_t* outputs, int device, void* stream) {
  if (int error = begin(device)) return error;
  LAUNCH(list, offsets * rows, stream, rows, neighbors, slots, inputs, outputs);
  return finish();
}

EXPORT int sum_products(int64_t dtype, int64_t channels, int64_t first, int64_t last, int64_t rows, int64_t from,
                        const void* products, const int32_t* neighbors, const int64_t* slots, void* out, int device,
                        void* stream) {
  if (int error = begin(device)) return error;
  int unknown = by_dtype(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    LAUNCH(sum<T>, rows * channels, stream, channels, first, last, rows, from, (const T*)products, neighbors, slots,
           (typename wide<T>::type*)out);
    return 0;
  });
  return unknown ? unknown : finish();
}
