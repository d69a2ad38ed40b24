"""KITTI frames for pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from mmdet3d.datasets.kitti.files import KittiCalibration, read_scan
from mmdet3d.datasets.scene import Scene
from mmdet3d.structures import Calibration, Detections3D
from mmdet3d.structures.camera_boxes import CAMERA_TO_LEVEL

__all__ = ["kitti_scene"]

# (4, 4): x ahead, y left, z up to x right, y ahead, z up.
_LEVEL_TO_SCENE = torch.tensor([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
_MIRROR = torch.diag(torch.tensor([1.0, -1, 1, 1]))
_BEHIND = 4.0  # metres; the camera looks ahead


def kitti_scene(
    image: Image.Image,
    calibration: KittiCalibration,
    matrices: Calibration,
    truth: Detections3D | None,
    scan: Path,
    mirrored: bool,
) -> Scene:
    """A frame as its files have it, whatever augmentation did to the sample.

    Args:
        image: raw.
        calibration: raw.
        matrices: of the same frame, with `image_aug` the identity.
        truth: labelled objects in the level camera frame, or None.
        scan: file of LiDAR points; may not exist.
        mirrored: whether a detector saw the mirror image, so that its boxes are mirrored.
    """
    camera2scene = _LEVEL_TO_SCENE @ CAMERA_TO_LEVEL.float()
    clouds = {}
    if scan.is_file() and calibration.has_lidar:
        lidar2scene = camera2scene @ torch.from_numpy(calibration.lidar2rect).float()
        clouds["points"] = torch.from_numpy(read_scan(scan))[:, :3] @ lidar2scene[:3, :3].T + lidar2scene[:3, 3]
    return Scene(
        calibration=replace(matrices, camera2lidar=camera2scene[None], camera2ego=camera2scene[None]),
        images=[image],
        names=["image_2"],
        boxes=None if truth is None else truth.boxes.transform(_LEVEL_TO_SCENE),
        labels=None if truth is None else truth.labels,
        clouds=clouds,
        from_detections=_LEVEL_TO_SCENE @ _MIRROR if mirrored else _LEVEL_TO_SCENE,
        behind=_BEHIND,
    )
