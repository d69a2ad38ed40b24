"""Depth labels: from the LiDAR points of the sample, or from files of projected points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmdet3d.datasets.records import Context, Transform
from mmdet3d.datasets.transforms.loading import need
from mmdet3d.registry import TRANSFORMS
from mmdet3d.shell import command
from mmdet3d.structures import Boxes3D, Sample, project

__all__ = ["DEPTH_FOLDER", "GTDepth", "LoadDepthFromFiles", "draw_depth", "rasterise_depth", "read_depth_points"]

DEPTH_FOLDER = "depth_gt"
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
    pixels, depth = project(points, lidar2image, _MIN_DEPTH)
    return draw_depth(pixels, depth, image_aug, size)


def draw_depth(pixels: Tensor, depth: Tensor, image_aug: Tensor, size: tuple[int, int]) -> Tensor:
    """The nearest depth in each pixel.

    Args:
        pixels: (P, 2), u and v in raw pixels.
        depth: (P,) metres.
        image_aug: (4, 4) raw to network pixels.
        size: height and width in network pixels.

    Returns:
        (H, W) metres; 0 where no point of positive depth falls.
    """
    height, width = size
    u, v = (pixels @ image_aug[:2, :2].T + image_aug[:2, 3]).unbind(dim=1)
    seen = (depth > _MIN_DEPTH) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    seen = seen.nonzero().squeeze(1)
    index = v[seen].long() * width + u[seen].long()
    canvas = depth.new_full((height * width,), torch.inf)
    canvas.scatter_reduce_(0, index, depth[seen], reduce="amin")
    return torch.where(canvas.isinf(), 0, canvas).view(height, width)


def read_depth_points(path: Path) -> Tensor:
    """(P, 3) float32 of a depth file: u and v in raw pixels, depth in metres.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, or a value that is not finite.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"depth file {path} does not exist; write such files with {command('create-data')} depth, or take "
            "GTDepth, "
            "which needs none, in place of LoadDepthFromFiles"
        ) from None
    rows = np.frombuffer(content, dtype="<f4", count=len(content) // 12 * 3).reshape(-1, 3)
    if len(content) % 12 or not np.isfinite(rows).all():
        raise ValueError(
            f"depth file {path} ({len(content)} bytes) must hold rows of three finite float32 (u, v, depth); it is "
            f"truncated or damaged, delete it and run {command('create-data')} depth again"
        )
    return torch.from_numpy(rows.copy())


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
        size = _image_size(sample, self)
        calibration = sample.calibration
        undo = torch.linalg.inv(calibration.lidar_aug.double())
        raw = self._raw_points(points, undo, sample.meta.get("pasted_boxes"))
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


@TRANSFORMS.register
class LoadDepthFromFiles(Transform):
    """Sparse depth maps of all cameras at the network's image size, from one file of projected points per image.

    The files, `{folder}/{name of the image file}.bin`, hold float32 rows (u, v, depth) in raw pixels and metres.
    `tools/create_data.py depth` writes them; `GTDepth` gives the same without files.

    Args:
        folder: below the dataset root, or an absolute path.
    """

    def __init__(self, folder: str = DEPTH_FOLDER) -> None:
        self.folder = folder

    def __call__(self, sample: Sample, context: Context) -> Sample:
        size = _image_size(sample, self)
        maps = []
        for camera, image_aug in zip(context.record.cameras.values(), sample.calibration.image_aug, strict=True):
            points = read_depth_points(context.root / self.folder / f"{Path(camera.path).name}.bin")
            maps.append(draw_depth(points[:, :2], points[:, 2], image_aug, size))
        sample.depths = torch.stack(maps)
        return sample


def _image_size(sample: Sample, user: Transform) -> tuple[int, int]:
    """Height and width of the network's images."""
    images = need(sample, "images", user, "ImageNormalize")
    if not isinstance(images, Tensor):
        raise ValueError(
            f"{type(user).__name__} needs the final image size; put ImageNormalize before it in the pipeline"
        )
    height, width = images.shape[-2:]
    return height, width
