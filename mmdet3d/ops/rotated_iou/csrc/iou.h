// IoU of boxes in space; a rectangle is a box of height 1 at height 0.
#pragma once
#include "rectangle.h"

struct Box {
  Rectangle ground;
  double bottom, top, volume;
};
static_assert(sizeof(Box) == 11 * sizeof(double), "mmdet3d/ops/rotated_iou/__init__.py reserves this much");

// values: x, y, length, width, yaw; or x, y, z of the centre, length, width, height, yaw.
template <typename T>
HOST_DEVICE Box make_box(const T* values, bool space) {
  if (!space) {
    Rectangle ground = make_rectangle(values[0], values[1], values[2], values[3], values[4]);
    return {ground, 0, 1, ground.area};
  }
  Rectangle ground = make_rectangle(values[0], values[1], values[3], values[4], values[6]);
  double z = values[2], height = values[5];
  return {ground, z - height / 2, z + height / 2, ground.area * height};
}

HOST_DEVICE double iou(const Box& a, const Box& b) {
  double common = 0;
  if (a.bottom < b.top && b.bottom < a.top && is_near(a.ground, b.ground)) {
    Pose pose = seen_from(a.ground, b.ground);
    double height = larger(smaller(a.top, b.top) - larger(a.bottom, b.bottom), 0);
    if (bounding_overlap(a.ground, b.ground, pose) > 0) common = overlap_area(a.ground, b.ground, pose) * height;
  }
  return share(common, a.volume, b.volume);
}
