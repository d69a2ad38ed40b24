"""The runner of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdet3d.datasets.records import Context, FrameRecord, Transform
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import Calibration, Sample

__all__ = ["Compose", "empty_sample"]


class Compose(Transform):
    """Runs transforms one after another.

    Args:
        transforms: configs (`{type: ImageAug3D, ...}`) or ready transforms.
    """

    def __init__(self, transforms: Sequence[Mapping[str, Any] | Transform]) -> None:
        self.transforms = [
            t if isinstance(t, Transform) else TRANSFORMS.build(t, f"pipeline.{i}") for i, t in enumerate(transforms)
        ]

    def __call__(self, sample: Sample, context: Context) -> Sample | None:
        for transform in self.transforms:
            changed = transform(sample, context)
            if changed is None:
                return None
            sample = changed
        return sample

    def load(self, context: Context) -> Sample | None:
        """The sample of `context.record` from scratch, or None if a transform drops it."""
        return self(empty_sample(context.record), context)


def empty_sample(record: FrameRecord) -> Sample:
    """A sample that knows its token, its sensors' geometry (float32) and its paths, and has loaded nothing."""
    meta = {
        "timestamp": record.timestamp,
        "lidar_path": record.lidar.path,
        "image_paths": [camera.path for camera in record.cameras.values()],
        "cameras": list(record.cameras),
    }
    return Sample(token=record.token, calibration=_calibration(record), unlabelled=record.boxes is None, meta=meta)


def _calibration(record: FrameRecord) -> Calibration:
    cameras = list(record.cameras.values())
    intrinsics = torch.eye(4).repeat(len(cameras), 1, 1)
    for matrix, camera in zip(intrinsics, cameras, strict=True):
        matrix[:3, :3] = torch.as_tensor(camera.intrinsics)
    return Calibration(
        lidar2ego=_float(record.lidar2ego),
        ego2global=_float(record.ego2global),
        camera2lidar=_stack([c.sensor2lidar for c in cameras]),
        camera2ego=_stack([c.camera2ego for c in cameras]),
        intrinsics=intrinsics,
        image_aug=torch.eye(4).repeat(len(cameras), 1, 1),
        lidar_aug=torch.eye(4),
    )


def _float(matrix: np.ndarray) -> Tensor:
    return torch.as_tensor(matrix).float()


def _stack(matrices: list[np.ndarray]) -> Tensor:
    return _float(np.array(matrices, dtype=np.float64).reshape(-1, 4, 4))
