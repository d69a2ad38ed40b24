"""A tiny BEVFusion over 64 x 64 cells of 0.8 m, and a batch for it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch

from mmdet3d.structures import Batch, Boxes3D, Calibration, Sample

RANGE = [-25.6, -25.6, -5.0, 25.6, 25.6, 3.0]
CELL = [0.8, 0.8, 8.0]
IMAGE = (32, 64)

CENTER_HEAD = {
    "type": "CenterHead",
    "in_channels": 8,
    "share_conv_channel": 8,
    "tasks": [["car"], ["truck", "construction_vehicle"], ["pedestrian"]],
    "train_cfg": {"point_cloud_range": RANGE, "voxel_size": [0.1, 0.1, 0.2], "out_size_factor": 8},
    "test_cfg": {
        "post_center_limit_range": [-30, -30, -10, 30, 30, 10],
        "max_per_img": 40,
        "score_threshold": 0.05,
        "post_max_size": 10,
    },
}
TRANSFUSION_HEAD = {
    "type": "TransFusionHead",
    "in_channels": 8,
    "hidden_channel": 8,
    "num_heads": 2,
    "ffn_channel": 8,
    "num_proposals": 12,
    "num_classes": 4,
    "point_classes": [3],
    "train_cfg": CENTER_HEAD["train_cfg"],
    "test_cfg": {"post_center_limit_range": [-30, -30, -10, 30, 30, 10]},
}
CAMERA = {
    "backbone": {"type": "ResNet", "depth": 18, "base_channels": 4, "num_stages": 4, "out_indices": [1, 2, 3]},
    "neck": {"type": "SECONDFPN", "in_channels": [8, 16, 32], "out_channels": [4] * 3, "upsample_strides": [1, 2, 4]},
    "vtransform": {
        "type": "LSSTransform",
        "in_channels": 12,
        "out_channels": 6,
        "image_size": IMAGE,
        "feature_size": (4, 8),
        "xbound": [-25.6, 25.6, 0.8],
        "ybound": [-25.6, 25.6, 0.8],
        "zbound": [-10, 10, 20],
        "dbound": [1, 25, 2],
    },
}


def pillars(feature_net: str, channels: int) -> dict[str, Any]:
    return {
        "voxelize_reduce": False,
        "voxelize": {"max_num_points": 5, "point_cloud_range": RANGE, "voxel_size": CELL, "max_voxels": [500, 500]},
        "backbone": {
            "type": "RadarEncoder" if feature_net == "RadarFeatureNet" else "PointPillarsEncoder",
            "pts_voxel_encoder": {
                "type": feature_net,
                "in_channels": channels,
                "feat_channels": [7],
                "voxel_size": CELL,
                "point_cloud_range": RANGE,
            },
            "pts_middle_encoder": {"type": "PointPillarsScatter", "in_channels": 7, "output_shape": [64, 64]},
        },
    }


ENCODERS = {
    "camera": CAMERA,
    "lidar": pillars("PillarFeatureNet", 5),
    "radar": pillars("RadarFeatureNet", 45),
}
CHANNELS = {"camera": 6, "lidar": 7, "radar": 7}


def model_config(*sensors: str, fuser: str | None = "ConvFuser", head: dict[str, Any] = CENTER_HEAD) -> dict[str, Any]:
    """Config of a BEVFusion with those sensors; the others are null."""
    channels = [CHANNELS[s] for s in sensors]
    bev = 8 if fuser else channels[0]
    return copy.deepcopy(
        {
            "type": "BEVFusion",
            "encoders": {name: cfg if name in sensors else None for name, cfg in ENCODERS.items()},
            "fuser": {"type": fuser, "in_channels": channels, "out_channels": 8} if fuser else None,
            "decoder": {
                "backbone": {"type": "GeneralizedResNet", "in_channels": bev, "blocks": [[1, 8, 2], [1, 12, 2]]},
                "neck": {"type": "LSSFPN", "in_indices": [-1, 0], "in_channels": [12, 8], "out_channels": 8}
                | {"scale_factor": 2},
            },
            "heads": {"map": None, "object": head},
        }
    )


def make_batch(size: int = 2, seed: int = 0) -> Batch:
    """All sensors and two boxes per sample, except for the last sample, which has none."""
    generator = torch.Generator().manual_seed(seed)
    return Batch.collate([_sample(i, i == size - 1, generator) for i in range(size)])


def look_back(batch: Batch, history: int, seed: int = 0) -> Batch:
    """The batch with earlier frames: other images, and cameras that stood 1 m, 2 m, ... further back."""
    generator = torch.Generator().manual_seed(100 + seed)
    batch.history = []
    for k in range(1, history + 1):
        camera2lidar = batch.calibration.camera2lidar.clone()
        camera2lidar[..., 1, 3] -= k
        calibration = replace(batch.calibration, camera2lidar=camera2lidar)
        images = torch.randn(batch.images.shape, generator=generator)
        batch.history.append(Batch(batch.tokens, calibration, images=images))
    return batch


def _sample(index: int, empty: bool, generator: torch.Generator) -> Sample:
    def scattered(count: int, columns: int) -> torch.Tensor:
        points = torch.rand(count, columns, generator=generator)
        points[:, :3] = (points[:, :3] - 0.5) * torch.tensor([50.0, 50.0, 7.0])
        return points

    boxes = torch.tensor([[5.0, -3, 0, 4, 2, 1.5, 0.3, 1, 0], [-8.0, 12, 0, 0.7, 0.7, 1.7, 1.0, 0, 0]])
    return Sample(
        token=f"sample{index}",
        calibration=_calibration(),
        images=torch.randn(2, 3, *IMAGE, generator=generator),
        clouds={"points": scattered(200, 5), "radar": scattered(40, 45)},
        boxes=Boxes3D.empty() if empty else Boxes3D(boxes),
        labels=torch.tensor([], dtype=torch.int64) if empty else torch.tensor([0, 3]),
        depths=torch.rand(2, *IMAGE, generator=generator) * 20 + 2,
    )


def _calibration() -> Calibration:
    """Two cameras, one looking along +y and one along -y."""
    forward = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    backward = torch.tensor([[-1.0, 0, 0, 0], [0, 0, -1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    camera = torch.stack([forward, backward])
    intrinsics = torch.eye(4)
    intrinsics[0, 0] = intrinsics[1, 1] = 40
    intrinsics[0, 2], intrinsics[1, 2] = 32, 16
    eye = torch.eye(4)
    return Calibration(
        lidar2ego=eye,
        ego2global=eye,
        camera2lidar=camera,
        camera2ego=camera,
        intrinsics=intrinsics.repeat(2, 1, 1),
        image_aug=eye.repeat(2, 1, 1),
        lidar_aug=eye,
    )
