"""Depth labels from LiDAR."""

from __future__ import annotations

import torch
from torch import Tensor

from mmdet3d.datasets.records import Context, Transform
from mmdet3d.datasets.transforms.loading import need
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import Boxes3D, Sample, project

__all__ = ["GTDepth", "rasterise_depth"]

_MIN_DEPTH = 1e-5
# Points of a pasted object may lie on its faces; the margin catches them.
_PASTE_MARGIN = 0.02


def rasterise_depth(points: Tensor, lidar2image: Tensor, image_aug: Tensor, size: tuple[int, int]) -> Tensor:
    """The depth of the nearest point in each pixel.

    Args:
        points: (P, 3) raw LiDAR frame, metres.
        lidar2image: (4, 4) to raw pixels.
        image_aug: (4, 4) raw to network pixels, applied after the perspective division.
        size: height and width in network pixels.

    Returns:
        (H, W) depth along the optical axis in metres; 0 where no point in front of the camera falls.
    """
    height, width = size
    pixels, depth = project(points, lidar2image, _MIN_DEPTH)
    u, v = (pixels @ image_aug[:2, :2].T + image_aug[:2, 3]).unbind(dim=1)
    seen = (depth > _MIN_DEPTH) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    index = v[seen].long() * width + u[seen].long()
    canvas = depth.new_full((height * width,), torch.inf)
    canvas.scatter_reduce_(0, index, depth[seen], reduce="amin")
    return torch.where(canvas.isinf(), 0, canvas).view(height, width)


@TRANSFORMS.register
class GTDepth(Transform):
    """Sparse depth maps of all cameras at the network's image size, from the LiDAR points of the sample.

    Points of pasted objects give no depth: nothing of them is in the images.

    Args:
        keyframe_only: use the key-frame scan only (time lag 0).
    """

    def __init__(self, keyframe_only: bool = False) -> None:
        self.keyframe_only = keyframe_only

    def __call__(self, sample: Sample, context: Context) -> Sample:
        points = need(sample, "points", self, "LoadPointsFromFile")
        images = need(sample, "images", self, "ImageNormalize")
        if not isinstance(images, Tensor):
            raise ValueError("GTDepth needs the final image size; put ImageNormalize before it in the pipeline")
        calibration = sample.calibration
        undo = torch.linalg.inv(calibration.lidar_aug.double())
        raw = self._raw_points(points, undo, sample.meta.get("pasted_boxes"))
        size = tuple(images.shape[-2:])
        maps = [
            rasterise_depth(raw, lidar2image, image_aug, size)
            for lidar2image, image_aug in zip(calibration.lidar2image, calibration.image_aug, strict=True)
        ]
        sample.depths = torch.stack(maps)
        return sample

    def _raw_points(self, points: Tensor, undo: Tensor, pasted: Boxes3D | None) -> Tensor:
        if self.keyframe_only:
            if points.shape[1] < 5:
                raise ValueError(
                    f"GTDepth with keyframe_only needs the time lag, column 4 of points; got {points.shape[1]} columns"
                )
            points = points[points[:, 4] == 0]
        raw = (points[:, :3].double() @ undo[:3, :3].T + undo[:3, 3]).float()
        if pasted is None:
            return raw
        grown = pasted.tensor.clone()
        grown[:, 3:6] += _PASTE_MARGIN
        return raw[~Boxes3D(grown).contains(raw).any(dim=0)]
