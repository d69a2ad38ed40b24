"""The engine's hooks for methods that change over the epochs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import EngineToyDataset, EngineToyModel, toy_config
from safetensors.torch import load_file
from torch import Tensor

from mmdet3d.engine.interrupt import Interrupted
from mmdet3d.engine.trainer import Trainer
from mmdet3d.structures import Batch


class Annealed(EngineToyModel):
    """Its loss is scaled by what the epochs before lost."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[int] = []
        self.scale, self.lost = 1.0, 0.0

    def start_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)
        self.scale, self.lost = 1.0 / (1.0 + self.lost), 0.0

    def training_state(self) -> dict[str, Any]:
        return {"scale": self.scale, "lost": self.lost}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        self.scale, self.lost = state["scale"], state["lost"]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        losses = super().loss(batch)
        self.lost += float(losses["loss/center"].detach())
        return losses | {"loss/center": losses["loss/center"] * self.scale}


def make(run_dir: Path, **changes: Any) -> Trainer:
    run_dir.mkdir(exist_ok=True)
    torch.manual_seed(0)
    config = toy_config(max_epochs=3, checkpoint_config={"interval_iters": 1, "max_keep_ckpts": 20}, **changes)
    return Trainer(Annealed(), EngineToyDataset(augment=True), None, config, run_dir, torch.device("cpu"))


@pytest.mark.parametrize("stop, saved", [(6, "epoch_2_iter_2"), (8, "epoch_2")])
def test_a_method_resumes_exactly_where_it_stopped(stop: int, saved: str, tmp_path: Path) -> None:
    straight = make(tmp_path / "straight")
    straight.fit()
    assert straight.model.epochs == [0, 1, 2]

    first = make(tmp_path / "run")
    step = first._iterate

    def stopping(batch: Batch) -> dict[str, Tensor]:
        values = step(batch)
        if first.iteration == stop:
            first._interrupt.number = 15
        return values

    first._iterate = stopping
    with pytest.raises(Interrupted):
        first.fit()
    second = make(tmp_path / "run", resume_from=str(tmp_path / "run" / f"{saved}.safetensors"))
    second.fit()
    assert second.model.epochs == [2]
    assert second.model.scale == straight.model.scale
    a, b = (load_file(tmp_path / name / "epoch_3.safetensors") for name in ("straight", "run"))
    assert all(torch.equal(a[k], b[k]) for k in a)
