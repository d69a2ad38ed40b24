// Pooling adjacent violators on one row of descending values; see reference.py for the readable form.
#pragma once
#include "launch.h"

// The sum of the ranks n - begin, n - begin - 1, ... of `count` places.
HOST_DEVICE double rank_sum(int64_t n, int64_t begin, int64_t count) {
  return (double)count * (2.0 * (double)(n - begin) - (double)count + 1.0) / 2.0;
}

HOST_DEVICE double level(bool entropic, int64_t n, int64_t begin, int64_t end, double pooled) {
  double ranks = rank_sum(n, begin, end - begin);
  return entropic ? pooled - log(ranks) : (pooled - ranks) / (double)(end - begin);
}

HOST_DEVICE double merge(bool entropic, double a, double b) {
  if (!entropic) return a + b;
  double high = a > b ? a : b, low = a > b ? b : a;
  return high + log1p(exp(low - high));
}

// values (n) descending -> ranks (n), blocks (n): the index of the first of its block. pooled (n) is working memory.
template <typename T>
HOST_DEVICE void pool(bool entropic, int64_t n, const T* values, double* pooled, int64_t* blocks, T* ranks) {
  // blocks[0..count) holds where blocks begin, pooled[0..count) their sums, until both are spread over the row.
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    int64_t begin = i;
    double sum = (double)values[i], here = level(entropic, n, i, i + 1, sum);
    while (count && level(entropic, n, blocks[count - 1], begin, pooled[count - 1]) <= here) {
      --count;
      begin = blocks[count];
      sum = merge(entropic, pooled[count], sum);
      here = level(entropic, n, begin, i + 1, sum);
    }
    blocks[count] = begin;
    pooled[count++] = sum;
  }
  for (int64_t end = n; count-- > 0;) {
    int64_t begin = blocks[count];
    double sum = pooled[count], total = rank_sum(n, begin, end - begin), size = (double)(end - begin);
    for (int64_t i = begin; i < end; ++i) {
      double value = (double)values[i];
      ranks[i] = (T)(entropic ? exp(value - sum) * total : value - sum / size + total / size);
      blocks[i] = begin;
    }
    end = begin;
  }
}

// The gradient of a row: within each block that of a shift ("l2") or of a softmax times the block's sum.
template <typename T>
HOST_DEVICE void pool_backward(bool entropic, int64_t n, const T* grad_out, const T* ranks, const int64_t* blocks, T* grad) {
  for (int64_t end = n; end > 0;) {
    int64_t begin = blocks[end - 1];
    double sum = 0;
    for (int64_t i = begin; i < end; ++i) sum += entropic ? (double)grad_out[i] * (double)ranks[i] : (double)grad_out[i];
    double mean = sum / (entropic ? rank_sum(n, begin, end - begin) : (double)(end - begin));
    for (int64_t i = begin; i < end; ++i)
      grad[i] = (T)(((double)grad_out[i] - mean) * (entropic ? (double)ranks[i] : 1.0));
    end = begin;
  }
}
