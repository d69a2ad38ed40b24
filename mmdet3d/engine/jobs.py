"""What the command-line tools do once the config is read. Every rank must call."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mmdet3d.blocks import hints_from
from mmdet3d.config import Config, load_config
from mmdet3d.datasets import build_split, check_data
from mmdet3d.engine import distributed
from mmdet3d.engine.agreement import check_agreement
from mmdet3d.engine.answers import check_that_samples_return
from mmdet3d.engine.checkpoint import RunCheckpoints
from mmdet3d.engine.evaluate import Results, asked_tasks, predict
from mmdet3d.engine.logging import get_logger, hold_log, log_to_folder
from mmdet3d.engine.resuming import model_changes
from mmdet3d.engine.run_dir import begin_run, choose_run_dir, sole_user
from mmdet3d.engine.run_record import refuse_other_teachers, write_record
from mmdet3d.engine.settings import Settings
from mmdet3d.engine.trainer import Trainer, seed_everything
from mmdet3d.interop.checkpoints import LoadReport, load_checkpoint
from mmdet3d.models import build_model
from mmdet3d.progress import report_to

__all__ = ["predict_split", "train", "train_recipe_run"]


def train(config_path: str | Path, cfg: Config, run_dir: str | Path | None, said: Sequence[str] = ()) -> Path:
    """Train what `cfg` describes. Nothing is printed or written before everything is built and its weights are loaded.

    Args:
        config_path: where `cfg` was read, which names the folder if `run_dir` is None.
        said: warnings for the log of the run.

    Returns:
        The folder of the run.

    Raises:
        ValueError, FileNotFoundError: see `check_agreement`, `choose_run_dir`, `Trainer` and what the config builds.
    """
    with hints_from(cfg):
        Settings.from_config(cfg)
    doubts = [*said, *check_agreement(cfg)]
    device = distributed.init()
    folder = choose_run_dir(run_dir, config_path, cfg)
    hold_log()
    held = contextlib.ExitStack()

    @functools.cache
    def begin() -> None:
        held.enter_context(sole_user(folder))
        begin_run(folder, cfg)
        log_to_folder(folder)
        log = get_logger()
        log.info("run folder %s, device %s, %s", folder, device, distributed.describe())
        log.info("config\n%s", cfg.dump())
        for doubt in doubts:
            log.warning("%s", doubt)

    with held:
        _fit(cfg, folder, device, begin)
    return folder


def train_recipe_run(folder: Path, workers: int) -> None:
    """Train what `folder/configs.yaml` describes, or go on with it; its progress goes to `folder/progress.json`.

    Args:
        workers: most processes that load data. The samples do not depend on how many do.
    """
    with sole_user(folder):
        log_to_folder(folder, console=False)
        report_to(folder / "progress.json")
        config = load_config(folder / "configs.yaml")
        config.data["workers_per_gpu"] = min(config.data.get("workers_per_gpu", 0), workers)
        if newest := RunCheckpoints(folder).newest_intact():
            config["resume_from"] = str(newest)
            refuse_other_teachers(folder, config)
        _fit(config, folder)


def _fit(
    cfg: Config, folder: Path, device: torch.device | None = None, begin: Callable[[], None] = lambda: None
) -> None:
    seed = cfg.get("seed") or 0
    seed_everything(seed, cfg.get("deterministic", False))
    with hints_from(cfg), distributed.together():
        check_that_samples_return(cfg)
        model = build_model(cfg.model)
        read = model.training_inputs
        train_dataset = build_split(cfg.data, "train", seed, read)
        val_dataset = build_split(cfg.data, "val", 0, model.inputs, test_mode=True) if cfg.data.get("val") else None
        check_data(train_dataset, read, "data.train")
        if val_dataset is not None:
            asked_tasks(model, val_dataset)
            check_data(val_dataset, model.inputs, "data.val", scored=True)
        parameters = sum(p.numel() for p in model.parameters())
        get_logger().info("%d training samples, %d parameters", len(train_dataset), parameters)
        trainer = Trainer(model, train_dataset, val_dataset, cfg, folder, device)

    @functools.cache
    def begin_and_record() -> None:
        begin()
        write_record(folder, cfg, trainer.device)

    trainer.fit(begin_and_record)


def predict_split(
    cfg: Config,
    data: Mapping[str, Any],
    split: str,
    checkpoint: str | Path,
    device: torch.device,
    begin: Callable[[], None],
    words: Sequence[str] = (),
) -> tuple[Any, Results | None, LoadReport]:
    """What the model of `cfg` with the weights of `checkpoint` predicts, and what was loaded.

    Args:
        data, split: see `build_split`.
        begin: called once the weights are loaded.
        words: what is predicted, see `asked_tasks`.

    Returns:
        The data set; what scoring keeps of its samples, see `predict`; and the report.

    Raises:
        FileNotFoundError: no such file.
        ValueError: settings that contradict each other, weights that do not fit the model, or a sample is damaged.
    """
    doubts = check_agreement(cfg, checkpoint)
    with hints_from(cfg), distributed.together():
        model = build_model(cfg.model)
        dataset = build_split(data, split, 0, model.inputs, test_mode=True)
        asked_tasks(model, dataset, words)
        check_data(dataset, model.inputs, "the data set to test on")
        report = load_checkpoint(model, checkpoint)
        if len(dataset):
            dataset[0]  # a pipeline that cannot work, or a broken file, leaves nothing behind
    if changed := model_changes(report.metadata.get("model_config"), cfg.model):
        doubts.append(
            f"{checkpoint} was trained with another model ({changed}); to test that one, give its run's configs.yaml"
        )
    begin()
    for doubt in doubts:
        get_logger().warning("%s", doubt)
    get_logger().info("loaded %s", report)
    workers = cfg.data.get("workers_per_gpu", 0)
    get_logger().info("%s", distributed.share_cores(workers))
    results = predict(
        model.to(device),
        dataset,
        device,
        batch_size=cfg.data.get("samples_per_gpu", 1),
        workers=workers,
        precision=cfg.get("precision") or "auto",
        words=words,
    )
    return dataset, results, report
