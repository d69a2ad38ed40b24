"""Images of earlier key frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from mmdet3d.datasets.records import Context, FrameRecord, Transform
from mmdet3d.datasets.transforms.compose import empty_sample
from mmdet3d.datasets.transforms.images import read_views
from mmdet3d.datasets.transforms.loading import need
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import Sample

__all__ = ["LoadHistoryImages"]

_MISSING = ("last_valid", "current")


@TRANSFORMS.register
class LoadHistoryImages(Transform):
    """Images and calibration of earlier key frames of the same scene, brought into the key frame by ego motion.

    A frame is missing where the scene or the data set begins after it, or where it lacks one of the cameras.

    Args:
        key_offsets: in key frames, e.g. [-2, -4] (1 s and 2 s ago in nuScenes); empty loads nothing.
        missing: what stands for a missing frame: `last_valid`, the nearest frame of the list that is there (the key
            frame if there is none), or `current`, the key frame.

    Raises:
        ValueError: an offset that does not look back, an unknown `missing`, a place in the pipeline before the images
            or behind their augmentation, or an image of another size than the key frame's.
    """

    def __init__(self, key_offsets: Sequence[int] = (), missing: str = "last_valid") -> None:
        if any(not isinstance(offset, int) or offset >= 0 for offset in key_offsets):
            raise ValueError(
                f"key_offsets of LoadHistoryImages must be negative whole numbers, got {list(key_offsets)}"
            )
        if missing not in _MISSING:
            raise ValueError(f"missing of LoadHistoryImages must be {' or '.join(_MISSING)}, got {missing!r}")
        self.key_offsets = tuple(key_offsets)
        self.missing = missing

    def __call__(self, sample: Sample, context: Context) -> Sample:
        if not self.key_offsets:
            return sample
        images = need(sample, "images", self, "LoadMultiViewImageFromFiles")
        image_aug = sample.calibration.image_aug
        if not torch.equal(image_aug, torch.eye(4).expand_as(image_aug)):
            raise ValueError("LoadHistoryImages loads raw images; put it before ImageAug3D in the pipeline")
        stand_in = Sample(token=sample.token, calibration=sample.calibration, images=images)
        sample.history = []
        for offset in self.key_offsets:
            record = context.earlier(-offset)
            if record is None or not set(context.record.cameras) <= set(record.cameras):
                sample.history.append(replace(stand_in))
                continue
            past = self._load(record, sample, context)
            sample.history.append(past)
            if self.missing == "last_valid":
                stand_in = past
        return sample

    def _load(self, record: FrameRecord, key: Sample, context: Context) -> Sample:
        moved = _seen_from(record, context.record)
        past = empty_sample(moved)
        images = read_views(moved, context)
        past.images = images
        own = need(key, "images", self, "LoadMultiViewImageFromFiles")
        for now, then, camera in zip(own, images, moved.cameras.values(), strict=True):
            if now.size != then.size:
                raise ValueError(
                    f"image file {camera.path} has {then.size[0]} x {then.size[1]} pixels, but that of the same camera "
                    f"in sample {key.token} {now.size[0]} x {now.size[1]}; frames of a history must agree"
                )
        past.calibration = replace(past.calibration, lidar_aug=key.calibration.lidar_aug)
        return past


def _seen_from(record: FrameRecord, key: FrameRecord) -> FrameRecord:
    """`record` with the cameras of `key`, in its order and in its LiDAR frame."""
    to_key = np.linalg.inv(key.ego2global @ key.lidar2ego) @ record.ego2global @ record.lidar2ego
    cameras = {
        channel: replace(record.cameras[channel], sensor2lidar=to_key @ record.cameras[channel].sensor2lidar)
        for channel in key.cameras
    }
    return replace(record, cameras=cameras, lidar2ego=key.lidar2ego, ego2global=key.ego2global)
