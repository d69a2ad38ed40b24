"""Where the sensors are, and what augmentation did to the geometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

__all__ = ["Calibration", "inverse_3x3", "project"]


@dataclass
class Calibration:
    """Matrices of one sample, or of a batch with a leading B. `a2b` maps frame a to frame b (column vectors).

    Frames: LiDAR (LIDAR_TOP at the key frame; in nuScenes x right, y forward, z up), ego (at LiDAR time), global,
    camera (x right, y down, z forward). Sensor matrices describe the raw sensors and are not changed by augmentation:
    the pixel of an augmented LiDAR point p is `image_aug . project(lidar2image . inverse(lidar_aug) . p)`, the
    perspective division before `image_aug`.

    Args:
        lidar2ego: (4, 4).
        ego2global: (4, 4), ego pose at LiDAR time.
        camera2lidar: (N, 4, 4), ego motion between camera and LiDAR time included.
        camera2ego: (N, 4, 4), ego at camera time.
        intrinsics: (N, 4, 4), K in the top left 3x3, pixels of the raw image.
        image_aug: (N, 4, 4), raw pixel (u, v) to network pixel: 2x2 in the top left, translation in column 3.
        lidar_aug: (4, 4), raw LiDAR to augmented LiDAR coordinates.
    """

    lidar2ego: Tensor
    ego2global: Tensor
    camera2lidar: Tensor
    camera2ego: Tensor
    intrinsics: Tensor
    image_aug: Tensor
    lidar_aug: Tensor

    @property
    def lidar2camera(self) -> Tensor:
        """(..., N, 4, 4)"""
        inverse: Tensor = torch.linalg.inv(self.camera2lidar)
        return inverse

    @property
    def lidar2image(self) -> Tensor:
        """(..., N, 4, 4): LiDAR metres to (u d, v d, d, 1) in raw image pixels."""
        with torch.autocast(self.intrinsics.device.type, enabled=False):
            return self.intrinsics @ self.lidar2camera

    @classmethod
    def stack(cls, items: Sequence[Calibration]) -> Calibration:
        return cls(**{f.name: torch.stack([getattr(i, f.name) for i in items]) for f in fields(cls)})

    def __getitem__(self, index: int | slice) -> Calibration:
        return Calibration(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, *args: object, **kwargs: object) -> Calibration:
        return Calibration(**{f.name: getattr(self, f.name).to(*args, **kwargs) for f in fields(self)})


def inverse_3x3(matrix: Tensor) -> Tensor:
    """Inverse of (..., 3, 3) by cross products of its rows: plain operations, which every exported program can hold."""
    a, b, c = matrix.unbind(-2)
    columns = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], dim=-1)
    return columns / (a * columns[..., 0]).sum(-1)[..., None, None]


def project(points: Tensor, lidar2image: Tensor, min_depth: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Project LiDAR points into one image or several.

    Args:
        points: (P, >=3) LiDAR metres.
        lidar2image: (..., 4, 4).
        min_depth: depth below which the division is clamped.

    Returns:
        Pixels (..., P, 2) and depth (..., P) along the optical axis in metres (negative behind the camera, unclamped).
    """
    with torch.autocast(points.device.type, enabled=False):
        homogeneous = points[:, :3] @ lidar2image[..., :3, :3].mT + lidar2image[..., None, :3, 3]
    depth = homogeneous[..., 2]
    return homogeneous[..., :2] / depth.clamp(min=min_depth)[..., None], depth
