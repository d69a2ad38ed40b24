"""The real nuScenes frame (six cameras, LiDAR, one radar): through distillers at full size, and learned by heart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmdet3d.config import Config, load_config
from mmdet3d.datasets import build_dataset
from mmdet3d.datasets.nuscenes.create import create_nuscenes
from mmdet3d.datasets.nuscenes.submission import evaluate_submission
from mmdet3d.engine.trainer import Trainer
from mmdet3d.models import build_model
from mmdet3d.structures import Batch

pytestmark = pytest.mark.slow

TOKEN = "ca9a282c9e77460f8360f564131a8af5"
CRKD = (
    "nuscenes/distill/feature_response_distill/"
    "feat_fused_da_lr_mean_c2c_scale_mask_relation_resp_kd_dynamic_class_loss_80_256"
)
# The detectors of tests/configs/test_real_size.py see with ResNet-50.
DISTILLERS = {"crkd-swint": f"{CRKD}.yaml", "simdistill-vitaev2": "nuscenes/distill/simdistill/vitaev2/convfuser.yaml"}


@pytest.fixture(scope="module")
def info_file(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The info file of mini_train, which here is that one frame."""
    out = tmp_path_factory.mktemp("infos")
    root = shared / "data" / "nuscenes"
    written = create_nuscenes(root, out, "real", "v1.0-mini", workers=1, allow_missing=True, database=False)
    return written["train"]


def real_config(shared: Path, info_file: Path, config: str, overrides: dict) -> Config:
    """`config` with the frame as its training and validation set."""
    cfg = load_config(config, {"dataset_root": f"{shared / 'data' / 'nuscenes'}/", **overrides})
    for split in ("train", "val"):
        block = cfg.data[split]
        block = block.get("dataset", block)
        cfg.data[split] = Config({**block, "ann_file": str(info_file)})
    return cfg


@pytest.mark.parametrize("name", DISTILLERS)
def test_distillation_at_full_size(name: str, shared: Path, info_file: Path, tmp_path: Path) -> None:
    """Published pipelines, random teacher: loss, backward, prediction; the prediction does without LiDAR."""
    torch.manual_seed(0)
    cfg = real_config(shared, info_file, DISTILLERS[name], {})
    train_batch = Batch.collate([build_dataset(cfg.data.train)[0]])
    test_batch = Batch.collate([build_dataset(cfg.data.val, test_mode=True)[0]])
    assert test_batch.metas[0]["timestamp"] and test_batch.tokens == [TOKEN]
    for role in ("teacher", "student"):
        cfg.model[role]["checkpoint"] = str(tmp_path / f"{role}.safetensors")
        detector = build_model(load_config(cfg.model[role]["config"]).model)
        save_file(detector.state_dict(), cfg.model[role]["checkpoint"])
    model = build_model(cfg.model)
    model.init_weights()
    model.setup_training(lambda teacher: {"object/map": 0.7})
    before = {k: v.clone() for k, v in model.teacher.state_dict().items()}
    terms = model.train().loss(train_batch)
    assert {k.split("/")[2] for k in terms if k.startswith("loss/kd/")} == set(cfg.model["losses"])
    total = sum(v for k, v in terms.items() if k.startswith("loss/"))
    assert total.isfinite()
    total.backward()
    assert not [k for k, p in model.named_parameters() if p.requires_grad and (p.grad is None)]
    assert all(torch.equal(v, before[k]) for k, v in model.teacher.state_dict().items())
    with torch.no_grad():
        (with_lidar,) = model.eval().predict(test_batch)
        (without,) = model.predict(test_batch.without("points", "boxes", "labels"))
    assert torch.equal(with_lidar.boxes.tensor, without.boxes.tensor)
    assert torch.equal(with_lidar.scores, without.scores)


def test_a_model_that_learned_the_frame_finds_its_cars(shared: Path, info_file: Path, tmp_path: Path) -> None:
    """A small LiDAR-camera model, fed the frame 150 times, then scored by the official evaluation."""
    cfg = real_config(
        shared,
        info_file,
        "synthetic/camera+lidar/demo.yaml",
        {
            "augment2d.resize": [[0.12, 0.12], [0.12, 0.12]],
            "augment3d": {"scale": [1.0, 1.0], "rotate": [0.0, 0.0], "translate": 0.0},
            "lidar_sweeps": 0,
            "max_epochs": 150,
            "evaluation": {"start": 150, "interval": 1, "save_best": None},
            "checkpoint_config": {"interval": 150},
            "data.samples_per_gpu": 1,
            "data.workers_per_gpu": 0,
        },
    )
    cfg.data.val.eval_set = "mini_train"
    torch.manual_seed(0)
    data = [build_dataset(cfg.data[split], test_mode=split == "val") for split in ("train", "val")]
    Trainer(build_model(cfg.model), *data, cfg, tmp_path).fit()
    submission = next(tmp_path.rglob("results_nusc.json"))
    assert list(json.loads(submission.read_text())["results"]) == [TOKEN]
    metrics = evaluate_submission(
        submission, shared / "data" / "nuscenes", "v1.0-mini", "mini_train", tmp_path / "again", tokens=[TOKEN]
    )
    assert metrics["object/car_ap_dist_2.0"] > 0.7
    assert metrics["object/car_trans_err"] < 0.6
