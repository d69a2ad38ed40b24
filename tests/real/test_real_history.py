"""The published camera students that look back, at full size on the real key frames, of which most lack their past."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmdet3d.config import Config, load_config
from mmdet3d.datasets import build_dataset
from mmdet3d.datasets.nuscenes.create import create_nuscenes
from mmdet3d.datasets.records import Context
from mmdet3d.datasets.transforms import Compose
from mmdet3d.models import build_model
from mmdet3d.structures import Batch

pytestmark = pytest.mark.slow

STUDENT = "nuscenes/det/centerhead/bevdepth/camera/256x704/resnet50"
# The second key frame of a scene; of its past there is the first one.
FIRST, SECOND = "3e8750f331d7499e9b5123e9eb70f2e2", "3950bd41f74548429c0f7700ff3d8269"
# The published offsets reach before the scene; one key frame back there is one, two back there is none.
CASES = {"2key": ([-1, -2], [FIRST, FIRST]), "4key": ([-2, -4, -6, -8], [SECOND] * 4)}


@pytest.fixture(scope="module")
def info_file(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, out = shared / "data" / "nuscenes", tmp_path_factory.mktemp("infos")
    return create_nuscenes(root, out, "real", "v1.0-mini", workers=1, allow_missing=True, database=False)["val"]


def read(name: str, shared: Path, info_file: Path) -> tuple[Config, dict[str, Batch]]:
    """The config of that student, and the second key frame by its pipelines of training and validation."""
    offsets, tokens = CASES[name]
    root = shared / "data" / "nuscenes"
    cfg = load_config(f"{STUDENT}/{name}.yaml", {"dataset_root": f"{root}/", "history.key_offsets": offsets})
    batches = {}
    for split in ("train", "val"):
        dataset = build_dataset({**cfg.data[split], "ann_file": str(info_file)})
        record = dataset._find(SECOND)
        # Its own scan is not among the real data; the sweep before it is.
        record = replace(record, lidar=record.sweeps[0], sweeps=record.sweeps[1:])
        context = Context(record, root, np.random.RandomState(0), classes=dataset.classes, find=dataset._find)
        batches[split] = Batch.collate([Compose(cfg.data[split].pipeline).load(context)])
    assert [past.tokens for past in batches["train"].history] == [[token] for token in tokens]
    return cfg, batches


def test_four_frames_are_looked_for(shared: Path, info_file: Path) -> None:
    torch.manual_seed(0)
    cfg, batches = read("4key", shared, info_file)
    model = build_model(cfg.model).eval()
    model.heads["object"].test_cfg = replace(model.heads["object"].test_cfg, score_threshold=0.0)
    with torch.no_grad():
        (found,) = model.predict(batches["val"])
    assert len(found) > 100 and found.boxes.tensor.isfinite().all()


def test_student_at_full_size(shared: Path, info_file: Path) -> None:
    """Published pipelines: loss, backward, prediction; LiDAR gives depth labels and nothing else."""
    torch.manual_seed(0)
    cfg, batches = read("2key", shared, info_file)
    batch = batches["train"]
    assert (batch.depths > 0).sum() > 3000 and len(batch.boxes[0]) > 10

    model = build_model(cfg.model).train()
    terms = model.loss(batch)
    assert {"loss/depth", "loss/object/heatmap/task0", "loss/object/bbox/task5"} <= set(terms)
    total = sum(v for k, v in terms.items() if k.startswith("loss/"))
    assert total.isfinite()
    total.backward()
    trained = {k: p for k, p in model.named_parameters() if p.requires_grad}
    assert not [k for k, p in trained.items() if p.grad is None or not p.grad.isfinite().all()]
    assert trained["encoders.camera.backbone.layer1.0.conv1.weight"].grad.abs().sum() > 0
    assert trained["decoder.backbone.conv1.weight"].grad.abs().sum() > 0

    head = model.eval().heads["object"]
    head.test_cfg = replace(head.test_cfg, score_threshold=0.0)
    with torch.no_grad():
        (with_lidar,) = model.predict(batches["val"])
        (without,) = model.predict(batches["val"].without("points", "boxes", "labels", "depths"))
    assert len(without) > 100 and without.boxes.tensor.isfinite().all()
    assert torch.equal(with_lidar.boxes.tensor, without.boxes.tensor)
    assert torch.equal(with_lidar.scores, without.scores)
