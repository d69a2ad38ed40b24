"""A checkpoint knows the whole model that it was trained with; another one is refused or said, key by key."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import EngineToyDataset, EngineToyModel, toy_config

from mmdet3d.config import Config, composed
from mmdet3d.engine.jobs import predict_split
from mmdet3d.engine.resuming import model_changes
from mmdet3d.engine.trainer import Trainer
from mmdet3d.registry import MODELS

STUDENT = "model: {type: EngineToyModel, width: 4, dropout: 0.0}\nmax_epochs: 3\n"


@MODELS.register
class Named(EngineToyModel):
    def __init__(self, part: dict[str, Any]) -> None:
        super().__init__(width=part["model"]["width"])


@pytest.fixture
def student(tmp_path: Path) -> Path:
    (tmp_path / "configs").mkdir()
    file = tmp_path / "configs" / "student.yaml"
    file.write_text(STUDENT)
    return file


def test_resuming_with_another_model_is_refused_and_testing_with_one_is_said(student, tmp_path, caplog) -> None:
    def block() -> Config:
        return composed({"type": "Named", "part": {"config": str(student), "checkpoint": None}})

    def trainer(**keys: Any) -> Trainer:
        config = toy_config(**keys) | {"model": block()}
        return Trainer(MODELS.build(block()), EngineToyDataset(), None, config, tmp_path, torch.device("cpu"))

    trainer(max_epochs=1).fit()
    weights = tmp_path / "epoch_1.safetensors"
    recorded = json.loads((tmp_path / "epoch_1.json").read_text())["model_config"]
    assert recorded["part"]["model"] == {"type": "EngineToyModel", "width": 4, "dropout": 0.0}

    def said() -> str:
        caplog.clear()
        logging.getLogger("mmdet3d").propagate = True
        cfg = Config(model=block(), data=Config())
        data = {"test": {"type": "EngineToyDataset", "size": 2}}
        predict_split(cfg, data, "test", weights, torch.device("cpu"), lambda: None)
        return " ".join(r.getMessage() for r in caplog.records if r.levelname == "WARNING")

    resumed = {"max_epochs": 2, "resume_from": str(weights)}
    student.write_text(STUDENT.replace("dropout: 0.0", "dropout: 0.5"))
    change = r"trained with another model \(model\.part\.model\.dropout: 0\.0, now 0\.5\)"
    with pytest.raises(ValueError, match=change + r".*--load_from"):
        trainer(**resumed).fit()
    assert "model.part.model.dropout: 0.0, now 0.5" in said()
    student.write_text(f"# a note\n{STUDENT}seed: 1\n")
    student = student.rename(student.with_name("elsewhere.yaml"))
    assert said() == ""
    trainer(**resumed).fit()


def test_whole_blocks_are_one_difference_and_places_are_none() -> None:
    old = {"teacher": {"model": {"type": "A", "b": 1}, "checkpoint": "x"}, "losses": {"a": {"weights": [1, 2]}}}
    new = {"teacher": {"model": {"type": "A", "b": 1}, "checkpoint": "y"}, "losses": {"a": {"weights": (1, 2)}}}
    assert model_changes(old, new) == "" == model_changes(None, new)
    assert model_changes(old, new | {"teacher": None}).count("model.teacher") == 1
    new["losses"]["a"]["weights"] = [1, 3]
    assert model_changes(old, new) == "model.losses.a.weights: [1, 2], now [1, 3]"
    many = {str(k): k for k in range(9)}
    assert model_changes(many, {k: -v for k, v in many.items()}).endswith("; and 2 more")
