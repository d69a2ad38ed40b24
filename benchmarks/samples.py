"""Inputs of training steps at real size: a frame of a nuScenes folder, or random values of the same shapes."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmdet3d.config import Config, load_config
from mmdet3d.datasets import build_dataset
from mmdet3d.datasets.nuscenes.create import create_nuscenes
from mmdet3d.structures import Boxes3D, Calibration, ImageObjects, Sample, limit_period
from mmdet3d.structures.camera_boxes import CAMERA_TO_LEVEL

__all__ = ["random_image_sample", "random_sample", "real_sample"]


def random_sample(
    image_size: Sequence[int] = (256, 704), points: int = 30_000, radar: int = 700, boxes: int = 30, history: int = 0
) -> Sample:
    """Six images (height, width) with sparse depth, LiDAR and radar points and boxes; all random, with a fixed seed.

    `history` earlier frames have images of their own and this frame's calibration.
    """
    generator = torch.Generator().manual_seed(0)

    def spread(count: int, width: int) -> Tensor:
        values = torch.rand(count, width, generator=generator)
        values[:, :2] = (values[:, :2] - 0.5) * 100
        values[:, 2] = values[:, 2] * 4 - 3
        return values

    found = torch.cat([spread(boxes, 3), torch.rand(boxes, 6, generator=generator)], dim=1)
    found[:, 3:6] = found[:, 3:6] * 3 + 1
    found[:, 6] = found[:, 6] * 6.2 - 3.1
    camera2lidar, intrinsics = _ring_of_cameras()
    height, width = image_size
    scale = 0.48 * width / 704
    image_aug = torch.diag(torch.tensor([scale, scale, 1.0, 1.0])).repeat(6, 1, 1)
    image_aug[:, 0, 3], image_aug[:, 1, 3] = (width - 1600 * scale) / 2, height - 900 * scale
    depths = torch.rand(6, height, width, generator=generator) * 58 + 1
    still = torch.eye(4)
    calibration = Calibration(still, still, camera2lidar, camera2lidar.clone(), intrinsics, image_aug, still)
    past = [
        Sample(token="random", calibration=calibration, images=torch.randn(6, 3, height, width, generator=generator))
        for _ in range(history)
    ]
    return Sample(
        token="random",
        calibration=calibration,
        images=torch.randn(6, 3, height, width, generator=generator),
        clouds={"points": spread(points, 5), "radar": spread(radar, 45)},
        boxes=Boxes3D(found),
        labels=torch.randint(0, 10, (boxes,), generator=generator),
        depths=depths * (torch.rand(6, height, width, generator=generator) < 0.02),
        history=past or None,
    )


def random_image_sample(image_size: Sequence[int] = (384, 1280), objects: int = 8) -> Sample:
    """A KITTI image (height, width) of noise with a dense depth map and cars on the road; all with a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    raw = (1242, 375)
    intrinsics = torch.tensor([[721.5, 0.0, 609.6, 44.9], [0.0, 721.5, 172.9, 0.2], [0.0, 0.0, 1.0, 0.0], [0, 0, 0, 1]])
    height, width = image_size
    zoom, aug = width / raw[0], torch.eye(4)
    aug[0, 0] = aug[1, 1] = zoom
    aug[1, 3] = (height - zoom * raw[1]) / 2
    z = torch.rand(objects, generator=generator) * 35 + 10
    x = (torch.rand(objects, generator=generator) - 0.5) * z * 0.8
    centers = torch.stack([x, torch.full_like(x, 1.0), z], dim=1)
    middle = centers @ intrinsics[:2, :3].T / z[:, None]
    half = 721.5 / z[:, None] * torch.tensor([1.5, 0.8])
    yaws = torch.rand(objects, generator=generator) * 6.2 - 3.1
    found = ImageObjects(
        labels=torch.ones(objects, dtype=torch.int64),
        boxes2d=torch.cat([middle - half, middle + half], dim=1),
        sizes=torch.tensor([1.5, 1.6, 3.9]).repeat(objects, 1),
        centers=centers,
        yaws=yaws,
        alphas=limit_period(yaws - torch.atan2(x, z)),
        regressed=torch.ones(objects, dtype=torch.bool),
    )
    camera, still = CAMERA_TO_LEVEL.float()[None], torch.eye(4)
    return Sample(
        token="random",
        calibration=Calibration(still, still, camera, camera.clone(), intrinsics[None], aug[None], still),
        images=torch.randn(1, 3, height, width, generator=generator),
        depths=torch.rand(1, height, width, generator=generator) * 60 + 3,
        objects=found,
        meta={"image_size": raw, "crop_scale": 1.0},
    )


def real_sample(config: str, root: Path, runs: int, split: str = "train") -> tuple[Sample, list[float]]:
    """The first training sample of a nuScenes mini folder through a config's own pipeline, and the seconds it took.

    Args:
        config: whose data block is used.
        root: folder with v1.0-mini and samples.
        runs: how often it is loaded.
        split: whose pipeline: `train` augments, `val` does not.
    """
    with tempfile.TemporaryDirectory() as out:
        infos = create_nuscenes(root, Path(out), "bench", "v1.0-mini", workers=1, allow_missing=True, database=False)
        cfg = load_config(config, {"dataset_root": f"{root}/"})
        block = cfg.data[split]
        block = Config({**block.get("dataset", block), "ann_file": str(infos["train"])})
        dataset = build_dataset(block, test_mode=split == "val")
        seconds = []
        for _ in range(runs + 1):
            start = time.perf_counter()
            sample = dataset[0]
            seconds.append(time.perf_counter() - start)
    return sample, seconds[1:]


def _ring_of_cameras() -> tuple[Tensor, Tensor]:
    """camera2lidar and intrinsics (6, 4, 4) of cameras that look outward every 60 degrees."""
    poses = torch.eye(4).repeat(6, 1, 1)
    for pose, k in zip(poses, range(6), strict=True):
        a = math.pi / 2 + k * math.pi / 3
        right, forward = [math.sin(a), -math.cos(a), 0.0], [math.cos(a), math.sin(a), 0.0]
        pose[:3, :3] = torch.tensor([right, [0.0, 0.0, -1.0], forward]).T
        pose[2, 3] = -0.3
    intrinsics = torch.eye(4).repeat(6, 1, 1)
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = 1266.0
    intrinsics[:, 0, 2], intrinsics[:, 1, 2] = 816.0, 491.0
    return poses, intrinsics
