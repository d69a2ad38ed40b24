// When one shape suppresses another. Everything in double, so that CPU and CUDA keep the same.
#pragma once
#include "rectangle.h"

struct Circles {
  const double* centers;
  double squared_radius;

  HOST_DEVICE bool conflict(int64_t i, int64_t j) const {
    double dx = centers[2 * i] - centers[2 * j], dy = centers[2 * i + 1] - centers[2 * j + 1];
    return dx * dx + dy * dy <= squared_radius;
  }
};

struct Rectangles {
  const Rectangle* shapes;
  double threshold;

  HOST_DEVICE bool conflict(int64_t i, int64_t j) const {
    const Rectangle &a = shapes[i], &b = shapes[j];
    if (!is_near(a, b)) return false;
    // Bounds of the IoU that cost less than clipping: from the areas, then from the box around `a` in the frame of `b`.
    double low = smaller(a.area, b.area);
    if (!(share(low, a.area, b.area) > threshold)) return false;
    Pose pose = seen_from(a, b);
    double bound = smaller(bounding_overlap(a, b, pose), low);
    if (!(share(bound, a.area, b.area) > threshold)) return false;
    return share(overlap_area(a, b, pose), a.area, b.area) > threshold;
  }
};
