// Storage types of half precision, readable by any C++ compiler. Arithmetic is always in float or double.
#pragma once
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define SCALAR __host__ __device__ __forceinline__
#else
#define SCALAR inline
#endif

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

SCALAR float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
SCALAR double widen(double value) { return value; }
SCALAR float widen(float value) { return value; }
SCALAR float widen(bf16 value) { return bits_to_float((uint32_t)value.bits << 16); }
SCALAR float widen(f16 value) {
  uint32_t sign = (uint32_t)(value.bits & 0x8000u) << 16, exponent = (value.bits >> 10) & 31u, mantissa = value.bits & 0x3ffu;
  if (exponent == 31) return bits_to_float(sign | 0x7f800000u | mantissa << 13);
  if (exponent) return bits_to_float(sign | (exponent + 112) << 23 | mantissa << 13);
  float tiny = (float)mantissa * 5.9604644775390625e-8f;  // subnormal: mantissa * 2^-24
  return sign ? -tiny : tiny;
}

// The type sums are kept in.
template <typename T> struct wide { using type = float; };
template <> struct wide<double> { using type = double; };

// Calls `body` with a null pointer of the storage type that `code` names (mmdet3d/ops/native.py: DTYPE_CODES).
template <typename Body>
int by_dtype(int64_t code, Body body) {
  switch (code) {
    case 0: return body((float*)nullptr);
    case 1: return body((double*)nullptr);
    case 2: return body((f16*)nullptr);
    case 3: return body((bf16*)nullptr);
  }
  return -1;
}
