"""Answers stored ahead serve the trainings after, whatever their seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from kitti_world import NARROW
from safetensors.torch import save_file

from mmdet3d.config import Config, load_config
from mmdet3d.distill import DistillLoss, teacher
from mmdet3d.engine.answers import store_answers
from mmdet3d.engine.jobs import train
from mmdet3d.models import build_model
from mmdet3d.registry import MODELS

DISTILLATION = "configs/kitti/synthetic/monoskd.yaml"
SIZE = NARROW | {"image_size": [32, 96]}


@pytest.fixture
def configured(world: Path, tmp_path: Path):
    """The distillation with narrow models that were never trained, and overrides."""
    paths: dict[str, object] = {}
    for side, name in (("teacher", "depth_teacher"), ("student", "rgb_baseline")):
        cfg = load_config(f"configs/kitti/synthetic/{name}.yaml", SIZE)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(cfg.to_dict()))
        torch.manual_seed(0)
        save_file(build_model(cfg.model).state_dict(), tmp_path / f"{side}.safetensors")
        paths |= {f"model.{side}.config": str(tmp_path / f"{name}.yaml")}
        paths |= {f"model.{side}.checkpoint": str(tmp_path / f"{side}.safetensors")}
    loading = {"data.workers_per_gpu": 0, "data.samples_per_gpu": 4, "dataset_root": f"{world}/", "data.val": None}
    answers = {"model.teacher.answers": str(tmp_path / "answers"), "max_epochs": 2, "views": 2}

    def configure(**changes: object) -> Config:
        return load_config(DISTILLATION, SIZE | loading | paths | answers | changes)

    return configure


def test_answers_ahead_serve_trainings_of_every_seed(configured, tmp_path: Path, monkeypatch) -> None:
    folder = store_answers(configured())[0]
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    frames = (Path(configured().dataset_root) / "ImageSets" / "train.txt").read_text().split()
    assert {path.name for path in files} == {
        f"{token}.{place}.{view}.safetensors" for place, token in enumerate(frames) for view in range(2)
    }
    monkeypatch.setattr(teacher, "load_checkpoint", lambda *_: pytest.fail("the teacher's weights were loaded"))
    store_answers(configured())
    for seed in (0, 1):
        train(DISTILLATION, configured(seed=seed), tmp_path / f"run{seed}")
    assert files == {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


def stored_tokens(configure, name: str, **changes: object) -> set[str]:
    unlabelled = {"data.train.part": [0, 0.5], "data.unlabelled": {"part": [0.5, 1], "share": 0.5}}
    folder = store_answers(configure(**{"model.teacher.answers": name, **unlabelled, **changes}))[0]
    return {path.name.partition(".")[0] for path in folder.rglob("*.safetensors")}


def test_frames_without_labels_are_answered_ahead_where_a_loss_sees_them(configured, tmp_path: Path) -> None:
    @MODELS.register
    class LooksWithoutLabels(DistillLoss):
        needs_labels = False

        def forward(self, student_value, teacher_value, batch):
            return student_value["heatmap"].mean()

    frames = set((Path(configured().dataset_root) / "ImageSets" / "train.txt").read_text().split())
    labelled = stored_tokens(configured, str(tmp_path / "labelled"))
    assert labelled < frames
    loss = {"type": "LooksWithoutLabels", "student": "heads.dense", "teacher": "heads.dense"}
    assert stored_tokens(configured, str(tmp_path / "all"), **{"model.losses": {"looks": loss}}) == frames


@pytest.mark.parametrize("command", ["train", "store"])
def test_augmentation_that_does_not_come_back_is_refused_before_models_are_built(
    configured, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = configured(views=None)
    monkeypatch.setattr(MODELS, "build", lambda *_: pytest.fail("a model was built"))
    with pytest.raises(ValueError, match=r"model\.teacher\.answers .* is augmented anew in every epoch .* set views"):
        train(DISTILLATION, cfg, tmp_path / "run") if command == "train" else store_answers(cfg)
    assert not (tmp_path / "run").exists()


def test_what_has_no_folder_or_no_teacher_is_refused(configured) -> None:
    with pytest.raises(ValueError, match="answers names no folder"):
        store_answers(configured(**{"model.teacher.answers": None}))
    baseline = load_config("configs/kitti/synthetic/rgb_baseline.yaml", SIZE)
    for control in (baseline, configured(**{"model.losses": {}, "model.teacher": None})):
        with pytest.raises(ValueError, match="without distillation losses"):
            store_answers(control)
