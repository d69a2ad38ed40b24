"""Filling the folder of a distillation's stored teacher answers ahead of its trainings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mmdet3d.config import Config
from mmdet3d.datasets import MixedDataset, build_split
from mmdet3d.distill import Distiller, StoredTeacher
from mmdet3d.distill.adapters import unadapted
from mmdet3d.engine import distributed
from mmdet3d.engine.agreement import check_agreement
from mmdet3d.engine.data import TrainSampler, batches, build_loader
from mmdet3d.engine.settings import Settings, autocast_dtype
from mmdet3d.models import build_model

__all__ = ["check_that_samples_return", "store_answers"]


def check_that_samples_return(cfg: Mapping[str, Any]) -> None:
    """Load one sample where a teacher's answers are to be kept and `views` is not set, before any model is built.

    Raises:
        ValueError: it is augmented anew in every epoch, so that no answer would be asked for again.
    """
    model = cfg.get("model")
    named = model if isinstance(model, Mapping) else {}
    blocks = {"teacher": named.get("teacher")}
    blocks |= {f"teachers.{name}": block for name, block in (named.get("teachers") or {}).items()}
    keeping = [key for key, block in blocks.items() if _keeps_answers(block)]
    train = (cfg.get("data") or {}).get("train") or {}
    if not keeping or (train.get("dataset") or train).get("views"):
        return
    # No sensor is needed to see whether a sample comes back, so that a set that lacks some can be looked at.
    dataset = build_split(cfg["data"], "train", cfg.get("seed") or 0, sensors=())
    if len(dataset) and (sample := dataset[0]).view is None:
        raise ValueError(
            f"model.{keeping[0]}.answers stores answers, but sample {sample.token} is augmented anew in every epoch "
            "and would never be asked about again; set views to the number of fixed augmentations per sample (such as "
            f"4), or model.{keeping[0]}.answers to null"
        )


def _keeps_answers(block: Any) -> bool:
    """Of a teacher's block: a model is asked, and what it answers is kept."""
    return (
        isinstance(block, Mapping) and bool(block.get("answers")) and bool(block.keys() & {"config", "model", "type"})
    )


def store_answers(cfg: Config) -> list[Path]:
    """Ask the teachers that keep answers about every view of every training sample.

    What is stored already is not asked again. Frames of `data.unlabelled` are among them, unless all losses need
    labels.

    Every rank must call; they share the samples.

    Args:
        cfg: of a distillation with `model.teacher.answers`, or `model.teachers.NAME.answers`; scores are not looked at.

    Returns:
        The folder of each of those teachers.

    Raises:
        ValueError: another config, or samples that do not come back; see also `StoredTeacher`.
        FileNotFoundError: see `Distiller.setup_training`.
    """
    settings = Settings.from_config(cfg)
    check_agreement(cfg)
    check_that_samples_return(cfg)
    device = distributed.init()
    model = build_model(cfg.model)
    if not isinstance(model, Distiller) or not model.losses:
        raise ValueError(
            f"the config describes a {cfg.model['type']} without distillation losses; only with them is a teacher asked"
        )
    model.to(device).setup_training(None)
    stored = [each for each in map(unadapted, model.instructors.values()) if isinstance(each, StoredTeacher)]
    if not stored:
        raise ValueError("model.teacher.answers names no folder; pass --model.teacher.answers FOLDER")
    dataset = build_split(cfg.data, "train", settings.seed, model.training_inputs)
    if isinstance(dataset, MixedDataset) and all(loss.needs_labels for loss in model.losses.values()):
        dataset = dataset.labelled
    rank, world = distributed.rank(), distributed.world_size()
    sampler = TrainSampler(len(dataset), settings.data.samples_per_gpu, settings.seed, rank, world)
    loader = build_loader(dataset, sampler, settings.data.workers_per_gpu, settings.seed)
    dtype = autocast_dtype(settings.precision, device)
    views = min(dataset.views or 1, settings.max_epochs)
    with (
        torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None),
        tqdm(total=views * len(sampler), desc="answers", unit="batch", disable=not distributed.is_main()) as bar,
    ):
        for view in range(views):
            sampler.set_epoch(view)
            for batch in batches(loader):
                model.taught(batch.to(device))
                bar.update()
        return [each.kept_on(device).folder for each in stored]
