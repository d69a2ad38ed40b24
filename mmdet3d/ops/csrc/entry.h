// EXPORT marks a function that mmdet3d/ops/native.py may call: int NAME(arguments..., int place, void* stream).
// Tensors arrive as pointers to contiguous memory, Python integers as int64_t, floats as double. `place` is the number of
// threads on the CPU and the device index on CUDA. The result is 0, or an error number.
#pragma once
#include <cstdint>
#define EXPORT extern "C" __attribute__((visibility("default")))
