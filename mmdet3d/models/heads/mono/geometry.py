"""Between cells of the heads' maps, pixels of the raw image, and the camera frame."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmdet3d.structures import Batch

__all__ = ["ImageGeometry"]


@dataclass(frozen=True)
class ImageGeometry:
    """The cameras of a batch, one per sample, as the heads' maps see them. `image` arguments index the batch.

    Args:
        scale: (B, 2) raw pixels per cell along x and y.
        origin: (B, 2) raw pixel at cell coordinate (0, 0).
        projection: (B, 3, 4) camera metres to raw pixels times depth.
    """

    scale: Tensor
    origin: Tensor
    projection: Tensor

    @classmethod
    def from_batch(
        cls, batch: Batch, stride: int, map_size: tuple[int, int], crop: Tensor | None = None
    ) -> ImageGeometry:
        """
        Args:
            stride: network pixels per cell.
            map_size: height and width of the maps, cells.
            crop: None: invert what was done to the image. (B, 3) of `ImageCrops`: stretch the crop's size over the
                maps, as the published program does when it decodes; that is off by up to 1.2 pixels at the upper and
                lower border of a KITTI image, and by 0.65 % in depth.
        """
        zoom = torch.diagonal(batch.calibration.image_aug[:, 0, :2, :2], dim1=1, dim2=2)
        scale, origin = stride / zoom, -batch.calibration.image_aug[:, 0, :2, 3] / zoom
        if crop is not None:
            cells = scale.new_tensor([map_size[1], map_size[0]])
            extent = crop[:, :2].to(scale) * crop[:, 2:].to(scale)
            origin = origin + scale * cells / 2 - extent / 2
            scale = extent / cells
        return cls(scale, origin, batch.calibration.intrinsics[:, 0, :3])

    def to_pixels(self, cells: Tensor, image: Tensor) -> Tensor:
        """(N, 2) cell coordinates x, y to raw pixels."""
        return cells * self.scale[image] + self.origin[image]

    def to_cells(self, pixels: Tensor, image: Tensor) -> Tensor:
        """(N, 2) raw pixels to cell coordinates x, y."""
        return (pixels - self.origin[image]) / self.scale[image]

    def project(self, points: Tensor, image: Tensor) -> Tensor:
        """(N, 3) metres in the camera frame to (N, 2) raw pixels; as `lift` inverts it, divided by z."""
        matrix = self.projection[image]
        # No matmul, which autocast would run in half precision: u * z exceeds its range, and its steps are pixels.
        rows = (matrix[:, :2, :3] * points[:, None]).sum(-1) + matrix[:, :2, 3]
        return rows / points[:, 2:]

    def lift(self, pixels: Tensor, depth: Tensor, image: Tensor) -> Tensor:
        """(N, 2) raw pixels and (N,) depths z to (N, 3) metres in the camera frame."""
        matrix = self.projection[image]
        focal = torch.diagonal(matrix[:, :2, :2], dim1=1, dim2=2)
        xy = ((pixels - matrix[:, :2, 2]) * depth[:, None] - matrix[:, :2, 3]) / focal
        return torch.cat([xy, depth[:, None]], dim=1)

    def bearing(self, columns: Tensor, image: Tensor) -> Tensor:
        """Yaw minus observation angle (N,): the direction of the ray through raw pixel columns (N,), radians."""
        return torch.atan2(columns - self.projection[image, 0, 2], self.projection[image, 0, 0])
