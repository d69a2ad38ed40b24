"""The teachers of all five systems: what is stored per sample is what a batch is answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

from mmdet3d.config import load_config
from mmdet3d.distill import LiveTeacher, StoredTeacher
from mmdet3d.distill.distiller import _listed
from mmdet3d.distill.teacher import build_detector
from mmdet3d.structures import Batch, Boxes3D, Calibration, ImageObjects, Sample

SYSTEMS = [
    "synthetic/crkd/small.yaml",
    "synthetic/simdistill/small.yaml",
    "synthetic/labeldistill/small.yaml",
    "kitti/synthetic/monoskd.yaml",
    "kitti/synthetic/monommkd.yaml",
]


def street(number: int, size: tuple[int, int]) -> Sample:
    """Two cameras, front and back, LiDAR, and three objects or one."""
    generator = torch.Generator().manual_seed(number)
    camera = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    intrinsics = torch.diag(torch.tensor([size[1] / 2, size[1] / 2, 1, 1]))
    intrinsics[:2, 2] = torch.tensor([size[1] / 2, size[0] / 2])
    both = torch.stack([camera, torch.diag(torch.tensor([-1.0, -1, 1, 1])) @ camera])
    eye = torch.eye(4)
    points = torch.rand(400, 5, generator=generator)
    points[:, :3] = (points[:, :3] - 0.5) * torch.tensor([70.0, 70, 4])
    boxes = torch.tensor([[9.0, 1, -1, 4.5, 1.9, 1.6, 0.2, 1, 0], [-12.0, 3, -1, 0.7, 0.7, 1.7, 0, 0, 0]])
    return Sample(
        str(number),
        Calibration(eye, eye, both, both, intrinsics.repeat(2, 1, 1), eye.repeat(2, 1, 1), eye),
        images=torch.randn(2, 3, *size, generator=generator),
        points=points,
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


@pytest.mark.parametrize("name", SYSTEMS)
def test_stored_answers_are_the_teachers(name: str, tmp_path: Path) -> None:
    cfg = load_config(name)
    config, checkpoint = str(cfg.model.teacher.config), tmp_path / "teacher.safetensors"
    torch.manual_seed(0)
    save_file(build_detector(config).state_dict(), checkpoint)
    taps = sorted({tap for loss in cfg.model.losses.values() if loss for tap in _listed(loss["teacher"])})
    size = tuple(load_config(config).image_size)
    samples = [(road if "kitti" in name else street)(k, size) for k in range(2)]
    batch, turned = Batch.collate(samples), Batch.collate(samples[::-1])

    live = LiveTeacher.load(config, checkpoint)
    written = StoredTeacher(config, checkpoint, tmp_path / "answers").extract(batch, taps)
    reader = StoredTeacher(config, checkpoint, tmp_path / "answers")
    assert taps and list(written) == taps
    torch.testing.assert_close(reader.extract(batch, taps), written, rtol=0, atol=0)
    for other in (batch, turned):
        expected = live.extract(other, taps)
        torch.testing.assert_close(reader.extract(other, taps), {t: expected[t] for t in taps}, rtol=2e-3, atol=1e-4)
    assert reader._live is None, "weights were loaded although everything is stored"


@pytest.mark.parametrize("name", SYSTEMS)
def test_folded_norms_change_no_answer(name: str) -> None:
    cfg = load_config(name)
    config = str(cfg.model.teacher.config)
    torch.manual_seed(0)
    teacher = LiveTeacher(build_detector(config))
    for norm in (m for m in teacher.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
        nn.init.normal_(norm.running_mean, std=0.1)
    weights = {key: value.clone() for key, value in teacher.model.state_dict().items()}
    taps = sorted({tap for loss in cfg.model.losses.values() if loss for tap in _listed(loss["teacher"])})
    size = tuple(load_config(config).image_size)
    first, second = (Batch.collate([(road if "kitti" in name else street)(k, size)]) for k in range(2))
    for batch in (first, second):
        with torch.no_grad():
            plain = teacher.model.extract(batch, taps)
        expected, found = _tensors({tap: plain[tap] for tap in taps}), _tensors(teacher.extract(batch, taps))
        assert expected
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max() if other.numel() else 0))
    (folded,) = teacher.folded.values()
    assert sum(isinstance(m, nn.Identity) for m in folded.modules()) > 10
    assert all(torch.equal(value, weights[key]) for key, value in teacher.model.state_dict().items())


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
