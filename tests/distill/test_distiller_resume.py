"""A distillation that is killed and goes on: to the bit that of one that never stopped, its method's state included.

DISTILL3D_SOAK=1 makes the steps in which its memory must stay 2,000 instead of 160.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from growing import Growth
from safetensors.torch import load_file
from test_distiller import BOX, CELLS, LOSSES, files, make  # noqa: F401

from mmdet3d.distill.balance import Balance, BalanceSettings
from mmdet3d.engine.checkpoint import RunCheckpoints
from mmdet3d.engine.trainer import Trainer
from mmdet3d.structures import Boxes3D, Calibration, Sample

EPOCHS = 2


class Frames:
    """Random sweeps of both sensors around one box, another view of them in every epoch."""

    def __init__(self, augment: bool) -> None:
        self.augment, self.epoch = augment, 0

    def __len__(self) -> int:
        return 6

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> Sample:
        draw = torch.Generator().manual_seed(100 * (self.epoch if self.augment else 0) + index)
        points, radar = (torch.rand(CELLS**2, 5, generator=draw) for _ in range(2))
        eye = torch.eye(4)
        calibration = Calibration(eye, eye, eye[None], eye[None], eye[None], eye[None], eye)
        return Sample(
            token=f"frame{index}",
            calibration=calibration,
            clouds={"points": points, "radar": radar},
            boxes=Boxes3D(BOX),
            labels=torch.zeros(1, dtype=torch.int64),
            view=None if self.augment else f"data/frame{index}",
        )


def trainer(
    files: dict[str, str],  # noqa: F811
    run_dir: Path,
    answers: str | None = None,
    kill: int | None = None,
    epochs: int = EPOCHS,
    accumulated: int = 1,
    **changes: Any,
) -> Trainer:
    """Of a distiller with balanced losses; goes on from what is in the folder, and may be killed after a step."""
    run_dir.mkdir(exist_ok=True)
    torch.manual_seed(0)
    losses = {name: LOSSES[name] for name in ("feature", "relation")}
    distiller = make(files, losses=losses, teacher={"answers": answers})
    distiller._balance = Balance(BalanceSettings(every=2))
    config = {
        "seed": 3,
        "max_epochs": epochs,
        "data": {"samples_per_gpu": 2, "workers_per_gpu": 0},
        "optimizer": {"type": "AdamW", "lr": 1e-2},
        "optimizer_config": {"cumulative_iters": accumulated},
        "checkpoint_config": {"interval_iters": 1, "max_keep_ckpts": 1},
        "log_config": {"interval": 3},
        **changes,
    }
    if saved := RunCheckpoints(run_dir).newest_intact():
        config["resume_from"] = str(saved)
    made = Trainer(distiller, Frames(augment=answers is None), None, config, run_dir, torch.device("cpu"))
    step = made._iterate

    def stepping(batch: Any) -> Any:
        values = step(batch)
        if made.iteration == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return values

    made._iterate = stepping
    return made


@pytest.mark.parametrize("stored", [False, True], ids=["live", "stored"])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_killed_distillation_goes_on_to_the_bit(
    accumulated: int,
    stored: bool,
    files: dict[str, str],  # noqa: F811
    tmp_path: Path,
) -> None:
    answers = str(tmp_path / "answers") if stored else None
    straight = trainer(files, tmp_path / "straight", answers, accumulated=accumulated)
    straight.fit()
    balance = straight.model.training_state()["balance"]
    assert balance["steps"] == 6 and set(balance["pulls"]) == {"feature", "relation"}
    run = tmp_path / "killed"
    for step in (2, 4):
        child = os.fork()
        if child == 0:
            trainer(files, run, answers, step, accumulated=accumulated).fit()
            os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    resumed = trainer(files, run, answers, accumulated=accumulated)
    resumed.fit()
    assert resumed.model.training_state()["balance"] == balance
    a, b = (load_file(tmp_path / name / f"epoch_{EPOCHS}.safetensors") for name in ("straight", "killed"))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_memory_and_open_files_stay(files: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    """Of a distiller that reads its teacher's stored answers."""
    growth = Growth()
    epochs = (2000 if "DISTILL3D_SOAK" in os.environ else 160) // 3
    made = trainer(files, tmp_path / "run", answers=str(tmp_path / "answers"), epochs=epochs)
    step = made._iterate

    def measured(batch: Any) -> Any:
        values = step(batch)
        growth.measure(made.iteration)
        return values

    made._iterate = measured
    made.fit()
    growth.check()
