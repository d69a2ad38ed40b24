// Overlap of rectangles on the ground plane that are rotated about the vertical axis. Always in double, so that CPU and
// CUDA agree on which of two nearly equal overlaps is the larger.
#pragma once
#include "launch.h"

constexpr double ROUNDING = 2.220446049250313e-16;  // of a common area, relative to the square of the extent

struct Rectangle {
  double x, y, half_length, half_width, cosine, sine, radius, area;
};

// From x, y, length, width, yaw (radians, counter-clockwise).
HOST_DEVICE Rectangle make_rectangle(double x, double y, double length, double width, double yaw) {
  return {x, y, length / 2, width / 2, cos(yaw), sin(yaw), sqrt(length * length + width * width) / 2, length * width};
}

// Whether the circumscribed circles meet; false if a number is NaN.
HOST_DEVICE bool is_near(const Rectangle& a, const Rectangle& b) {
  double dx = a.x - b.x, dy = a.y - b.y, reach = a.radius + b.radius;
  return dx * dx + dy * dy <= reach * reach;
}

HOST_DEVICE double smaller(double a, double b) { return a < b ? a : b; }
HOST_DEVICE double larger(double a, double b) { return a > b ? a : b; }
HOST_DEVICE double between(double value, double low, double high) { return smaller(larger(value, low), high); }

// Rectangle `a` seen from `b`: centre, and cosine and sine of its rotation.
struct Pose {
  double x, y, cosine, sine;
};

HOST_DEVICE Pose seen_from(const Rectangle& a, const Rectangle& b) {
  double dx = a.x - b.x, dy = a.y - b.y;
  return {dx * b.cosine + dy * b.sine, dy * b.cosine - dx * b.sine, a.cosine * b.cosine + a.sine * b.sine,
          a.sine * b.cosine - a.cosine * b.sine};
}

// Common area of `b` and the box around `a` along the axes of `b`; the overlap is at most that.
HOST_DEVICE double bounding_overlap(const Rectangle& a, const Rectangle& b, const Pose& pose) {
  double half_x = fabs(pose.cosine) * a.half_length + fabs(pose.sine) * a.half_width;
  double half_y = fabs(pose.sine) * a.half_length + fabs(pose.cosine) * a.half_width;
  double common_x = smaller(pose.x + half_x, b.half_length) - larger(pose.x - half_x, -b.half_length);
  double common_y = smaller(pose.y + half_y, b.half_width) - larger(pose.y - half_y, -b.half_width);
  return common_x > 0 && common_y > 0 ? common_x * common_y : 0;
}

// Integral of clamp(y, -half_y, half_y) over x along the edge from (x0, y0) to (x1, y1), for |x| <= half_x.
HOST_DEVICE double area_below(double x0, double y0, double x1, double y1, double half_x, double half_y) {
  double begin = between(x0, -half_x, half_x), width = between(x1, -half_x, half_x) - begin;
  if (width == 0) return 0;
  double slope = (y1 - y0) / (x1 - x0);
  double start = y0 + slope * (begin - x0), rise = slope * width;
  // The clamped y is linear between the places where the edge crosses a border. A misplaced crossing of an edge almost
  // parallel to the border costs nothing, because y hardly differs from the border along it.
  double low = 0, high = 0;
  if (rise != 0) {
    double first = between((-half_y - start) / rise, 0, 1), second = between((half_y - start) / rise, 0, 1);
    low = smaller(first, second);
    high = larger(first, second);
  }
  double left = between(start, -half_y, half_y), right = between(start + rise, -half_y, half_y);
  double at_low = between(start + low * rise, -half_y, half_y), at_high = between(start + high * rise, -half_y, half_y);
  return (low * (left + at_low) + (high - low) * (at_low + at_high) + (1 - high) * (at_high + right)) / 2 * width;
}

// Common area: what lies below the upper edges of `a` minus what lies below its lower edges, within `b`. Continuous in
// both rectangles, so equal ones need no tolerance; what may be a rounding error counts as nothing, so that touching ones
// have exactly nothing in common (mmdet3d/ops/rotated_iou/reference.py).
HOST_DEVICE double overlap_area(const Rectangle& a, const Rectangle& b, const Pose& pose) {
  double ux = pose.cosine * a.half_length, uy = pose.sine * a.half_length;
  double vx = -pose.sine * a.half_width, vy = pose.cosine * a.half_width;
  double x[4] = {pose.x + ux + vx, pose.x - ux + vx, pose.x - ux - vx, pose.x + ux - vx};
  double y[4] = {pose.y + uy + vy, pose.y - uy + vy, pose.y - uy - vy, pose.y + uy - vy};
  double area = 0;
  for (int k = 0; k < 4; ++k) {
    int next = (k + 1) % 4;
    area -= area_below(x[k], y[k], x[next], y[next], b.half_length, b.half_width);
  }
  double reach = a.radius + b.radius;
  // Also 0 for NaN, of rectangles without end.
  return area > ROUNDING * reach * reach ? smaller(area, smaller(a.area, b.area)) : 0;
}

// Intersection over union of measures (areas or volumes).
HOST_DEVICE double share(double common, double first, double second) {
  double both = first + second - common;
  return common / (both < 1e-8 ? 1e-8 : both);
}
