"""MonoMMKD learns: eight frames by heart at small size, and one step on a real frame at full size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmdet3d.config import load_config
from mmdet3d.datasets.kitti.dataset import KittiDataset
from mmdet3d.distill import Distiller
from mmdet3d.models import build_model
from mmdet3d.structures import Batch

pytestmark = pytest.mark.slow


def distiller_of(folder: Path, config: str, words: dict[str, object]) -> Distiller:
    """The config's distiller with a teacher and a student that were never trained."""
    torch.manual_seed(0)
    names = load_config(config)
    paths = {}
    for side in ("teacher", "student"):
        source = names[f"{side}_config"]
        paths[f"model.{side}.checkpoint"] = str(folder / f"{side}.safetensors")
        save_file(build_model(load_config(source).model).state_dict(), paths[f"model.{side}.checkpoint"])
    distiller = build_model(load_config(config, paths | words).model)
    distiller.init_weights()
    distiller.setup_training(lambda model: {})
    distiller.train()
    distiller.start_epoch(0)
    return distiller


def total(entries: dict[str, torch.Tensor], prefix: str = "loss/") -> torch.Tensor:
    return sum(v for k, v in entries.items() if k.startswith(prefix))


def test_eight_frames_by_heart(world, tmp_path):
    dataset = KittiDataset(str(world), "trainval", image_size=(96, 320))
    batch = Batch.collate([dataset[k] for k in range(8)])
    # A weight of 10 saves steps.
    distiller = distiller_of(tmp_path, "configs/kitti/synthetic/monommkd.yaml", {"model.losses.mimic.weight": 10.0})
    optimizer = torch.optim.Adam(distiller.parameters(), 6e-3)
    history = []
    for _ in range(400):
        entries = distiller.loss(batch)
        history.append({k: v.item() for k, v in entries.items()})
        optimizer.zero_grad()
        total(entries).backward()
        optimizer.step()
        if history[-1]["stats/kd/mimic/accuracy"] > 0.93:
            break
    first, last = history[0], history[-1]
    assert last["stats/kd/mimic/accuracy"] > 0.9 > first["stats/kd/mimic/accuracy"]
    assert total(last, "loss/object/") < 0.5 * total(first, "loss/object/")
    assert total(last, "loss/kd/mimic/") < 0.2 * total(first, "loss/kd/mimic/")
    # The branch grows sure of itself, so that fewer cells count.
    assert last["stats/kd/dual_kl/uncertainty"] < 0.5 * first["stats/kd/dual_kl/uncertainty"]


def test_a_real_frame_at_full_size(real, tmp_path):
    dataset = KittiDataset(str(real), "train", writelist=["Car"], augment={}, ids=["000007"])
    batch = Batch.collate([dataset[0]])
    assert batch.images.shape == (1, 1, 3, 384, 1280) and len(batch.objects[0]) > 0
    distiller = distiller_of(tmp_path, "configs/kitti/monommkd.yaml", {"model.losses.responses": "${head_responses}"})
    bins = distiller.student.extract(batch, ["depth.bins"])["depth.bins"]
    known = bins[bins >= 0]
    assert bins.shape == (1, 96, 320) and len(known) > 0.5 * bins.numel()
    assert len(known.unique()) > 60
    # Rows further down the image show nearer road.
    rows = [bins[0, row][bins[0, row] >= 0].float().median() for row in (50, 65, 80, 94)]
    assert rows == sorted(rows, reverse=True) and rows[0] > rows[-1]
    entries = distiller.loss(batch)
    assert all(v.isfinite() for v in entries.values())
    assert all(entries[f"loss/kd/{name}"] > 0 for name in ("mimic/depth", "dual_kl/stride_4", "responses/depth"))
    total(entries).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in distiller.parameters() if p.requires_grad)
    with torch.no_grad():
        assert len(distiller.eval().predict(batch.without("objects", "depths"))) == 1
