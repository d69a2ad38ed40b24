"""Between boxes and the ten numbers that heads regress."""

from __future__ import annotations

import torch
from torch import Tensor

from mmdet3d.structures import BEVGrid, Boxes3D

__all__ = ["CODE_SIZE", "decode_boxes", "encode_boxes"]

CODE_SIZE = 10


def encode_boxes(boxes: Boxes3D, grid: BEVGrid, log_dims: bool = True) -> Tensor:
    """The regression code of `boxes`, in the order of published checkpoints.

    Returns:
        (N, 10): centre along x and y in fractional cells of `grid`, height of the gravity centre in metres, width,
        length, height (their logarithms if `log_dims`), sine and cosine of the old yaw -yaw - pi / 2, vx, vy.
    """
    length, width, height = boxes.dims.unbind(1)
    dims = torch.stack([width, length, height], dim=1)
    rotation = torch.stack([-boxes.yaw.cos(), -boxes.yaw.sin()], dim=1)
    z = boxes.centers[:, 2:]
    cells = grid.to_cells(boxes.centers[:, :2])
    return torch.cat([cells, z, dims.log() if log_dims else dims, rotation, boxes.velocity], dim=1)


def decode_boxes(code: Tensor, grid: BEVGrid, log_dims: bool = True) -> Boxes3D:
    """The boxes of a code (N, 10); the inverse of `encode_boxes`."""
    center = code[:, :2] * code.new_tensor(grid.cell) + code.new_tensor(grid.lower)
    width, length, height = (code[:, 3:6].exp() if log_dims else code[:, 3:6]).unbind(1)
    yaw = torch.atan2(-code[:, 7], -code[:, 6])
    return Boxes3D(torch.column_stack([center, code[:, 2], length, width, height, yaw, code[:, 8:10]]))
