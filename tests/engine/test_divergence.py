"""Losses, gradients and weights that are not finite: what is skipped, what ends the training, what stays on disk."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_toy import EngineToyDataset, EngineToyModel, toy_config
from safetensors.torch import load_file
from torch import Tensor

from mmdet3d.engine.data import TrainSampler
from mmdet3d.engine.kept_batch import keep_batch, read_batch
from mmdet3d.engine.trainer import Trainer
from mmdet3d.structures import Batch, BEVGrid, BEVMasks, Sample

REMEDY = r"; lower optimizer.lr or set --precision fp32, and continue from the last checkpoint in "
NAN = float("nan")


class Spoiled(EngineToyModel):
    """`spoil(model, call, losses)` may change the losses, or the model, of one call (1-based)."""

    def __init__(self, spoil: Callable[[EngineToyModel, int, dict[str, Tensor]], None]) -> None:
        super().__init__()
        self.spoil, self.count = spoil, 0

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        losses = super().loss(batch)
        self.count += 1
        self.spoil(self, self.count, losses)
        return losses


def fit(run_dir: Path, spoil: Callable[[EngineToyModel, int, dict[str, Tensor]], None], **changes: Any) -> Trainer:
    torch.manual_seed(0)
    data = EngineToyDataset(augment=True), EngineToyDataset(5, seed=9)
    trainer = Trainer(Spoiled(spoil), *data, toy_config(**changes), run_dir, torch.device("cpu"))
    trainer.fit()
    return trainer


def is_finite(weights: dict[str, Tensor]) -> bool:
    return all(v.isfinite().all() for v in weights.values())


@pytest.mark.parametrize("clip", [None, {"max_norm": 35}], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_step_of_one_bad_batch_is_left_out(precision: str, clip: dict | None, tmp_path: Path) -> None:
    seen: dict[int, Tensor] = {}

    def spoil(model: EngineToyModel, call: int, losses: dict[str, Tensor]) -> None:
        seen[call] = model.head.weight.detach().clone()
        if call == 3:
            losses["loss/rest"] = losses["loss/rest"] * NAN

    settings = {"precision": precision, "optimizer_config": {"grad_clip": clip}}
    trainer = fit(tmp_path, spoil, **settings, log_config={"interval": 4})
    assert torch.equal(seen[3], seen[4])
    assert not torch.equal(seen[4], seen[5])
    assert is_finite(trainer.model.state_dict())


def test_gradients_that_stay_bad_end_the_training(tmp_path: Path) -> None:
    """The losses are finite, so only the gradients tell."""

    def spoil(model: EngineToyModel, call: int, losses: dict[str, Tensor]) -> None:
        if call >= 5:
            losses["loss/root"] = (model.head.bias * 0).sum().sqrt()

    with pytest.raises(ValueError, match="the gradients were not finite in epoch 2 up to iteration 2" + REMEDY):
        fit(tmp_path, spoil, max_epochs=3)
    assert is_finite(load_file(tmp_path / "epoch_1.safetensors"))


@pytest.mark.parametrize("ema", [None, {"decay": 0.9}], ids=["plain", "averaged"])
def test_broken_weights_replace_no_checkpoint(ema: dict | None, tmp_path: Path) -> None:
    """The losses of the log window are finite, and pruning keeps one checkpoint only."""

    def spoil(model: EngineToyModel, call: int, losses: dict[str, Tensor]) -> None:
        if call == 6:
            model.unused.data.fill_(NAN)

    plan = {"max_keep_ckpts": 1, "interval_iters": 1}
    with pytest.raises(ValueError, match=r"weights are not finite \(1 of 9 tensors, the first is unused\)" + REMEDY):
        fit(tmp_path, spoil, max_epochs=3, checkpoint_config=plan, log_config={"interval": 50}, ema=ema)
    kept = sorted(p.name for p in tmp_path.glob("epoch_*.safetensors"))
    assert kept == ["epoch_1.safetensors", "epoch_2_iter_1.safetensors"]
    assert all(is_finite(load_file(tmp_path / name)) for name in kept)


def test_broken_weights_are_not_evaluated_as_the_best(tmp_path: Path) -> None:
    def spoil(model: EngineToyModel, call: int, losses: dict[str, Tensor]) -> None:
        model.unused.data.fill_(NAN)

    with pytest.raises(ValueError, match="the weights are not finite"):
        fit(tmp_path, spoil, checkpoint_config={"interval": 2})
    assert not list(tmp_path.glob("*.safetensors"))


def bad_from(call: int) -> Callable[[EngineToyModel, int, dict[str, Tensor]], None]:
    def spoil(model: EngineToyModel, now: int, losses: dict[str, Tensor]) -> None:
        if now == call:
            losses["loss/rest"] = losses["loss/rest"] * NAN

    return spoil


def test_what_is_not_finite_is_named_and_its_batch_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With accumulation, where it is the first batch of two."""
    with caplog.at_level("WARNING", "mmdet3d"):
        fit(tmp_path, bad_from(3), optimizer_config={"cumulative_iters": 2}, log_config={"interval": 4})
    (said,) = caplog.messages
    named = re.fullmatch(
        r"skipped the step of epoch 1, iteration 4: loss/rest is not finite on (.*) \(kept; look into it with "
        r".*audit\S* CONFIG --batch (.*)\)",
        said,
    )
    batch = read_batch(named[2])
    sampler = TrainSampler(12, 3, 3)
    third = [f"sample-{index}" for _, index in list(sampler)[2]]
    assert batch.tokens == third == named[1].split(", ")
    again = Spoiled(bad_from(1)).loss(batch)
    assert not again["loss/rest"].isfinite() and again["loss/center"].isfinite()


