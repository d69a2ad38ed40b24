"""Distillation with less memory: stages that backward computes again, and weights that two ranks share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ranks import on_ranks
from safetensors.torch import load_file
from test_distiller import files  # noqa: F401
from test_distiller_resume import trainer

from mmdet3d.engine import distributed


def test_stages_computed_again_change_no_bit(files: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    """With dropout, batch norm, a frozen teacher, and a balance that asks for gradients within the forward pass."""
    found, balances = [], []
    for again in (False, True):
        run = tmp_path / str(again)
        made = trainer(files, run, activation_checkpointing=again)
        made.fit()
        balances.append(made.model.training_state()["balance"])
        found.append(load_file(run / "epoch_2.safetensors"))
    assert balances[0] == balances[1]
    assert found[0].keys() == found[1].keys() and all(torch.equal(v, found[1][k]) for k, v in found[0].items())


def test_two_ranks_share_the_student(files: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    """The frozen teacher stays whole on each; both options at once."""

    def fit(run: Path, shared: bool) -> None:
        made = trainer(files, run, fully_shard=shared, activation_checkpointing=shared)
        made.fit()
        teacher = made.model.instructor.model
        wanted = torch.load(files["teacher_weights"], weights_only=True)["state_dict"]
        assert all(torch.equal(v, wanted[k]) for k, v in teacher.state_dict().items())
        assert distributed.world_size() == 2

    runs = [tmp_path / str(shared) for shared in (False, True)]
    for run in runs:
        on_ranks(2, lambda run=run: fit(run, run is runs[1]), tmp_path / "ranks")
    apart, shared = (load_file(run / "epoch_2.safetensors") for run in runs)
    assert apart.keys() == shared.keys()
    for name, value in apart.items():
        assert shared[name].numpy() == pytest.approx(value.numpy(), rel=1e-4, abs=1e-6), name
