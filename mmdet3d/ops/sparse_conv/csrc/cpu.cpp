#include "entry.h"
#include "products.h"
#include "tables.h"

#define TRIPLE(name) int64_t name##_x, int64_t name##_y, int64_t name##_z
#define BOX(name) Box{name##_x, name##_y, name##_z}
#define AXIS(a) Axis{kernel_##a, stride_##a, padding_##a, dilation_##a, shape_##a}

// `unique[0]` becomes 0 if a site occurs twice.
EXPORT int submanifold_table(int64_t count, TRIPLE(shape), TRIPLE(kernel), TRIPLE(dilation), const int64_t* sites,
                             int32_t* neighbors, int64_t* unique, int threads, void*) {
  *unique = submanifold(count, sites, BOX(shape), BOX(kernel), BOX(dilation), neighbors, threads);
  return 0;
}

// `found[0]` becomes the number of output sites; `keys` has room for all that can be.
EXPORT int strided_sites(int64_t count, TRIPLE(shape), TRIPLE(kernel), TRIPLE(stride), TRIPLE(padding),
                         TRIPLE(dilation), const int64_t* sites, int64_t* keys, int32_t* inverse, int64_t* found, int,
                         void*) {
  *found = strided(count, sites, AXIS(x), AXIS(y), AXIS(z), keys, inverse);
  return 0;
}

// `unique[0]` becomes 0 if a site occurs twice.
EXPORT int invert_table(int64_t offsets, int64_t inputs, int64_t outputs, const int32_t* inverse, int32_t* neighbors,
                        int64_t* unique, int threads, void*) {
  *unique = invert(offsets, inputs, outputs, inverse, neighbors, threads);
  return 0;
}

EXPORT int sparse_convolve(int64_t dtype, int64_t offsets, int64_t rows, int64_t inputs, int64_t outputs,
                           const void* features, const void* weight, const int32_t* neighbors, void* out, int threads,
                           void*) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    convolve(offsets, rows, inputs, outputs, (const T*)features, (const T*)weight, neighbors, (T*)out, threads);
  };
  dtype ? run(0.0) : run(0.0f);
  return 0;
}

EXPORT int sparse_weight_gradient(int64_t dtype, int64_t offsets, int64_t rows, int64_t inputs, int64_t outputs,
                                  const void* features, const void* gradient, const int32_t* neighbors, void* out,
                                  int threads, void*) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    weight_gradient(offsets, rows, inputs, outputs, (const T*)features, (const T*)gradient, neighbors, (T*)out,
                    threads);
  };
  dtype ? run(0.0) : run(0.0f);
  return 0;
}
