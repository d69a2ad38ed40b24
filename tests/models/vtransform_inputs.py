"""Published and tiny view transforms, and inputs for them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch, Calibration

TEACHER = {
    "type": "DepthLSSTransform",
    "in_channels": 256,
    "out_channels": 80,
    "image_size": [256, 704],
    "feature_size": [32, 88],
    "xbound": [-54.0, 54.0, 0.3],
    "ybound": [-54.0, 54.0, 0.3],
    "zbound": [-10.0, 10.0, 20.0],
    "dbound": [1.0, 60.0, 0.5],
    "downsample": 2,
}
STUDENT = TEACHER | {
    "type": "LSSTransform",
    "in_channels": 512,
    "xbound": [-54.0, 54.0, 0.6],
    "ybound": [-54.0, 54.0, 0.6],
    "dbound": [1.0, 60.0, 1.0],
    "downsample": 1,
}
TINY = {
    "in_channels": 6,
    "out_channels": 5,
    "image_size": [32, 64],
    "feature_size": [4, 8],
    "xbound": [-12.0, 12.0, 1.0],
    "ybound": [-12.0, 12.0, 1.0],
    "zbound": [-10.0, 10.0, 20.0],
    "dbound": [1.0, 13.0, 1.0],
}
RADAR = {"use_points": "radar", "depth_input": "one-hot", "height_expand": True, "add_depth_features": True}


def fixture_calibration(crkd_values: dict) -> Calibration:
    """One sample, one camera, with image and LiDAR augmentation."""
    m = {k: torch.tensor(v) for k, v in crkd_values["geometry inputs"].items()}
    eye = torch.eye(4)
    return Calibration(
        lidar2ego=eye[None],
        ego2global=eye[None],
        camera2lidar=m["camera2lidar"][None, None],
        camera2ego=eye[None, None],
        intrinsics=m["K"][None, None],
        image_aug=m["ida"][None, None],
        lidar_aug=m["bda"][None],
    )


def pose(yaw: float, translation: tuple[float, float, float]) -> Tensor:
    """A camera that looks along `yaw` on the ground plane: its z is forward, its y down."""
    c, s = np.cos(yaw), np.sin(yaw)
    matrix = torch.eye(4)
    matrix[:3, :3] = torch.tensor([[s, 0, c], [-c, 0, s], [0, -1, 0]])
    matrix[:3, 3] = torch.tensor(translation)
    return matrix


def tiny_calibration(samples: int = 2, cameras: int = 2) -> Calibration:
    k = torch.eye(4)
    k[:2, :3] = torch.tensor([[40.0, 0, 32], [0, 40, 16]])
    image_aug = torch.eye(4)
    image_aug[:2, :2] *= 0.9
    image_aug[:2, 3] = torch.tensor([3.0, -2.0])
    lidar_aug = torch.eye(4)
    lidar_aug[:3, :3] = 1.05 * torch.tensor([[0.995, 0.0998, 0], [-0.0998, 0.995, 0], [0, 0, 1.0]])
    lidar_aug[:3, 3] = torch.tensor([0.3, -0.2, 0.1])
    poses = torch.stack([pose(2.0 * i, (0.1, 0.2 * i, -0.3)) for i in range(cameras)])
    eye = torch.eye(4)
    return Calibration(
        lidar2ego=eye.expand(samples, 4, 4),
        ego2global=eye.expand(samples, 4, 4),
        camera2lidar=poses.expand(samples, -1, 4, 4),
        camera2ego=poses.expand(samples, -1, 4, 4),
        intrinsics=k.expand(samples, cameras, 4, 4),
        image_aug=image_aug.expand(samples, cameras, 4, 4),
        lidar_aug=lidar_aug.expand(samples, 4, 4),
    )


def tiny_batch() -> Batch:
    torch.manual_seed(0)
    span = torch.tensor([20.0, 20.0, 2.0])
    points = [torch.cat([(torch.rand(n, 3) - 0.5) * span, torch.rand(n, 2)], 1) for n in (300, 200)]
    radar = [torch.cat([(torch.rand(n, 3) - 0.5) * span, torch.rand(n, 42)], 1) for n in (30, 20)]
    depths = torch.rand(2, 2, 32, 64) * 14 * (torch.rand(2, 2, 32, 64) < 0.05)
    return Batch(["a", "b"], tiny_calibration(), clouds={"points": points, "radar": radar}, depths=depths)


def tiny_features() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 2, 6, 4, 8)


def tiny(kind: str, **changes: object) -> nn.Module:
    torch.manual_seed(2)
    return MODELS.build({"type": kind} | TINY | changes)


KINDS = {
    "LSSTransform": {},
    "ConvLSSTransform": {"compensation": {"heads": 2, "points": 3}},
    "DepthLSSTransform": {"downsample": 2},
    "AwareBEVDepth": {"mid_channels": 4},
    "AwareDBEVDepth": {"bevdepth_refine": False, **RADAR},
}
