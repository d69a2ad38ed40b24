"""Many steps and many kills: the weights of an uninterrupted training, flat memory, no growth of open files.

DISTILL3D_SOAK=1 makes it 2,000 steps and 20 kills instead of the few that a suite has time for.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_toy import EngineToyDataset, EngineToyModel, toy_config
from growing import Growth
from safetensors.torch import load_file

from mmdet3d.config import Config
from mmdet3d.engine.checkpoint import RunCheckpoints
from mmdet3d.engine.run_dir import choose_run_dir
from mmdet3d.engine.trainer import Trainer

LONG = "DISTILL3D_SOAK" in os.environ
CYCLES, EPOCHS = (20, 500) if LONG else (3, 15)  # of 4 steps each
STEPS = 2000 if LONG else 160


def make(
    run_dir: Path, epochs: int, workers: int, each: Callable[[Trainer], None] = lambda _: None, every: int = 1
) -> Trainer:
    """Goes on from what is in the folder; `each` is called after every step, checkpoints are saved after some."""
    run_dir.mkdir(exist_ok=True)
    torch.manual_seed(0)
    config = toy_config(
        max_epochs=epochs,
        checkpoint_config={"interval_iters": every, "max_keep_ckpts": 1},
        ema={"decay": 0.9},
        evaluation={"interval": 5},
        data={"samples_per_gpu": 3, "workers_per_gpu": workers},
        optimizer_config={"cumulative_iters": 2},
    )
    if RunCheckpoints(run_dir).resumable():
        resumed = Config(resume_from="auto")
        choose_run_dir(run_dir, "toy.yaml", resumed)
        config["resume_from"] = resumed.resume_from
    data = EngineToyDataset(augment=True), EngineToyDataset(5, seed=9)
    trainer = Trainer(EngineToyModel(), *data, config, run_dir, torch.device("cpu"))
    step = trainer._iterate

    def stepping(batch: Any) -> Any:
        values = step(batch)
        each(trainer)
        return values

    trainer._iterate = stepping
    return trainer


def killed_at(run_dir: Path, epochs: int, workers: int, step: int) -> None:
    """Train in a process of its own that is killed after that many steps."""
    child = os.fork()
    if child == 0:

        def kill(trainer: Trainer) -> None:
            if trainer.iteration == step:
                os.kill(os.getpid(), signal.SIGKILL)

        make(run_dir, epochs, workers, kill).fit()
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_any_number_of_kills_changes_no_weight(workers: int, tmp_path: Path) -> None:
    make(tmp_path / "straight", EPOCHS, workers).fit()
    draw = np.random.RandomState(workers)
    for step in sorted(draw.choice(np.arange(2, 4 * EPOCHS), CYCLES, replace=False)):
        killed_at(tmp_path / "killed", EPOCHS, workers, int(step))
    make(tmp_path / "killed", EPOCHS, workers).fit()
    straight, killed = (load_file(tmp_path / name / f"epoch_{EPOCHS}.safetensors") for name in ("straight", "killed"))
    assert all(torch.equal(straight[name], killed[name]) for name in straight)
    assert not list((tmp_path / "killed").glob(".*"))


@pytest.mark.slow
def test_memory_and_open_files_stay(tmp_path: Path) -> None:
    growth = Growth()
    make(tmp_path / "run", STEPS // 4, 0, lambda trainer: growth.measure(trainer.iteration), every=4).fit()
    growth.check()
