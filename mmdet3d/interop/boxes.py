"""Boxes between our convention and those of other programs.

The old convention (mmdet3d before v1.0): x, y, z, width, length, height, yaw, vx, vy, where yaw = -heading - pi / 2 and
the heading is counter-clockwise from +x. z is the bottom face in boxes (`LiDARInstance3DBoxes`) and the gravity centre
in what regression heads predict.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmdet3d.structures import Boxes3D, limit_period

__all__ = [
    "boxes_from_old",
    "boxes_to_old",
    "yaw_from_old",
    "yaw_to_old",
]


def yaw_from_old(yaw: Tensor) -> Tensor:
    """Old yaw (...) in radians to heading counter-clockwise from +x, in [-pi, pi)."""
    return limit_period(-yaw - torch.pi / 2)


def yaw_to_old(yaw: Tensor) -> Tensor:
    """Heading (...) counter-clockwise from +x to old yaw, in [-pi, pi). The map is its own inverse."""
    return limit_period(-yaw - torch.pi / 2)


def boxes_from_old(boxes: Tensor, gravity: bool = False) -> Boxes3D:
    """Boxes of the old convention as `Boxes3D`.

    Args:
        boxes: (N, 7 or 9): x, y, z, w, l, h, yaw[, vx, vy]; a missing velocity becomes 0.
        gravity: z is the gravity centre instead of the bottom face.

    Raises:
        ValueError: another number of columns.
    """
    if boxes.ndim != 2 or boxes.shape[1] not in (7, 9):
        raise ValueError(f"boxes of the old convention need 7 or 9 columns, got shape {tuple(boxes.shape)}")
    x, y, z, width, length, height, yaw = boxes[:, :7].unbind(1)
    velocity = boxes[:, 7:] if boxes.shape[1] == 9 else boxes.new_zeros(len(boxes), 2)
    z = z if gravity else z + height / 2
    return Boxes3D(torch.column_stack([x, y, z, length, width, height, yaw_from_old(yaw), velocity]))


def boxes_to_old(boxes: Boxes3D, gravity: bool = False) -> Tensor:
    """`Boxes3D` as (N, 9) of the old convention; see `boxes_from_old`."""
    x, y, z, length, width, height, yaw, vx, vy = boxes.tensor.unbind(1)
    z = z if gravity else z - height / 2
    return torch.column_stack([x, y, z, width, length, height, yaw_to_old(yaw), vx, vy])
