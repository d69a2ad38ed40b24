"""Prediction over a data set, on any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mmdet3d.engine import distributed
from mmdet3d.engine.data import DetectionDataset, EvaluationSampler, batches, build_loader
from mmdet3d.engine.logging import get_logger
from mmdet3d.engine.settings import autocast_dtype
from mmdet3d.models.detectors.base import Trainable
from mmdet3d.progress import progress_bar
from mmdet3d.shell import command
from mmdet3d.structures import Detections3D

__all__ = ["as_records", "evaluate", "predict", "say_if_nothing_is_found"]


@torch.no_grad()
def predict(
    model: Trainable,
    dataset: DetectionDataset,
    device: torch.device,
    batch_size: int = 1,
    workers: int = 0,
    precision: str = "auto",
    check: Callable[[], None] = lambda: None,
) -> list[Detections3D] | None:
    """Detections of every sample in data-set order, on the CPU of rank 0; None on the other ranks.

    The ranks share the samples without repeating any, so the result is that of one process whatever their number. The
    model is evaluated in eval mode and gets its mode back.

    Args:
        model: on `device`.
        workers: loader processes at most, see `machine.share`.
        check: called after each batch; what it raises ends the evaluation.
    """
    distributed.broadcast_buffers(model)
    sampler = EvaluationSampler(len(dataset), batch_size, distributed.rank(), distributed.world_size())
    loader = build_loader(dataset, sampler, min(distributed.share_cores(workers).workers, len(sampler)))
    modes = {m: m.training for m in model.modules()}
    model.eval()
    found: list[Detections3D] = []
    error = None
    dtype = autocast_dtype(precision, device)
    bar = progress_bar(total=len(sampler.indices), desc="evaluate", unit="sample", disable=not distributed.is_main())
    try:
        with bar:
            for batch in batches(loader):
                with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
                    detections = model.predict(batch.to(device))
                assert len(detections) == len(batch), f"{type(model).__name__}.predict lost samples"
                found += [d.to("cpu") for d in detections]
                bar.update(len(batch))
                check()
    except (ValueError, FileNotFoundError) as caught:
        error = caught
    finally:
        for module, training in modes.items():
            module.training = training
    distributed.raise_everywhere(error)
    return _in_order(distributed.gather_objects((sampler.indices, found)), len(dataset))


def _in_order(shares: list[tuple[list[int], list[Detections3D]]] | None, size: int) -> list[Detections3D] | None:
    if shares is None:
        return None
    ordered: list[Any] = [None] * size
    for indices, detections in shares:
        for index, value in zip(indices, detections, strict=True):
            ordered[index] = value
    return ordered


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
    detections = predict(model, dataset, device, **options)
    return distributed.on_main(lambda: dict(dataset.evaluate(detections or [], Path(out_dir))))


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
            "%s is 0 after epoch %d, so nothing that was predicted meets an object: look at some frames with %s, "
            "compare the model's raster and classes with the data set's, and lower optimizer.lr if the loss does not "
            "fall",
            main,
            epoch,
            command("visualize"),
        )
