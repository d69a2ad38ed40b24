"""Real frames at published sizes: ONNX Runtime answers as PyTorch before decoding, and finds as many boxes after."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmdet3d.config import Config, load_config
from mmdet3d.datasets import build_dataset
from mmdet3d.datasets.nuscenes.create import create_nuscenes
from mmdet3d.engine.export import Facts, export_detector, open_exported
from mmdet3d.models import build_model
from mmdet3d.structures import Batch

pytestmark = pytest.mark.slow
pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
pytest.importorskip("onnxscript", reason="the extra `export` is not installed")

NUSCENES = {
    "camera": "nuscenes/det/centerhead/lssfpn/camera/256x704/swint/default.yaml",
    "camera-radar": "nuscenes/det/centerhead/lssfpn/camera+radar/resnet50/default.yaml",
}


def check(cfg: Config, block: Config, path: Path, least: float) -> None:
    torch.manual_seed(0)
    batch = Batch.collate([build_dataset(block, test_mode=True)[0]])
    model = build_model(cfg.model)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():  # the statistics of the frame, without which random features grow beyond all measure
        model.train().extract(batch, model.predict_taps)
    model.eval()
    if hasattr(model, "score_threshold"):
        model.score_threshold = between_peaks(model, batch)
    facts = Facts(("car",), tuple(model.inputs), {}, None, "none", "", "0")
    differences = export_detector(model, batch, path, facts)
    assert max(differences.values()) < 1e-4, differences
    exported = open_exported(path)
    outputs = exported.run(exported.interface.prepare(batch))
    assert max(v.abs().max().item() for v in outputs.values() if v.is_floating_point()) > least
    assert len(exported.predict(batch)[0]) == len(model.predict(batch)[0])


def between_peaks(model: torch.nn.Module, batch: Batch) -> float:
    """A height that no peak comes near: which one of two equal ones counts would be chance."""
    with torch.no_grad():
        heights = model.extract(batch, model.predict_taps)["heads.candidates"]["scores"][3:30]
    gap = (heights[:-1] - heights[1:]).argmax()
    return heights[gap : gap + 2].mean().item()


@pytest.mark.parametrize("name", NUSCENES)
def test_nuscenes(name: str, shared: Path, tmp_path: Path) -> None:
    root = shared / "data" / "nuscenes"
    infos = create_nuscenes(root, tmp_path, "real", "v1.0-mini", workers=1, allow_missing=True, database=False)
    cfg = load_config(NUSCENES[name], {"dataset_root": f"{root}/"})
    check(cfg, Config({**cfg.data["val"], "ann_file": str(infos["train"])}), tmp_path / "model.onnx", least=1.0)


def test_kitti(shared: Path, tmp_path: Path) -> None:
    frame = {"data.val.ids": ["000007"], "data.val.split": "train"}
    cfg = load_config(
        "kitti/rgb_baseline.yaml",
        {"dataset_root": f"{shared}/data/kitti/", "imagenet_weights": "absent", **frame},
    )
    check(cfg, cfg.data["val"], tmp_path / "model.onnx", least=1.0)
