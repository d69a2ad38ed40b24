"""One training step and one prediction of every detector family at the published size, on random data.

The distillers take a step on the real frame, in tests/real.
"""

from __future__ import annotations

import math

import pytest
import torch

from mmdet3d.config import load_config
from mmdet3d.models import build_model
from mmdet3d.structures import Batch, Boxes3D, Calibration, Sample

pytestmark = pytest.mark.slow

LSSFPN = "nuscenes/det/centerhead/lssfpn"
DETECTORS = [
    f"{LSSFPN}/camera+lidar/swint_v0p075/gatedfuser.yaml",
    f"{LSSFPN}/camera+lidar/resnet50/gatedfuser.yaml",
    f"{LSSFPN}/camera+radar/swint/default.yaml",
    f"{LSSFPN}/camera+radar/resnet50/default.yaml",
    f"{LSSFPN}/camera+radar/resnet50/dlss.yaml",
    f"{LSSFPN}/camera/256x704/resnet/bevdepth.yaml",
    f"{LSSFPN}/lidar/voxelnet_0p1.yaml",
    f"{LSSFPN}/lidar/pointpillars.yaml",
    "nuscenes/det/centerhead/secfpn/lidar/pointpillars.yaml",
    "nuscenes/det/transfusion/secfpn/lidar/pointpillars.yaml",
]


def ring_of_cameras() -> tuple[torch.Tensor, torch.Tensor]:
    """camera2lidar and intrinsics (6, 4, 4) of cameras that look outward every 60 degrees."""
    poses, intrinsics = [], []
    for k in range(6):
        a = math.pi / 2 + k * math.pi / 3
        pose = torch.eye(4)
        pose[:3, :3] = torch.tensor(
            [[math.sin(a), 0.0, math.cos(a)], [-math.cos(a), 0.0, math.sin(a)], [0.0, -1.0, 0.0]]
        )
        pose[2, 3] = -0.3
        poses.append(pose)
        matrix = torch.eye(4)
        matrix[0, 0] = matrix[1, 1] = 1266.0
        matrix[0, 2], matrix[1, 2] = 816.0, 491.0
        intrinsics.append(matrix)
    return torch.stack(poses), torch.stack(intrinsics)


@pytest.fixture(scope="module")
def batch() -> Batch:
    """One sample of random values: 6 images, 30,000 LiDAR and 700 radar points, 30 boxes."""
    generator = torch.Generator().manual_seed(0)

    def spread(count: int, width: int) -> torch.Tensor:
        values = torch.rand(count, width, generator=generator)
        values[:, :2] = (values[:, :2] - 0.5) * 100
        values[:, 2] = values[:, 2] * 4 - 3
        return values

    boxes = torch.cat([spread(30, 3), torch.rand(30, 6, generator=generator)], dim=1)
    boxes[:, 3:6] = boxes[:, 3:6] * 3 + 1
    boxes[:, 6] = boxes[:, 6] * 6.2 - 3.1
    camera2lidar, intrinsics = ring_of_cameras()
    image_aug = torch.diag(torch.tensor([0.48, 0.48, 1.0, 1.0])).repeat(6, 1, 1)
    image_aug[:, 0, 3], image_aug[:, 1, 3] = -32.0, -176.0
    depths = torch.rand(6, 256, 704, generator=generator) * 58 + 1
    sample = Sample(
        token="random",
        calibration=Calibration(
            torch.eye(4), torch.eye(4), camera2lidar, camera2lidar.clone(), intrinsics, image_aug, torch.eye(4)
        ),
        images=torch.randn(6, 3, 256, 704, generator=generator),
        points=spread(30_000, 5),
        radar=spread(700, 45),
        boxes=Boxes3D(boxes),
        labels=torch.randint(0, 10, (30,), generator=generator),
        depths=depths * (torch.rand(6, 256, 704, generator=generator) < 0.02),
    )
    return Batch.collate([sample])


def step(model: torch.nn.Module, batch: Batch) -> dict[str, float]:
    terms = model.train().loss(batch)
    total = sum(v for k, v in terms.items() if k.startswith("loss/"))
    assert total.isfinite()
    total.backward()
    without = [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, f"no gradient reaches {without[:5]}"
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    return {k: v.item() for k, v in terms.items()}


@torch.no_grad()
def check_predictions(model: torch.nn.Module, batch: Batch) -> None:
    (detections,) = model.eval().predict(batch.without("boxes", "labels", "depths"))
    assert len(detections) == len(detections.scores) == len(detections.labels)
    assert detections.boxes.tensor.isfinite().all()
    assert len(detections) == 0 or 0 <= detections.labels.min() <= detections.labels.max() < 10


@pytest.mark.parametrize("config", DETECTORS, ids=str)
def test_detector(config, batch):
    torch.manual_seed(0)
    model = build_model(load_config(config).model)
    terms = step(model, batch)
    assert ("loss/depth" in terms) == (config.endswith(("bevdepth.yaml", "dlss.yaml")))
    check_predictions(model, batch)
