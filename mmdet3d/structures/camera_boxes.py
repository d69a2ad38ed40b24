"""Boxes of KITTI, given in camera coordinates.

KITTI files: height, width, length; x, y, z of the bottom face's centre in rectified camera coordinates (x right, y
down, z forward); rotation_y, which is 0 along +x and turns z to x. As `Boxes3D` they are in the frame x forward, y
left, z up with the same origin, to which `CAMERA_TO_LEVEL` leads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmdet3d.structures.boxes import Boxes3D, limit_period

__all__ = ["CAMERA_TO_LEVEL", "boxes_from_kitti", "boxes_to_kitti"]

# (4, 4): x right, y down, z forward to x forward, y left, z up.
CAMERA_TO_LEVEL = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)


def boxes_from_kitti(boxes: Tensor) -> Boxes3D:
    """Boxes of KITTI files as `Boxes3D` with velocity 0, in the frame x forward, y left, z up at the rectified camera.

    `.transform(rect2lidar @ CAMERA_TO_LEVEL.inverse())` takes them to the LiDAR.

    Args:
        boxes: (N, 7) in the order of a label line: h, w, l, x, y, z, rotation_y.

    Raises:
        ValueError: another shape.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 7:
        raise ValueError(f"boxes of KITTI files need 7 columns, got shape {tuple(boxes.shape)}")
    height, width, length, x, y, z, rotation = boxes.unbind(1)
    none = torch.zeros_like(x)
    yaw = limit_period(-rotation - torch.pi / 2)
    return Boxes3D(torch.column_stack([z, -x, height / 2 - y, length, width, height, yaw, none, none]))


def boxes_to_kitti(boxes: Boxes3D) -> Tensor:
    """(N, 7) of KITTI files from boxes in the frame x forward, y left, z up; inverse of `boxes_from_kitti`."""
    x, y, z, length, width, height, yaw = boxes.tensor[:, :7].unbind(1)
    rotation = limit_period(-yaw - torch.pi / 2)
    return torch.column_stack([height, width, length, -y, height / 2 - z, x, rotation])
