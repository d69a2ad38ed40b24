"""What lies outside the range or the class list is dropped."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmdet3d.blocks import numbers
from mmdet3d.datasets.records import Context, Transform
from mmdet3d.datasets.transforms.loading import need
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import RADAR, Boxes3D, Sample, by_sensor, limit_period, project

__all__ = ["ObjectNameFilter", "ObjectRangeFilter", "PointsInView", "PointsRangeFilter"]


@TRANSFORMS.register
class PointsRangeFilter(Transform):
    """Keeps points strictly inside `point_cloud_range`, those of radars strictly inside `radar_range`.

    Args:
        point_cloud_range: x0, y0, z0, x1, y1, z1 in metres; of sensors that measure no height x and y alone.
        radar_range: x0, y0, x1, y1 in metres; radar does not measure height.
    """

    def __init__(
        self, point_cloud_range: Sequence[float], radar_range: Sequence[float] = (-55.0, -55.0, 55.0, 55.0)
    ) -> None:
        numbers("x0 y0 z0 x1 y1 z1", point_cloud_range, "point_cloud_range")
        self.lower, self.upper = torch.tensor(point_cloud_range, dtype=torch.float32).view(2, 3)
        numbers("x0 y0 x1 y1", radar_range, "radar_range")
        self.radar_lower, self.radar_upper = torch.tensor(radar_range, dtype=torch.float32).view(2, 2)

    def __call__(self, sample: Sample, context: Context) -> Sample:
        for sensor, points in by_sensor(sample.clouds):
            limits = (self.radar_lower, self.radar_upper) if sensor == RADAR else (self.lower, self.upper)
            axes = 3 if sensor.measures_height else 2
            sample.put(sensor.field, _inside(points, *(corner[:axes] for corner in limits)))
        return sample


def _inside(points: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    # Column by column in NumPy, and by index instead of by mask, which is much faster.
    inside = np.ones(len(points), dtype=bool)
    for column, least, most in zip(points.numpy().T, lower.numpy(), upper.numpy(), strict=False):
        inside &= column > least
        inside &= column < most
    return points[torch.from_numpy(np.flatnonzero(inside))]


@TRANSFORMS.register
class PointsInView(Transform):
    """Keeps points that a camera sees, of all sensors, for data in which nothing else is labelled."""

    def __call__(self, sample: Sample, context: Context) -> Sample:
        sizes = sample.meta.get("image_sizes")
        if sizes is None:
            raise ValueError("PointsInView needs the images; put LoadMultiViewImageFromFiles before it in the pipeline")
        calibration = sample.calibration
        lidar2image = calibration.lidar2image.double() @ torch.linalg.inv(calibration.lidar_aug.double())
        limits = torch.tensor(sizes, dtype=torch.float64)[:, None]
        for field, points in sample.clouds.items():
            pixels, depth = project(points.double(), lidar2image)
            seen = (depth > 0) & (pixels >= 0).all(-1) & (pixels < limits).all(-1)
            sample.put(field, points[seen.any(0)])
        return sample


@TRANSFORMS.register
class ObjectRangeFilter(Transform):
    """Keeps boxes whose centre is strictly inside the range on the ground plane; brings their yaw into [-pi, pi).

    Args:
        point_cloud_range: x0, y0, z0, x1, y1, z1, metres; the heights are not looked at.
    """

    def __init__(self, point_cloud_range: Sequence[float]) -> None:
        x0, y0, _, x1, y1, _ = numbers("x0 y0 z0 x1 y1 z1", point_cloud_range, "point_cloud_range")
        self.bev_range = (x0, y0, x1, y1)

    def __call__(self, sample: Sample, context: Context) -> Sample:
        if sample.unlabelled:
            return sample
        boxes, labels = (need(sample, name, self, "LoadAnnotations3D") for name in ("boxes", "labels"))
        keep = boxes.in_range(self.bev_range)
        tensor = boxes.tensor[keep]
        tensor[:, 6] = limit_period(tensor[:, 6])
        sample.boxes, sample.labels = Boxes3D(tensor), labels[keep]
        return sample


@TRANSFORMS.register
class ObjectNameFilter(Transform):
    """Drops boxes of classes outside the list (label -1).

    Args:
        classes: must be the data set's class list.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)

    def __call__(self, sample: Sample, context: Context) -> Sample:
        if sample.unlabelled:
            return sample
        boxes, labels = (need(sample, name, self, "LoadAnnotations3D") for name in ("boxes", "labels"))
        if self.classes != tuple(context.classes):
            raise ValueError(
                f"ObjectNameFilter has classes {list(self.classes)} but the data set {list(context.classes)}; give "
                f"both the same list"
            )
        keep = labels >= 0
        sample.boxes, sample.labels = boxes[keep], labels[keep]
        return sample
