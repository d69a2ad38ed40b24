"""Prediction over a data set, on any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mmdet3d.engine import distributed
from mmdet3d.engine.data import DetectionDataset, EvaluationSampler, batches, build_loader
from mmdet3d.engine.logging import get_logger
from mmdet3d.engine.settings import autocast_dtype
from mmdet3d.evaluation.tasks import Task, tasks_of
from mmdet3d.models.detectors.base import Trainable
from mmdet3d.progress import progress_bar
from mmdet3d.shell import command
from mmdet3d.structures import Detections3D

__all__ = ["as_records", "asked_tasks", "evaluate", "predict", "say_if_nothing_is_found", "score"]

Results = dict[str, list[Any]]  # by task what its scoring keeps of every sample, in data-set order


def asked_tasks(model: Trainable, dataset: DetectionDataset, words: Collection[str] = ()) -> dict[str, Task]:
    """What is scored, by the names of the heads.

    Args:
        words: of `--eval`; none for all that the data set scores.

    Raises:
        ValueError: a word that the data set does not score, or a task that the model has no head for.
    """
    known = tasks_of(dataset)
    unknown = [word for word in words if word not in {task.word for task in known.values()}]
    if unknown:
        scored = ", ".join(f"{task.word} (head {name})" for name, task in known.items())
        raise ValueError(f"--eval {' '.join(unknown)}: the data set scores {scored}; `tasks` of its block says what")
    asked = {name: task for name, task in known.items() if not words or task.word in words}
    missing = [name for name in asked if name not in model.tasks]
    if missing:
        raise ValueError(
            f"the data set scores {', '.join(missing)}, but the model has no such head (heads: "
            f"{', '.join(model.tasks)}); name what is to be scored in `tasks` of data.val and data.test"
        )
    return asked


@torch.no_grad()
def predict(
    model: Trainable,
    dataset: DetectionDataset,
    device: torch.device,
    batch_size: int = 1,
    workers: int = 0,
    precision: str = "auto",
    check: Callable[[], None] = lambda: None,
    words: Collection[str] = (),
) -> Results | None:
    """What scoring keeps of every sample, in data-set order, on the CPU of rank 0; None on the other ranks.

    The ranks share the samples without repeating any, so the result is that of one process whatever their number. The
    model is evaluated in eval mode and gets its mode back.

    Args:
        model: on `device`.
        workers: loader processes at most, see `machine.share`.
        check: called after each batch; what it raises ends the evaluation.
        words: see `asked_tasks`.
    """
    tasks = asked_tasks(model, dataset, words)
    distributed.broadcast_buffers(model)
    sampler = EvaluationSampler(len(dataset), batch_size, distributed.rank(), distributed.world_size())
    loader = build_loader(dataset, sampler, min(distributed.share_cores(workers).workers, len(sampler)))
    modes = {m: m.training for m in model.modules()}
    model.eval()
    found: Results = {name: [] for name in tasks}
    error = None
    dtype = autocast_dtype(precision, device)
    bar = progress_bar(total=len(sampler.indices), desc="evaluate", unit="sample", disable=not distributed.is_main())
    try:
        with bar:
            for batch in batches(loader):
                batch = batch.to(device)
                with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
                    answers = model.predict_tasks(batch, tasks)
                for name, task in tasks.items():
                    assert len(answers[name]) == len(batch), f"{type(model).__name__}.predict lost samples"
                    found[name] += task.keep(answers[name], batch)
                bar.update(len(batch))
                check()
    except (ValueError, FileNotFoundError) as caught:
        error = caught
    finally:
        for module, training in modes.items():
            module.training = training
    distributed.raise_everywhere(error)
    return _in_order(distributed.gather_objects((sampler.indices, found)), len(dataset))


def _in_order(shares: list[tuple[list[int], Results]] | None, size: int) -> Results | None:
    if shares is None:
        return None
    ordered: Results = {name: [None] * size for name in shares[0][1]}
    for indices, found in shares:
        for name, values in found.items():
            for index, value in zip(indices, values, strict=True):
                ordered[name][index] = value
    return ordered


def score(
    dataset: DetectionDataset, results: Results, out_dir: str | Path, words: Collection[str] = ()
) -> dict[str, float]:
    """Metrics of the tasks in `results`, or of those with one of these words; files go to `out_dir`."""
    metrics: dict[str, float] = {}
    for name, task in tasks_of(dataset).items():
        if name in results and (not words or task.word in words):
            metrics |= task.score(results[name], Path(out_dir))
    return metrics


def evaluate(
    model: Trainable, dataset: DetectionDataset, out_dir: str | Path, device: torch.device, **options: Any
) -> dict[str, float]:
    """Metrics of `model` on `dataset`, the same on every rank; the data set writes its files into `out_dir`.

    Args:
        options: `batch_size`, `workers`, `precision`, `check` of `predict`.

    Raises:
        ValueError: the data set is empty, or evaluation fails on it.
    """
    if len(dataset) == 0:
        raise ValueError("the data set to evaluate is empty; check its ann_file")
    results = predict(model, dataset, device, **options)
    return distributed.on_main(lambda: score(dataset, results or {}, out_dir))


def as_records(detections: Sequence[Detections3D], tokens: Sequence[str]) -> list[dict[str, Any]]:
    """Detections as plain NumPy, for `tools/test.py --out`: token, boxes (N, 9) as `Boxes3D`, scores, labels."""
    return [
        {"token": t, "boxes": d.boxes.tensor.numpy(), "scores": d.scores.numpy(), "labels": d.labels.numpy()}
        for t, d in zip(tokens, detections, strict=True)
    ]


def say_if_nothing_is_found(metrics: Mapping[str, float], main: str | None, epoch: int) -> None:
    """Warn, with what to look at, if the data set's main metric is 0 after `epoch` epochs."""
    if main is not None and metrics.get(main) == 0:
        get_logger().warning(
            "%s is 0 after epoch %d, so nothing that was predicted meets the ground truth: look at some frames with "
            "%s, compare the model's raster and classes with the data set's, and lower optimizer.lr if the loss does "
            "not fall",
            main,
            epoch,
            command("visualize"),
        )
