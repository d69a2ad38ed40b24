// One spelling of a kernel for two compilers. nvcc makes it a CUDA kernel; a C++ compiler makes it a plain function that
// walks over all items in order, so that the logic of every CUDA source is tested where there is no GPU.
//
//   KERNEL scale(int64_t items, float factor, float* values) {
//     FOR_ITEMS(i, items) values[i] *= factor;
//   }
//   EXPORT int scale_f32(int64_t items, double factor, float* values, int device, void* stream) {
//     begin(device);
//     LAUNCH(scale, items, stream, (float)factor, values);
//     return finish();
//   }
//
// Rules that keep both the same: no shared memory, no synchronisation inside a block; a sum over lanes by warp_sum.
#pragma once
#include "entry.h"
#include <cmath>

#ifdef __CUDACC__
#include <cuda_runtime.h>

#define HOST_DEVICE __host__ __device__ __forceinline__
#define KERNEL static __global__ void
// A grid-stride loop, one thread an item.
#define FOR_ITEMS(i, items)                                                                       \
  for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < (items); i += (int64_t)gridDim.x * blockDim.x)
// One warp an item: every lane runs the body with the same i. Work is split by `for (c = lane(); c < n; c += LANES)`.
#define FOR_WARPS(i, items)                                                                             \
  for (int64_t i = (blockIdx.x * (int64_t)blockDim.x + threadIdx.x) / 32; i < (items);                  \
       i += (int64_t)gridDim.x * blockDim.x / 32)
#define LAUNCH(kernel, items, stream, ...) LAUNCH_THREADS(kernel, items, items, stream, __VA_ARGS__)
#define LAUNCH_WARPS(kernel, items, stream, ...) LAUNCH_THREADS(kernel, items, (items) * 32, stream, __VA_ARGS__)
#define LAUNCH_THREADS(kernel, items, threads, stream, ...)                                              \
  do {                                                                                                   \
    int64_t blocks_ = ((int64_t)(threads) + 255) / 256;                                                  \
    if (blocks_ > 0)                                                                                     \
      kernel<<<(unsigned)(blocks_ < (1 << 20) ? blocks_ : (1 << 20)), 256, 0, (cudaStream_t)(stream)>>>( \
          items, __VA_ARGS__);                                                                           \
  } while (0)

constexpr int LANES = 32;
static __device__ __forceinline__ int lane() { return threadIdx.x & 31; }
// The sum over the lanes of a warp, known to every lane; all 32 must take part.
template <typename T>
static __device__ __forceinline__ T warp_sum(T value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}
template <typename T>
static __device__ __forceinline__ void atomic_add(T* target, T value) { atomicAdd(target, value); }
// Selects the device of the tensors; the return value of every entry point is 0 or a CUDA error.
static inline int begin(int device) { return (int)cudaSetDevice(device); }
static inline int finish() { return (int)cudaGetLastError(); }

#else

#define HOST_DEVICE inline
#define KERNEL static void
#define FOR_ITEMS(i, items) for (int64_t i = 0; i < (items); ++i)
#define FOR_WARPS(i, items) for (int64_t i = 0; i < (items); ++i)
#define LAUNCH(kernel, items, stream, ...) kernel(items, __VA_ARGS__)
#define LAUNCH_WARPS(kernel, items, stream, ...) kernel(items, __VA_ARGS__)

constexpr int LANES = 1;
static inline int lane() { return 0; }
template <typename T>
static inline T warp_sum(T value) { return value; }
template <typename T>
static inline void atomic_add(T* target, T value) { *target += value; }
static inline int begin(int) { return 0; }
static inline int finish() { return 0; }

#endif
