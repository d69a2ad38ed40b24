"""The training loop: exact resumption, mixed precision, accumulation, what is kept, and what goes wrong."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from engine_toy import EngineToyDataset, EngineToyModel, toy_config
from safetensors.torch import load_file
from torch import Tensor

from mmdet3d import load_checkpoint
from mmdet3d.engine.checkpoint import RunCheckpoints
from mmdet3d.engine.interrupt import Interrupted
from mmdet3d.engine.logging import Writer
from mmdet3d.engine.settings import CheckpointSettings
from mmdet3d.engine.trainer import Trainer
from mmdet3d.io import weights


def make(run_dir: Path, model: EngineToyModel | None = None, size: int = 12, **changes: Any) -> Trainer:
    run_dir.mkdir(exist_ok=True)
    if model is None:
        torch.manual_seed(0)
        model = EngineToyModel()
    return Trainer(
        model,
        EngineToyDataset(size, augment=True),
        EngineToyDataset(5, seed=9),
        toy_config(**changes),
        run_dir,
        torch.device("cpu"),
    )


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


VARIANTS = {
    "plain": {},
    "accumulation": {"optimizer_config": {"grad_clip": {"max_norm": 1.0}, "cumulative_iters": 3}},
    "ema": {"ema": {"decay": 0.9, "ramp": 5}},
    "cyclic": {"lr_config": {"policy": "cyclic"}, "momentum_config": {"policy": "cyclic"}},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "workers": {"data": {"samples_per_gpu": 3, "workers_per_gpu": 1}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resuming_is_exact_within_and_between_epochs(variant: str, tmp_path: Path) -> None:
    changes = VARIANTS[variant] | {"max_epochs": 3, "checkpoint_config": {"interval_iters": 3, "max_keep_ckpts": 9}}
    straight = make(tmp_path / "straight", **changes)
    straight.fit()
    wanted = load_file(tmp_path / "straight" / "epoch_3.safetensors")
    assert not torch.equal(wanted["head.weight"], EngineToyModel().head.weight)

    for name, stop in (("within", 6), ("between", 8)):
        run = tmp_path / name
        first = make(run, **changes)
        stop_after(first, stop)
        with pytest.raises(Interrupted, match=r"python tools/train\.py --resume"):
            first.fit()
        (saved,) = [p for p in run.glob("epoch_2*.safetensors")]
        assert (saved.name == "epoch_2.safetensors") == (name == "between")
        torch.manual_seed(77)
        second = make(run, EngineToyModel(), **changes, resume_from=str(saved))
        second.fit()
        assert second.model.calls == ["setup_training"]
        assert_same(load_file(run / "epoch_3.safetensors"), wanted)
        assert_same(straight.model.state_dict(), second.model.state_dict())
        assert second.metrics == straight.metrics


def stop_after(trainer: Trainer, iterations: int) -> None:
    """Send SIGTERM during that iteration."""
    iterate = trainer._iterate

    def wrapped(batch: Any) -> Any:
        if trainer.iteration == iterations - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return iterate(batch)

    trainer._iterate = wrapped


def test_accumulation_equals_the_larger_batch(tmp_path: Path) -> None:
    """Without BatchNorm and dropout two half batches are one batch; the rest of an epoch makes a smaller step."""
    results = []
    for name, samples, group in (("whole", 4, 1), ("halves", 2, 2)):
        torch.manual_seed(0)
        model = EngineToyModel(dropout=0.0).double()
        model.backbone[1] = torch.nn.Identity()
        model._boxes = lambda batch, m=model: m.head(
            m.backbone(torch.stack([p.mean(0) for p in batch.points]).double())
        )
        trainer = make(
            tmp_path / name,
            model,
            max_epochs=1,
            evaluation={"start": 9},
            data={"samples_per_gpu": samples},
            optimizer_config={"cumulative_iters": group},
            lr_config=None,
        )
        trainer.fit()
        results.append(model.state_dict())
    for key, value in results[0].items():
        torch.testing.assert_close(value, results[1][key], rtol=1e-6, atol=1e-9)


def test_what_a_run_leaves(tmp_path: Path) -> None:
    trainer = make(tmp_path, max_epochs=4, checkpoint_config={"interval": 1, "max_keep_ckpts": 2, "interval_iters": 3})
    metrics = trainer.fit()
    names = {p.name for p in tmp_path.iterdir()}
    kept = {f"epoch_{n}{s}" for n in (3, 4) for s in (".safetensors", ".state.pt", ".json")}
    assert {n for n in names if n.startswith("epoch_")} == kept
    assert not [n for n in names if n.endswith((".tmp", ".partial"))]
    assert {"best.safetensors", "best.json", "latest.safetensors", "latest.json", "metrics.jsonl", "tf_logs"} <= names
    meta = json.loads((tmp_path / "epoch_4.json").read_text())
    assert (meta["epoch"], meta["iteration"], meta["metrics"]) == (4, 16, metrics)
    model = EngineToyModel()
    report = load_checkpoint(model, tmp_path / "latest.safetensors")
    assert_same(model.state_dict(), trainer.model.state_dict())
    assert report.metadata == {k: v for k, v in meta.items() if k != "checksum"}
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    train = [x for x in lines if x["mode"] == "train"]
    assert [(x["epoch"], x["iter"]) for x in train] == [(e, i) for e in range(1, 5) for i in (2, 4)]
    assert {"lr", "time", "data_time", "loss/center", "loss/rest", "stats/error", "loss", "grad_norm"} <= train[
        0
    ].keys()
    for line in train:  # stats are logged but not trained on
        assert line["loss"] == pytest.approx(line["loss/center"] + line["loss/rest"], rel=1e-5)
    scores = [x["object/nds"] for x in lines if x["mode"] == "val"]
    best = json.loads((tmp_path / "best.json").read_text())
    assert best["best"]["value"] == max(scores)
    assert (tmp_path / "evaluation" / "epoch_4" / "results_toy.json").is_file()


def test_training_learns_and_calls_the_hooks_in_order(tmp_path: Path) -> None:
    model = EngineToyModel(width=32, dropout=0.0)
    plan = {"evaluation": {"interval": 15}, "checkpoint_config": {"interval": 15}}
    trainer = make(tmp_path, model, max_epochs=30, **plan)
    trainer.fit()
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [x["loss"] for x in lines if x["mode"] == "train"]
    assert losses[-1] < 0.25 * losses[0]
    assert trainer.model.calls == ["init_weights", "setup_training"]
    assert sum(x["mode"] == "val" for x in lines) == 2


def test_the_average_is_what_is_evaluated_and_saved(tmp_path: Path) -> None:
    trainer = make(tmp_path, ema={"decay": 0.99})
    metrics = trainer.fit()
    saved = load_file(tmp_path / "epoch_2.safetensors")
    assert not torch.equal(saved["head.weight"], trainer.model.head.weight)
    other = EngineToyModel()
    load_checkpoint(other, tmp_path / "epoch_2.safetensors")
    assert trainer.evaluate(other, "again") == metrics


def test_setup_training_can_evaluate_any_model(tmp_path: Path) -> None:
    seen: dict[str, float] = {}
    trainer = make(tmp_path)
    trainer.model.setup_training = lambda evaluate: seen.update(evaluate(EngineToyModel()))
    trainer.fit()
    assert seen.keys() == {"object/map", "object/nds"}


def test_evaluation_cut_off_is_made_up_for(tmp_path: Path) -> None:
    trainer = make(tmp_path, max_epochs=1)
    check = trainer._check_interrupt

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        check()

    trainer._check_interrupt = interrupt
    with pytest.raises(Interrupted, match=r"epoch_1\.safetensors holds everything"):
        trainer.fit()
    again = make(tmp_path, max_epochs=1, resume_from=str(tmp_path / "latest.safetensors"))
    assert again.fit().keys() == {"object/map", "object/nds"}
    assert json.loads((tmp_path / "epoch_1.json").read_text())["metrics"] == again.metrics


@pytest.mark.parametrize("point", ["save_best", "annotate"])
def test_a_best_checkpoint_cut_off_is_made_up_for(point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunCheckpoints, point, killed)
        make(tmp_path, max_epochs=1).fit()
    again = make(tmp_path, max_epochs=1, resume_from=str(tmp_path / "latest.safetensors"))
    metrics = again.fit()
    best, epoch = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("best", "epoch_1"))
    assert best["best"] == epoch["best"] == {"metric": "object/nds", "value": metrics["object/nds"], "epoch": 1}
    assert_same(load_file(tmp_path / "best.safetensors"), load_file(tmp_path / "epoch_1.safetensors"))


def test_a_resumed_training_obeys_the_optimizer_settings_of_its_config(tmp_path: Path) -> None:
    """The schedules go on from the new base values, as if they had begun with them."""
    schedules = {"lr_config": {"policy": "cyclic"}, "momentum_config": {"policy": "cyclic"}, "evaluation": {"start": 9}}
    make(tmp_path / "a", **schedules).fit()
    changed = {"type": "AdamW", "lr": 1e-4, "weight_decay": 0.5, "betas": [0.8, 0.99]}
    end = str(tmp_path / "a" / "epoch_2.safetensors")
    found = make(tmp_path / "b", **schedules, max_epochs=3, optimizer=changed, resume_from=end)
    found.fit()
    wanted = make(tmp_path / "c", **schedules, max_epochs=3, optimizer=changed)
    wanted.fit()
    for a, b in zip(found.optimizer.param_groups, wanted.optimizer.param_groups, strict=True):
        assert {k: v for k, v in a.items() if k != "params"} == {k: v for k, v in b.items() if k != "params"}
    assert found.optimizer.param_groups[0]["initial_lr"] == 1e-4
    steps = {int(s["step"]) for s in found.optimizer.state.values()}
    assert steps == {12}


def test_load_from_starts_anew_with_given_weights(tmp_path: Path) -> None:
    make(tmp_path / "a").fit()
    trainer = make(tmp_path / "b", load_from=str(tmp_path / "a" / "best.safetensors"), max_epochs=1)
    trainer._train_epoch = lambda: trainer._begin_writing(0)
    trainer.fit()
    assert trainer.model.calls == ["setup_training"]
    best = load_file(tmp_path / "a" / "best.safetensors")
    assert torch.equal(trainer.model.head.weight, best["head.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer_config": {"grad_clp": None}}, "optimizer_config.grad_clp, did you mean 'grad_clip'"),
        ({"checkpoint_config": {"intervall": 1}}, "checkpoint_config.intervall, did you mean 'interval'"),
        ({"evaluation": {"save_bst": None}}, "evaluation.save_bst, did you mean 'save_best'"),
        ({"log_config": {"hooks": []}}, "log_config.hooks"),
        ({"ema": {"momentum": 1}}, "ema.momentum"),
        ({"precision": "fp8"}, "precision must be one of auto, fp32"),
        ({"max_epochs": 0}, "max_epochs must be an integer of at least 1"),
        ({"seed": -1}, "seed must be an integer from 0 to 4294967295, got -1"),
        ({"seed": 2**32}, "seed must be an integer from 0 to 4294967295, got 4294967296"),
        ({"optimizer": None}, "optimizer is missing"),
        ({"optimizer": {"type": "SGD", "lr": 1, "paramwise_cfg": {"custom_keys": {"nek": {}}}}}, "'nek' matches no"),
    ],
)
def test_config_mistakes_are_found_before_training(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_mistakes_in_resuming(tmp_path: Path) -> None:
    make(tmp_path / "a", checkpoint_config={"interval_iters": 3, "max_keep_ckpts": 9}).fit()
    end = str(tmp_path / "a" / "epoch_2.safetensors")
    with pytest.raises(FileNotFoundError, match=r"epoch_7.safetensors does not exist"):
        make(tmp_path / "b", resume_from=str(tmp_path / "a" / "epoch_7.safetensors")).fit()
    with pytest.raises(FileNotFoundError, match=r"no training state beside it.*--load_from"):
        make(tmp_path / "b", resume_from=str(tmp_path / "a" / "best.safetensors")).fit()
    with pytest.raises(ValueError, match="without an averaged model"):
        make(tmp_path / "b", resume_from=end, ema={"decay": 0.9}).fit()
    with pytest.raises(ValueError, match=r"optimiser state of .* does not fit"):
        keys = {"type": "AdamW", "lr": 1e-2, "paramwise_cfg": {"custom_keys": {"head": {"lr_mult": 0.1}}}}
        make(tmp_path / "b", resume_from=end, optimizer=keys, max_epochs=3).fit()
    with pytest.raises(ValueError, match="does not fit EngineToyModel: 7 of another shape"):
        make(tmp_path / "b", EngineToyModel(width=4), resume_from=end).fit()
    Path(end).with_suffix(".state.pt").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"damaged .* earlier checkpoint"):
        make(tmp_path / "b", resume_from=end).fit()


def test_resuming_within_an_epoch_needs_the_same_data(tmp_path: Path) -> None:
    first = make(tmp_path)
    stop_after(first, 2)
    with pytest.raises(Interrupted):
        first.fit()
    with pytest.raises(ValueError, match="within an epoch of 4 iterations on 1 processes, but this run has 5 on 1"):
        make(tmp_path, size=15, resume_from=str(tmp_path / "epoch_1_iter_2.safetensors")).fit()


@pytest.mark.parametrize("batch_size", [2, 4, 5, 9])
def test_the_rest_of_an_epoch_is_seen_once_in_other_batches(batch_size: int, tmp_path: Path) -> None:
    """As on another number of ranks, and again after another stop."""
    seen: list[str] = []
    steps = []

    def recorded(trainer: Trainer, stop: int) -> Trainer:
        stop_after(trainer, stop)
        iterate = trainer._iterate

        def recording(batch: Any) -> Any:
            seen.extend(batch.tokens)
            steps.append(trainer.batch)
            return iterate(batch)

        trainer._iterate = recording
        return trainer

    with pytest.raises(Interrupted):
        recorded(make(tmp_path, size=13), 1).fit()
    for stop in (1, None):
        (newest,) = RunCheckpoints(tmp_path).resumable()
        other = make(tmp_path, size=13, resume_from=str(newest), max_epochs=1, data={"samples_per_gpu": batch_size})
        if stop is None or batch_size == 9:
            recorded(other, 0).fit()
            break
        last = other.epoch_iters - -(-10 // batch_size) + 1
        with pytest.raises(Interrupted):
            recorded(other, last).fit()
    assert sorted(seen[:13]) == sorted(f"sample-{k}" for k in range(13))
    assert len(seen) < 13 + batch_size and steps[-1] == other.epoch_iters - 1


def test_a_checkpoint_interrupted_while_writing_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    trainer = make(tmp_path)
    trainer.settings = replace(trainer.settings, checkpoint_config=CheckpointSettings(interval=1))
    write = weights.atomic_write

    @contextmanager
    def full_disk(path: Path, *options: Any, **named: Any) -> Iterator[IO[bytes]]:
        with write(path, *options, **named) as file:
            yield file
            if path.name == "epoch_2.safetensors":
                raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "atomic_write", full_disk)
    with pytest.raises(ValueError, match=r"epoch_2.safetensors .No space left on device.; free space"):
        trainer.fit()
    assert [p.name for p in RunCheckpoints(tmp_path).resumable()] == ["epoch_1.safetensors"]
    assert not list(tmp_path.glob(".*"))


def test_losses(tmp_path: Path) -> None:
    def with_loss(name: str, loss: Any) -> Trainer:
        trainer = make(tmp_path / name)
        trainer.model.loss = loss
        return trainer

    with pytest.raises(ValueError, match=r"no term named 'loss/...'"):
        with_loss("a", lambda batch: {"stats/x": torch.tensor(1.0)}).fit()
    with pytest.raises(ValueError, match="depends on no trainable parameter for the batch sample-"):
        with_loss("b", lambda batch: {"loss/x": torch.tensor(1.0)}).fit()
    nan = with_loss("c", None)
    nan.model.loss = lambda batch: {"loss/x": nan.model.head.bias.sum() * float("nan")}
    with pytest.raises(ValueError, match=r"not finite in epoch 1 up to iteration 2; lower optimizer.lr"):
        nan.fit()


def test_no_ground_truth_in_a_batch(tmp_path: Path) -> None:
    class Unlabelled(EngineToyDataset):
        def __getitem__(self, index: int) -> Any:
            sample = super().__getitem__(index)
            sample.boxes = None
            return sample

    trainer = Trainer(EngineToyModel(), Unlabelled(6), None, toy_config(), tmp_path, torch.device("cpu"))
    with pytest.raises(ValueError, match="needs `boxes`, which this batch does not hold"):
        trainer.fit()


def test_unknown_best_metric_loses_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no metric 'object/mAP'; the data set reports object/map"):
        make(tmp_path, evaluation={"save_best": "object/mAP"}).fit()
    assert (tmp_path / "epoch_1.json").is_file()


def test_a_log_line_groups_its_terms(tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.INFO, "mmdet3d")
    tasks = {f"{part}/task{k}": 1.5 for part in ("heatmap", "bbox") for k in range(6)}
    terms = {f"loss/object/{name}": value for name, value in tasks.items()}
    terms |= {f"loss/kd/response/{name}": value for name, value in tasks.items()}
    terms |= {f"loss/kd/{name}": 0.25 for name in ("feature", "relation", "radar")}
    terms |= {"stats/kd/mask/share": 0.5, "stats/error": 0.125}
    values = {"lr": 1e-3, "time": 0.4, "data_time": 0.1, **terms, "loss": 36.75, "grad_norm": 95.9}
    writer = Writer(tmp_path)
    writer.train({"epoch": 1, "iter": 20, "iteration": 20}, 700, 100.0, values)
    writer.close()
    (line,) = {m for m in caplog.messages if m.startswith("Epoch [1][20/700]")}
    assert line.endswith(
        "loss: 36.7500, grad_norm: 95.9000, loss/object: 18.0000 (heatmap 9.0000, bbox 9.0000), loss/kd: 18.7500 "
        "(response 18.0000, feature 0.2500, relation 0.2500, radar 0.2500), stats/kd: (mask/share 0.5000), "
        "stats/error: 0.1250"
    )
    assert len(line) < 400 and json.loads((tmp_path / "metrics.jsonl").read_text()).keys() >= terms.keys()


def test_a_broken_sample_is_one_sentence(tmp_path: Path) -> None:
    data = EngineToyDataset(6, broken=1)
    cfg = toy_config(data={"samples_per_gpu": 3, "workers_per_gpu": 1})
    trainer = Trainer(EngineToyModel(), data, None, cfg, tmp_path, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"^sample 1: points.bin is cut short; copy it again$"):
        trainer.fit()


def test_metrics_of_zero_are_said_with_what_to_look_at(tmp_path: Path, monkeypatch, caplog) -> None:
    def nothing(self: EngineToyDataset, detections: list, out_dir: Path) -> dict[str, float]:
        return {"object/map": 0.0, "object/nds": 0.0}

    monkeypatch.setattr(EngineToyDataset, "evaluate", nothing)
    with caplog.at_level(logging.WARNING, "mmdet3d"):
        make(tmp_path, max_epochs=1).fit()
    (said,) = caplog.messages
    assert re.match(r"object/nds is 0 after epoch 1, so nothing .* look at some frames with .*visualize", said)
