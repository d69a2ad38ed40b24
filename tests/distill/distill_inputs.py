"""Inputs that several tests share."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from mmdet3d.models.heads.centerhead import CenterHead
from mmdet3d.models.heads.config import CenterHeadTesting, HeadTraining
from mmdet3d.structures import Batch, BEVGrid, Boxes3D, Calibration, ImageObjects, Sample

GRID = BEVGrid((-54.0, -54.0), (0.6, 0.6), (180, 180))


def wave(shape: tuple[int, ...], a: float, b: float, scale: float = 1.0) -> Tensor:
    """The deterministic tensor of the conformance values: scale * sin(a k + b)."""
    k = np.arange(np.prod(shape), dtype=np.float64)
    return torch.from_numpy((scale * np.sin(a * k + b)).astype(np.float32)).reshape(shape)


def wave_predictions(a: float) -> list[dict[str, Tensor]]:
    """The deterministic head output of the conformance values."""
    tasks = []
    for t, classes in enumerate((1, 2, 2, 1, 2, 2)):
        channels = {"reg": (2, 0.11), "height": (1, 0.13), "dim": (3, 0.17), "rot": (2, 0.19), "vel": (2, 0.23)}
        task = {name: wave((1, c, 180, 180), b + a, t) for name, (c, b) in channels.items()}
        task["heatmap"] = wave((1, classes, 180, 180), 0.29 + a, t, scale=2) - 2
        tasks.append(task)
    return tasks


def identity_calibration(batch_size: int, cameras: int = 1) -> Calibration:
    eye, eyes = torch.eye(4).expand(batch_size, 4, 4), torch.eye(4).expand(batch_size, cameras, 4, 4)
    return Calibration(eye, eye, eyes, eyes, eyes, eyes, eye)


def batch_of(boxes: list[Boxes3D], **fields: object) -> Batch:
    return Batch(
        tokens=[str(i) for i in range(len(boxes))],
        calibration=identity_calibration(len(boxes)),
        boxes=boxes,
        **fields,
    )


def detector_on(grid: BEVGrid) -> SimpleNamespace:
    """The part of a detector that a loss binds to."""
    return SimpleNamespace(grid=grid)


def center_head(tasks=(("car",), ("truck", "bus")), **arguments: object) -> CenterHead:
    area = [-4.0, -4.0, -5.0, 4.0, 4.0, 3.0]
    return CenterHead(
        in_channels=4,
        share_conv_channel=4,
        tasks=tasks,
        train_cfg=HeadTraining(area, [0.125, 0.125, 8], 8, code_weights=[1.0] * 8 + [0.5, 0.5]),
        test_cfg=CenterHeadTesting(area),
        **arguments,
    )


def street(number: int, size: tuple[int, int]) -> Sample:
    """Two cameras, front and back, LiDAR, radar that echoes a tenth of its points, and two objects or one."""
    generator = torch.Generator().manual_seed(number)
    camera = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    intrinsics = torch.diag(torch.tensor([size[1] / 2, size[1] / 2, 1, 1]))
    intrinsics[:2, 2] = torch.tensor([size[1] / 2, size[0] / 2])
    both = torch.stack([camera, torch.diag(torch.tensor([-1.0, -1, 1, 1])) @ camera])
    eye = torch.eye(4)
    points = torch.rand(400, 5, generator=generator)
    points[:, :3] = (points[:, :3] - 0.5) * torch.tensor([70.0, 70, 4])
    radar = torch.cat([points[:40, :3], torch.rand(40, 42, generator=generator)], dim=1)
    boxes = torch.tensor([[9.0, 1, -1, 4.5, 1.9, 1.6, 0.2, 1, 0], [-12.0, 3, -1, 0.7, 0.7, 1.7, 0, 0, 0]])
    return Sample(
        str(number),
        Calibration(eye, eye, both, both, intrinsics.repeat(2, 1, 1), eye.repeat(2, 1, 1), eye),
        images=torch.randn(2, 3, *size, generator=generator),
        clouds={"points": points, "radar": radar},
        boxes=Boxes3D(boxes[: 2 - number]),
        labels=torch.tensor([0, 8])[: 2 - number],
        view=f"data/{number}.{number}.0",
    )


def road(number: int, size: tuple[int, int]) -> Sample:
    """One camera, a depth map, and two objects or one."""
    generator = torch.Generator().manual_seed(number)
    count, eye = 2 - number, torch.eye(4)
    lidar = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])[None]
    intrinsics = torch.diag(torch.tensor([720.0, 720, 1, 1]))
    intrinsics[:2, 2] = torch.tensor([610.0, 173])
    scaled = torch.diag(torch.tensor([size[1] / 1242, size[0] / 375, 1, 1]))
    center = torch.tensor([[-2.0, 1, 15], [3.0, 1, 25]])
    middle = center[:, :2] / center[:, 2:] * 720 + torch.tensor([610.0, 173])
    cars = {
        "labels": torch.tensor([1, 0]),
        "boxes2d": torch.cat([middle - 30, middle + 30], 1),
        "sizes": torch.tensor([[1.5, 1.6, 3.9], [1.8, 0.7, 0.8]]),
        "centers": center,
        "yaws": torch.tensor([0.3, -1.2]),
        "alphas": torch.tensor([0.4, -1.3]),
        "regressed": torch.tensor([True, True]),
    }
    return Sample(
        str(number),
        Calibration(eye, eye, lidar, lidar, intrinsics[None], scaled[None], eye),
        images=torch.randn(1, 3, *size, generator=generator),
        depths=40 * torch.rand(1, *size, generator=generator),
        objects=ImageObjects(**{name: value[:count] for name, value in cars.items()}),
        meta={"image_size": (1242, 375), "crop_scale": 1.0},
        view=f"data/{number}.{number}.0",
    )
