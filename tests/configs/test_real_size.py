"""One training step and one prediction of detectors at the published size, on random data.

The students and teachers that distillers hold take theirs on the real frame, in tests/real.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.samples import random_sample
from mmdet3d.config import load_config
from mmdet3d.models import build_model
from mmdet3d.structures import Batch

pytestmark = pytest.mark.slow

LSSFPN = "nuscenes/det/centerhead/lssfpn"
DETECTORS = [
    f"{LSSFPN}/camera+lidar/resnet50/gatedfuser.yaml",
    f"{LSSFPN}/camera+radar/resnet50/dlss.yaml",
    f"{LSSFPN}/camera/256x704/resnet/bevdepth.yaml",
    f"{LSSFPN}/lidar/voxelnet_0p1.yaml",
    f"{LSSFPN}/lidar/pointpillars.yaml",
    "nuscenes/det/centerhead/secfpn/lidar/pointpillars.yaml",
    "nuscenes/det/transfusion/secfpn/lidar/pointpillars.yaml",
]


@pytest.fixture(scope="module")
def batch() -> Batch:
    """One sample of random values: 6 images, 30,000 LiDAR and 700 radar points, 30 boxes."""
    return Batch.collate([random_sample()])


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
