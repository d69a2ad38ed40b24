"""What config files hold that a model block only names is part of what a run means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import EngineToyDataset, EngineToyModel, toy_config

from mmdet3d.config import CONFIG_ROOT, Config, load_config
from mmdet3d.engine.config_files import file_digests
from mmdet3d.engine.jobs import predict_split
from mmdet3d.engine.trainer import Trainer
from mmdet3d.registry import MODELS

STUDENT = "model: {type: EngineToyModel, width: 4}\nmax_epochs: 3\n"


@MODELS.register
class Named(EngineToyModel):
    def __init__(self, part: dict[str, Any]) -> None:
        super().__init__(width=load_config(part["config"]).model.width)


@pytest.fixture
def student(tmp_path: Path) -> Path:
    (tmp_path / "configs").mkdir()
    file = tmp_path / "configs" / "student.yaml"
    file.write_text(STUDENT)
    return file


def test_files_behind_a_shipped_distillation() -> None:
    config = load_config("synthetic/labeldistill/small.yaml")
    files = set(file_digests(config.model))
    assert {"synthetic/default.yaml", config.model.student.config, config.model.teacher.config} <= files
    inner = load_config(config.model.teacher.config).model.detector.config
    assert inner in files and all((CONFIG_ROOT / file).is_file() for file in files)
    assert file_digests(load_config("synthetic/lidar/small.yaml").model) == {}


def test_inheritance_counts_and_comments_do_not(student: Path) -> None:
    block = {"type": "Named", "part": {"config": str(student)}, "other": [{"config": "nowhere.yaml"}]}
    before = file_digests(block)
    assert list(before) == [str(student)]
    student.write_text(f"# a note\n\n{STUDENT}")
    assert file_digests(block) == before
    (student.parent / "default.yaml").write_text("model: {dropout: 0.5}\n")
    assert list(file_digests(block)) == [str(student.parent / "default.yaml"), str(student)]


def test_another_content_is_refused_in_resuming_and_testing(student: Path, tmp_path: Path) -> None:
    block = {"type": "Named", "part": {"config": str(student)}}

    def trainer(**keys: Any) -> Trainer:
        config = toy_config(**keys) | {"model": block}
        return Trainer(MODELS.build(block), EngineToyDataset(), None, config, tmp_path, torch.device("cpu"))

    trainer(max_epochs=1).fit()
    weights = tmp_path / "epoch_1.safetensors"
    assert json.loads((tmp_path / "epoch_1.json").read_text())["config_files"] == file_digests(block)

    def test(config: Path = student) -> None:
        cfg = Config(model={"type": "Named", "part": {"config": str(config)}}, data=Config())
        data = {"test": {"type": "EngineToyDataset", "size": 2}}
        predict_split(cfg, data, "test", weights, torch.device("cpu"), lambda: None)

    resumed = {"max_epochs": 2, "resume_from": str(weights)}
    student.write_text(STUDENT.replace("max_epochs: 3", "max_epochs: 4"))
    with pytest.raises(ValueError, match=r"student\.yaml, which .* when .*epoch_1\.safetensors was .*--load_from"):
        trainer(**resumed).fit()
    with pytest.raises(ValueError, match=r"student\.yaml, which .*, or give a file that holds it"):
        test()
    copy = student.with_name("copy.yaml")
    copy.write_text(STUDENT)
    test(copy)
    student.write_text(STUDENT)
    trainer(**resumed).fit()
    test()