def test_gradients_of_finite_losses_are_told_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def spoil(model: EngineToyModel, call: int, losses: dict[str, Tensor]) -> None:
        if call == 2:
            losses["loss/root"] = (model.head.bias * 0).sum().sqrt()

    with caplog.at_level("WARNING", "mmdet3d"):
        fit(tmp_path, spoil, log_config={"interval": 4})
    assert "epoch 1, iteration 2: the gradients of finite losses are not finite on sample-" in caplog.text


def test_a_run_keeps_few_batches(tmp_path: Path) -> None:
    def spoil(model: EngineToyModel, call: int, losses: dict[str, Tensor]) -> None:
        if call % 2:
            losses["loss/rest"] = losses["loss/rest"] * NAN

    fit(tmp_path, spoil, max_epochs=3, log_config={"interval": 4})
    assert sorted(p.name for p in (tmp_path / "not_finite").iterdir()) == [f"{k}_rank0.pt" for k in (1, 2, 3)]


def test_the_policy_may_be_to_stop(tmp_path: Path) -> None:
    config = {"not_finite": "stop"}
    with pytest.raises(ValueError, match=r"^epoch 1, iteration 3: loss/rest is not finite on sample-.*" + REMEDY):
        fit(tmp_path, bad_from(3), optimizer_config=config)
    with pytest.raises(ValueError, match=r"optimizer_config.not_finite"):
        fit(tmp_path, bad_from(3), optimizer_config={"not_finite": "wait"})


def test_a_batch_with_a_map_is_kept_whole(tmp_path: Path) -> None:
    masks = BEVMasks(torch.eye(4)[None] > 0, ("road",), BEVGrid((0.0, 0.0), (1.0, 1.0), (4, 4)))
    sample = Sample(
        "a", EngineToyDataset(1)[0].calibration, masks=masks, meta={"weight": np.float64(0.5), "name": "first"}
    )
    keep_batch(Batch.collate([sample]), tmp_path / "kept.pt")
    batch = read_batch(tmp_path / "kept.pt")
    assert torch.equal(batch.masks[0].values, masks.values) and batch.masks[0].grid == masks.grid
    assert batch.metas == [{"name": "first"}]  # plain values alone


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x02}q\x00."])
def test_a_file_that_is_no_kept_batch(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pt is damaged, or no batch that a training kept"):
        read_batch(tmp_path / "a.pt")
