"""Inputs that several tests share."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from mmdet3d.models.heads.centerhead import CenterHead
from mmdet3d.models.heads.config import CenterHeadTesting, HeadTraining
from mmdet3d.structures import Batch, BEVGrid, Boxes3D, Calibration

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
