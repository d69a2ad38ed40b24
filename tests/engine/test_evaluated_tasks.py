"""What the engine asks of the tasks of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from engine_toy import EngineToyDataset, EngineToyModel

from mmdet3d.engine.evaluate import asked_tasks, evaluate, predict, score
from mmdet3d.evaluation.tasks import Detection
from mmdet3d.structures import Batch

CPU = torch.device("cpu")


class Ordinals:
    """Keeps what a second head says, a number per sample."""

    word: ClassVar[str] = "ordinals"

    def keep(self, answers: Sequence[int], batch: Batch) -> list[int]:
        return list(answers)

    def score(self, kept: Sequence[Any], out_dir: Path) -> dict[str, float]:
        return {"ordinals/in_order": float(kept == sorted(kept)), "ordinals/count": float(len(kept))}


class TwoTasks(EngineToyDataset):
    @property
    def tasks(self) -> dict[str, Any]:
        return {"second": Ordinals(), "object": Detection(self.evaluate)}


class TwoHeads(EngineToyModel):
    @property
    def tasks(self) -> tuple[str, ...]:
        return ("object", "second")

    def predict_tasks(self, batch: Batch, tasks: Any = None) -> dict[str, Any]:
        self.calls.append(",".join(sorted(tasks)))
        said = {"object": self.predict(batch), "second": [meta["index"] for meta in batch.metas]}
        return {name: said[name] for name in tasks}


def test_every_task_is_scored_by_its_own_rules(tmp_path: Path) -> None:
    metrics = evaluate(TwoHeads(), TwoTasks(size=5), tmp_path, CPU, batch_size=2)
    assert metrics["ordinals/in_order"] == 1 and metrics["ordinals/count"] == 5 and metrics["object/nds"] > 0


def test_only_what_is_asked_for_is_predicted(tmp_path: Path) -> None:
    model, dataset = TwoHeads(), TwoTasks(size=5)
    results = predict(model, dataset, CPU, batch_size=5, words=["ordinals"])
    assert set(results) == {"second"} and model.calls == ["second"]
    assert set(score(dataset, results, tmp_path)) == {"ordinals/in_order", "ordinals/count"}
    both = predict(model, dataset, CPU, batch_size=5)
    assert "object/nds" not in score(dataset, both, tmp_path, ["ordinals"])


def test_a_data_set_that_says_nothing_scores_boxes() -> None:
    assert list(asked_tasks(TwoHeads(), EngineToyDataset())) == ["object"]


def test_what_cannot_be_scored_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"--eval map: the data set scores ordinals \(head second\), bbox \(head object\)"
    ):
        asked_tasks(TwoHeads(), TwoTasks(), ["map"])
    with pytest.raises(ValueError, match=r"scores second, but the model has no such head \(heads: object\); name what"):
        asked_tasks(EngineToyModel(), TwoTasks())
