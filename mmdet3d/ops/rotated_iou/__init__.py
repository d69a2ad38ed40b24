"""Intersection over union of boxes that are rotated about the vertical axis."""

from __future__ import annotations

from torch import Tensor

from mmdet3d.ops.checks import check_shapes
from mmdet3d.ops.rotated_iou import reference

__all__ = ["rotated_iou", "rotated_iou_3d"]


def rotated_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of rotated rectangles on the ground plane.

    Args:
        first: (N, 5) x, y, length, width in metres, yaw in radians counter-clockwise from +x.
        second: (M, 5).

    Returns:
        (N, M) in [0, 1]; 0 where both rectangles are empty. Differentiable almost everywhere.

    Raises:
        ValueError: another shape.
    """
    check_shapes(first=(first, "N 5"), second=(second, "M 5"))
    return reference.rotated_iou(first, second)


def rotated_iou_3d(first: Tensor, second: Tensor) -> Tensor:
    """IoU of boxes in space.

    Args:
        first: (N, 7) x, y, z of the gravity centre, length, width, height in metres, yaw in radians counter-clockwise.
        second: (M, 7).

    Returns:
        (N, M) in [0, 1].

    Raises:
        ValueError: another shape (of `Boxes3D` pass `tensor[:, :7]`).
    """
    check_shapes(first=(first, "N 7"), second=(second, "M 7"))
    return reference.rotated_iou_3d(first, second)
