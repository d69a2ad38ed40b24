"""3-D boxes in one convention; others exist only in `interop` and the info-file readers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Boxes3D", "limit_period", "rotate_z"]


def limit_period(angle: Tensor, period: float = 2 * torch.pi) -> Tensor:
    """Angles in radians brought into `[-period / 2, period / 2)`."""
    return angle - torch.floor(angle / period + 0.5) * period


@dataclass
class Boxes3D:
    """Boxes as one tensor `(N, 9)`: x, y, z, length, width, height, yaw, vx, vy.

    The centre is the gravity centre; length runs along the heading; yaw is counter-clockwise from +x seen from above;
    the velocity is in the same frame. Metres, radians, m/s. Methods return new boxes and leave `self` as it was.
    """

    tensor: Tensor

    def __post_init__(self) -> None:
        if self.tensor.ndim != 2 or self.tensor.shape[1] != 9:
            raise ValueError(f"Boxes3D needs a (N, 9) tensor, got {tuple(self.tensor.shape)}")

    @classmethod
    def empty(cls, device: torch.device | str = "cpu") -> Boxes3D:
        return cls(torch.zeros(0, 9, device=device))

    @classmethod
    def cat(cls, boxes: Sequence[Boxes3D]) -> Boxes3D:
        return cls(torch.cat([b.tensor for b in boxes])) if boxes else cls.empty()

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Boxes3D:
        return Boxes3D(self.tensor[index])

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    @property
    def centers(self) -> Tensor:
        """(N, 3) gravity centres."""
        return self.tensor[:, :3]

    @property
    def dims(self) -> Tensor:
        """(N, 3) length, width, height."""
        return self.tensor[:, 3:6]

    @property
    def yaw(self) -> Tensor:
        """(N,)"""
        return self.tensor[:, 6]

    @property
    def velocity(self) -> Tensor:
        """(N, 2)"""
        return self.tensor[:, 7:9]

    def to(self, *args: Any, **kwargs: Any) -> Boxes3D:
        return Boxes3D(self.tensor.to(*args, **kwargs))

    def clone(self) -> Boxes3D:
        return Boxes3D(self.tensor.clone())

    # -- geometry ---------------------------------------------------------------------------------------------------

    def corners(self) -> Tensor:
        """(N, 8, 3) corners; the first four are the bottom face, counter-clockwise from front-left, then the top face.

        Edge 0-1 is the front-left to rear-left side, so the heading points from the middle of 1-2 to that of 3-0.
        """
        signs = torch.tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]], dtype=self.tensor.dtype, device=self.device) / 2
        signs = torch.cat([signs.repeat(2, 1), signs.new_tensor([-0.5] * 4 + [0.5] * 4)[:, None]], dim=1)
        local = signs[None] * self.dims[:, None]
        return rotate_z(local, self.yaw[:, None]) + self.centers[:, None]

    def footprint(self) -> Tensor:
        """(N, 4, 2) corners on the ground plane, counter-clockwise from front-left."""
        return self.corners()[:, :4, :2]

    def contains(self, points: Tensor) -> Tensor:
        """(N, P) bool: which of `points` (P, >=3) lie strictly inside which box (a point on a face is outside)."""
        local = rotate_z(points[None, :, :3] - self.centers[:, None], -self.yaw[:, None])
        return (local.abs() < self.dims[:, None] / 2).all(-1)

    def in_range(self, bev_range: Sequence[float]) -> Tensor:
        """(N,) bool: centre strictly inside `(x0, y0, x1, y1)` metres."""
        x0, y0, x1, y1 = bev_range
        x, y = self.tensor[:, 0], self.tensor[:, 1]
        return (x > x0) & (y > y0) & (x < x1) & (y < y1)

    def transform(self, matrix: Tensor) -> Boxes3D:
        """Boxes in the frame that `matrix` (4, 4) maps to.

        `matrix` = [k R, t; 0 1] with a positive uniform scale k and R orthogonal; R may mirror (determinant -1), as BEV
        flips do. Sizes and velocity are scaled by k. Only the rotation about z changes the yaw (the heading is
        projected on the x-y plane).

        Raises:
            ValueError: `matrix` is not a similarity.
        """
        with torch.autocast(self.tensor.device.type, enabled=False):  # metres in bfloat16 come in steps of 25 cm
            return self._transformed(matrix.to(self.tensor))

    def _transformed(self, matrix: Tensor) -> Boxes3D:
        linear = matrix[:3, :3]
        scale = linear.det().abs() ** (1 / 3)
        gram = linear @ linear.T / scale**2
        if not torch.allclose(gram, torch.eye(3).to(gram), atol=1e-3):
            raise ValueError("Boxes3D.transform needs rotation, mirror, uniform scale and translation only")
        out = self.tensor.clone()
        out[:, :3] = self.centers @ linear.T + matrix[:3, 3]
        out[:, 3:6] = self.dims * scale
        heading = torch.stack([self.yaw.cos(), self.yaw.sin()], dim=1) @ linear[:2, :2].T
        out[:, 6] = torch.atan2(heading[:, 1], heading[:, 0])
        velocity = torch.cat([self.velocity, torch.zeros_like(self.velocity[:, :1])], dim=1)
        out[:, 7:9] = (velocity @ linear.T)[:, :2]
        return Boxes3D(out)


def rotate_z(points: Tensor, angle: Tensor) -> Tensor:
    """Rotate `points` (..., 3) counter-clockwise about z by `angle` (...), radians."""
    c, s = angle.cos(), angle.sin()
    x, y, z = points.unbind(-1)
    return torch.stack([c * x - s * y, s * x + c * y, z.expand_as(x)], dim=-1)
