"""Non-maximum suppression on the ground plane. Class-agnostic: callers split by class or task."""

from __future__ import annotations

from torch import Tensor

from mmdet3d.ops.checks import check_shapes
from mmdet3d.ops.nms import reference

__all__ = ["circle_nms", "rotated_nms"]


def circle_nms(
    centers: Tensor,
    scores: Tensor,
    squared_radius: float,
    pre_max_size: int | None = None,
    post_max_size: int | None = None,
) -> Tensor:
    """Suppress centres near a better one (CenterPoint).

    Args:
        centers: (N, 2) x, y, metres.
        scores: (N,).
        squared_radius: a centre is suppressed if its squared distance to a kept one is at most this, square metres. It
            is what published configs call `min_radius`: 4 means 2 m.
        pre_max_size: how many of the best scores enter; None: all.
        post_max_size: how many are kept at most; None: all.

    Returns:
        (K,) int64 indices of the kept centres, best score first; equal scores keep their order.

    Raises:
        ValueError: another shape, or a negative radius.
    """
    check_shapes(centers=(centers, "N 2"), scores=(scores, "N"))
    if squared_radius < 0:
        raise ValueError(f"squared_radius must not be negative, got {squared_radius}")
    return reference.circle_nms(centers, scores, squared_radius, pre_max_size, post_max_size)


def rotated_nms(
    boxes: Tensor,
    scores: Tensor,
    threshold: float,
    pre_max_size: int | None = None,
    post_max_size: int | None = None,
) -> Tensor:
    """Suppress rectangles whose IoU with a better one exceeds `threshold`.

    Args:
        boxes: (N, 5) x, y, length, width in metres, yaw in radians counter-clockwise from +x.
        scores: (N,).
        threshold: IoU in [0, 1]; equality survives.
        pre_max_size: how many of the best scores enter; None: all.
        post_max_size: how many are kept at most; None: all.

    Returns:
        (K,) int64 indices of the kept boxes, best score first; equal scores keep their order.

    Raises:
        ValueError: another shape, or a threshold outside [0, 1].
    """
    check_shapes(boxes=(boxes, "N 5"), scores=(scores, "N"))
    if not 0 <= threshold <= 1:
        raise ValueError(f"the IoU threshold must lie in [0, 1], got {threshold}")
    return reference.rotated_nms(boxes, scores, threshold, pre_max_size, post_max_size)
