// What one pillar's points look like to the network, and the way back.
#pragma once
#include "scalar.h"
#include "launch.h"

struct Decoration {
  int64_t slots, inputs, outputs;  // S, F, and F + 3 cluster + 2 center + 1 distance
  double size[3], lower[3], upper[3];
  bool normalize, cluster, center, distance;
};

template <typename T>
HOST_DEVICE void pillar_mean(const Decoration& d, const T* points, int64_t count, T* mean) {
  for (int k = 0; k < 3; ++k) mean[k] = 0;
  for (int64_t s = 0; s < count; ++s)
    for (int k = 0; k < 3; ++k) mean[k] += points[s * d.inputs + k];
  for (int k = 0; k < 3; ++k) mean[k] /= count > 0 ? (T)count : (T)1;
}

// points (S, F) of one pillar, cell its x, y index -> out (S, outputs).
template <typename T>
HOST_DEVICE void decorate(const Decoration& d, const T* points, int64_t count, const int64_t* cell, T* out) {
  T mean[3];
  if (d.cluster) pillar_mean(d, points, count, mean);
  for (int64_t s = 0; s < d.slots; ++s, points += d.inputs, out += d.outputs) {
    if (s >= count) {
      for (int64_t c = 0; c < d.outputs; ++c) out[c] = 0;
      continue;
    }
    for (int k = 0; k < 3; ++k)
      out[k] = d.normalize ? (points[k] - (T)d.lower[k]) / ((T)d.upper[k] - (T)d.lower[k]) : points[k];
    for (int64_t c = 3; c < d.inputs; ++c) out[c] = points[c];
    T* extra = out + d.inputs;
    if (d.cluster)
      for (int k = 0; k < 3; ++k) *extra++ = points[k] - mean[k];
    if (d.center)
      for (int k = 0; k < 2; ++k) *extra++ = points[k] - ((T)cell[k] * (T)d.size[k] + ((T)d.size[k] / 2 + (T)d.lower[k]));
    if (d.distance) *extra = sqrt(points[0] * points[0] + points[1] * points[1] + points[2] * points[2]);
  }
}

// grad_out (S, outputs) -> grad (S, F).
template <typename T>
HOST_DEVICE void decorate_backward(const Decoration& d, const T* points, int64_t count, const T* grad_out, T* grad) {
  T shared[3] = {0, 0, 0};  // what every point of the pillar pays for its part in the mean
  if (d.cluster)
    for (int64_t s = 0; s < count && s < d.slots; ++s)
      for (int k = 0; k < 3; ++k) shared[k] += grad_out[s * d.outputs + d.inputs + k] / (T)count;
  for (int64_t s = 0; s < d.slots; ++s, points += d.inputs, grad += d.inputs, grad_out += d.outputs) {
    for (int64_t c = 0; c < d.inputs; ++c) grad[c] = s < count ? grad_out[c] : (T)0;
    if (s >= count) continue;
    if (d.normalize)
      for (int k = 0; k < 3; ++k) grad[k] /= (T)d.upper[k] - (T)d.lower[k];
    const T* extra = grad_out + d.inputs;
    if (d.cluster)
      for (int k = 0; k < 3; ++k) grad[k] += *extra++ - shared[k];
    if (d.center)
      for (int k = 0; k < 2; ++k) grad[k] += *extra++;
    if (d.distance) {
      T norm = sqrt(points[0] * points[0] + points[1] * points[1] + points[2] * points[2]);
      for (int k = 0; norm > 0 && k < 3; ++k) grad[k] += *extra * points[k] / norm;
    }
  }
}

// The arguments both entry points share, in the order in which Python passes them.
#define DECORATION_ARGUMENTS                                                                                             \
  int64_t dtype, int64_t pillars, int64_t slots, int64_t inputs, int64_t outputs, double sx, double sy, double sz,      \
      double x0, double y0, double z0, double x1, double y1, double z1, int64_t normalize, int64_t cluster,             \
      int64_t center, int64_t distance
#define DECORATION                                                                                                      \
  Decoration{slots, inputs, outputs, {sx, sy, sz}, {x0, y0, z0}, {x1, y1, z1}, normalize != 0, cluster != 0, center != 0, \
             distance != 0}
