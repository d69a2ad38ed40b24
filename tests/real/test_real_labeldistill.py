"""The three stages of LabelDistill at full size, each from the one before it, on a real key frame without a past."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mmdet3d.config import Config, load_config
from mmdet3d.datasets import build_dataset
from mmdet3d.datasets.nuscenes.create import create_nuscenes
from mmdet3d.models import build_model
from mmdet3d.structures import Batch

pytestmark = pytest.mark.slow

FOLDER = "nuscenes/distill/labeldistill"
TOKEN = "ca9a282c9e77460f8360f564131a8af5"


@pytest.fixture(scope="module")
def info_file(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, out = shared / "data" / "nuscenes", tmp_path_factory.mktemp("infos")
    return create_nuscenes(root, out, "real", "v1.0-mini", workers=1, allow_missing=True, database=False)["train"]


@pytest.fixture
def stage(shared: Path, info_file: Path):
    def load(name: str, overrides: dict[str, Any]) -> tuple[Config, dict[str, Batch]]:
        root = shared / "data" / "nuscenes"
        cfg = load_config(f"{FOLDER}/{name}.yaml", {"dataset_root": f"{root}/", "precision": "fp32", **overrides})
        batches = {}
        for split in ("train", "val"):
            dataset = build_dataset({**cfg.data[split], "ann_file": str(info_file)}, test_mode=split == "val")
            batches[split] = Batch.collate([dataset[dataset.tokens.index(TOKEN)]])
        return cfg, batches

    return load


def step(model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """Loss and backward; every parameter that learns gets a finite gradient."""
    terms = model.train().loss(batch)
    total = sum(v for k, v in terms.items() if k.startswith("loss/"))
    assert total.isfinite()
    total.backward()
    learning = {k: p for k, p in model.named_parameters() if p.requires_grad}
    assert not [k for k, p in learning.items() if p.grad is None or not p.grad.isfinite().all()]
    return terms


def test_three_stages(stage, tmp_path: Path) -> None:
    torch.manual_seed(0)
    files = {name: str(tmp_path / f"{name}.safetensors") for name in ("teacher", "label_encoder")}

    cfg, batches = stage("teacher_centerpoint_voxel01", {})
    assert len(batches["train"].points[0]) > 20_000 and batches["train"].images is None
    teacher = build_model(cfg.model)
    step(teacher, batches["train"])
    head = teacher.eval().heads["object"]
    head.test_cfg = replace(head.test_cfg, score_threshold=0.0)
    with torch.no_grad():
        (found,) = teacher.predict(batches["val"])
    assert len(found) > 100 and found.boxes.tensor.isfinite().all()
    save_file(teacher.state_dict(), files["teacher"])

    detector = {"model.detector.checkpoint": files["teacher"], "model.detector.min_score": None}
    cfg, batches = stage("label_encoder", detector)
    assert batches["train"].points is None and batches["train"].images is None and len(batches["train"].boxes[0]) > 10
    encoder = build_model(cfg.model)
    encoder.init_weights()
    step(encoder, batches["train"])
    assert all(torch.equal(v, teacher.state_dict()[k]) for k, v in encoder.detector.state_dict().items())
    with torch.no_grad():
        (found,) = encoder.eval().predict(batches["val"])
    assert found.boxes.tensor.isfinite().all()
    save_file(encoder.state_dict(), files["label_encoder"])

    labels = {"model.teacher.checkpoint": files["label_encoder"], "model.teacher.min_score": None}
    cfg, batches = stage("r50_2key", labels)
    assert [past.tokens for past in batches["train"].history] == [[TOKEN], [TOKEN]]
    model = build_model(cfg.model)
    model.setup_training(lambda teacher: {"object/map": 1.0})
    before = {k: v.clone() for k, v in model.teacher.state_dict().items()}
    terms = step(model, batches["train"])
    assert {k.split("/")[2] for k in terms if k.startswith("loss/kd/")} == {"label", "lidar", "response"}
    assert "loss/depth" in terms and all(v.isfinite() for v in terms.values())
    assert all(torch.equal(v, before[k]) for k, v in model.teacher.state_dict().items())
    assert not any(k.startswith(("detector.", "label_encoder.")) for k in model.state_dict())
    head = model.eval().student.heads["object"]
    head.test_cfg = replace(head.test_cfg, score_threshold=0.0)
    with torch.no_grad():
        (with_labels,) = model.predict(batches["val"])
        (without,) = model.predict(batches["val"].without("boxes", "labels"))
    assert len(without) > 100 and torch.equal(with_labels.scores, without.scores)
    assert torch.equal(with_labels.boxes.tensor, without.boxes.tensor)
