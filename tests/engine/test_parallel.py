"""Training whose weights, gradients and optimiser state two ranks share: numbers and files of one that does not.

Sums over parts and vectorised arithmetic on shorter rows round differently.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import EngineToyDataset, EngineToyModel, toy_config
from ranks import on_ranks
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_flatten_with_path

from mmdet3d.engine import distributed
from mmdet3d.engine.trainer import Trainer


class Sometimes(EngineToyModel):
    """Has a part that the first rank uses alone, beside one that none does."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(9, 9)

    def _boxes(self, batch: Any) -> Tensor:
        found = super()._boxes(batch)
        return self.first(found) if self.training and distributed.rank() == 0 else found


def fit(run_dir: Path, model: type[EngineToyModel] = EngineToyModel, **changes: Any) -> None:
    torch.manual_seed(0)
    data, val = EngineToyDataset(12, augment=True), EngineToyDataset(5, seed=9)
    config = toy_config(**{"data": {"samples_per_gpu": 2}, "checkpoint_config": {"interval_iters": 2}, **changes})
    trainer = Trainer(model(), data, val, config, run_dir, torch.device("cpu"))
    trainer.fit()
    shared = config.get("fully_shard", False) and distributed.world_size() > 1
    assert all(isinstance(p, DTensor) == shared for p in trainer.model.parameters())
    moments = [v for s in trainer.optimizer.state.values() for v in s.values() if v.ndim]
    assert moments and all(isinstance(m, DTensor) == shared for m in moments)


def train(folder: Path, ranks: int = 2, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    if ranks == 1:
        fit(folder, **changes)
    else:
        on_ranks(ranks, lambda: fit(folder, **changes), folder / "ranks")
    return folder


def assert_close(a: Any, b: Any) -> None:
    """Nests of the same keys, kinds, shapes and, but for rounding, values."""
    (ours, shape), (theirs, other) = (tree_flatten_with_path(v) for v in (a, b))
    assert shape == other
    for (path, x), (_, y) in zip(ours, theirs, strict=True):
        assert type(x) is type(y), path
        if isinstance(x, Tensor):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-7, msg=lambda text, path=path: f"{path}: {text}")
        else:
            assert x == y, path


def assert_same_run(a: Path, b: Path) -> None:
    """Weights and everything that resuming needs."""
    assert sorted(p.name for p in a.iterdir()) == sorted(p.name for p in b.iterdir())
    assert_close(*(load_file(d / "epoch_2.safetensors") for d in (a, b)))
    states = [torch.load(d / "epoch_2.state.pt", weights_only=True) for d in (a, b)]
    for key in ("optimizer", "model", "ema_steps", "scaler"):
        assert_close(*(s[key] for s in states))
    metrics = [json.loads((d / "epoch_2.json").read_text())["metrics"] for d in (a, b)]
    assert metrics[1] == pytest.approx(metrics[0])


CLIPPED = {"grad_clip": {"max_norm": 0.1}, "cumulative_iters": 2}
LARGEST = {"grad_clip": {"max_norm": 0.01, "norm_type": float("inf")}}
VARIANTS = {
    "average, clipped, accumulated": {"ema": {"decay": 0.9}, "optimizer_config": CLIPPED},
    "fp16, a part unused": {"model": Sometimes, "precision": "fp16", "optimizer_config": LARGEST},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_ranks_that_share_train_as_two_that_do_not(variant: str, tmp_path: Path) -> None:
    runs = [train(tmp_path / str(shared), fully_shard=shared, **VARIANTS[variant]) for shared in (False, True)]
    assert_same_run(*runs)


def test_training_goes_on_with_and_without_sharing_and_on_other_ranks(tmp_path: Path) -> None:
    """From a checkpoint at the end of an epoch: two ranks that share, then one; one, then two that share."""
    average = {"ema": {"decay": 0.9}}
    for before, after in ((2, 1), (1, 2)):
        runs = []
        for shared in (False, True):
            run = train(tmp_path / f"{before}, {shared}", before, fully_shard=shared, **average, max_epochs=1)
            saved = str(run / "epoch_1.safetensors")
            runs.append(train(run, after, fully_shard=shared, **average, resume_from=saved))
        assert_same_run(*runs)


def test_compiled_stages_do_not_go_with_it(tmp_path: Path) -> None:
    for key in ("fully_shard", "activation_checkpointing"):
        with pytest.raises(ValueError, match=f"config key {key} cannot be true together with compile"):
            fit(tmp_path, compile=True, **{key: True})
