"""Filling the folder of a distillation's stored teacher answers ahead of its trainings."""

from __future__ import annotations

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

__all__ = ["store_answers"]


def store_answers(cfg: Config) -> list[StoredTeacher]:
    """Ask the teachers that keep answers about every view of every training sample.

    What is stored already is not asked again. Frames of `data.unlabelled` are among them, unless all losses need
    labels.

    Every rank must call; they share the samples.

    Args:
        cfg: of a distillation with `model.teacher.answers`, or `model.teachers.NAME.answers`; scores are not looked at.

    Returns:
        Those teachers.

    Raises:
        ValueError: another config, or samples that do not come back; see also `StoredTeacher`.
        FileNotFoundError: see `Distiller.setup_training`.
    """
    settings = Settings.from_config(cfg)
    check_agreement(cfg)
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
    with tqdm(total=views * len(sampler), desc="answers", unit="batch", disable=not distributed.is_main()) as bar:
        for view in range(views):
            sampler.set_epoch(view)
            for batch in batches(loader):
                with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
                    model.taught(batch.to(device))
                bar.update()
    return stored
