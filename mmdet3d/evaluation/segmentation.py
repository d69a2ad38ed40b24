"""Intersection over union of classes on a raster, as BEVFusion (MIT) scores the map of nuScenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from mmdet3d.evaluation.benchmark import Benchmark
from mmdet3d.evaluation.control import Column
from mmdet3d.structures import Batch, BEVMasks

__all__ = ["MAIN", "THRESHOLDS", "MapSegmentation", "benchmark", "count", "format_metrics", "score_counts"]

THRESHOLDS = (0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65)
MAIN = "map/mean/iou@max"
_FIXED = "0.50"  # a threshold that was not chosen on the data that is scored


def count(probabilities: Tensor, truth: Tensor) -> Tensor:
    """(C, 7, 3) int64: true positives, false positives and false negatives at each threshold.

    Args:
        probabilities: (C, X, Y); a cell is positive from the threshold on.
        truth: (C, X, Y) bool.
    """
    thresholds = torch.tensor(THRESHOLDS, device=probabilities.device)
    found = probabilities.float()[:, None] >= thresholds[:, None, None]
    wanted = truth.bool()[:, None]
    parts = [found & wanted, found & ~wanted, ~found & wanted]
    return torch.stack([part.sum((2, 3)) for part in parts], dim=-1)


def score_counts(counts: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """Metrics of counts (C, 7, 3) that were added up over all samples.

    Returns:
        `map/CLASS/iou@max` and the IoU at every threshold; `map/mean/iou@max`, the mean over classes of their best
        threshold's; and `map/mean/iou@0.50`, that of one threshold for all. A class that is nowhere and that is found
        nowhere has 0.
    """
    positives, false, missed = counts.double().unbind(-1)
    iou = positives / (positives + false + missed + 1e-7)
    metrics: dict[str, float] = {}
    for name, values in zip(classes, iou.tolist(), strict=True):
        metrics[f"map/{name}/iou@max"] = max(values)
        metrics |= {f"map/{name}/iou@{t:.2f}": value for t, value in zip(THRESHOLDS, values, strict=True)}
    metrics[MAIN] = iou.max(1).values.mean().item()
    metrics[f"map/mean/iou@{_FIXED}"] = iou[:, THRESHOLDS.index(float(_FIXED))].mean().item()
    return metrics


class MapSegmentation:
    """Of each sample only how many cells are right and wrong is kept.

    Args:
        classes: of the map.
    """

    word: ClassVar[str] = "map"

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)

    def keep(self, answers: Sequence[BEVMasks], batch: Batch) -> list[Tensor]:
        """(C, 7, 3) of each sample.

        Raises:
            ValueError: no ground truth, or of other classes or another raster.
        """
        truth: list[BEVMasks] = batch.require("masks", "the evaluation of the map")
        for found, wanted in zip(answers, truth, strict=True):
            if found.classes != wanted.classes or not found.grid.matches(wanted.grid):
                raise ValueError(
                    f"the map that is predicted has {', '.join(found.classes)} over {found.grid}, the one that is "
                    f"loaded {', '.join(wanted.classes)} over {wanted.grid}; give both the same classes and bounds"
                )
        return [count(f.values, w.values).cpu() for f, w in zip(answers, truth, strict=True)]

    def score(self, kept: Sequence[Tensor], out_dir: Path) -> dict[str, float]:
        return score_counts(torch.stack(list(kept)).sum(0), self.classes)


def benchmark(classes: Sequence[str]) -> Benchmark:
    """What is reported where these classes of the map are scored."""
    names = list(score_counts(torch.zeros(len(classes), len(THRESHOLDS), 3), classes))
    columns = [Column(MAIN, "mIoU"), *(Column(f"map/{name}/iou@max", name.replace("_", " ")) for name in classes)]
    return Benchmark(names, MAIN, columns, format_metrics)


def format_metrics(metrics: Mapping[str, float]) -> str:
    """A row per class with its best IoU and those at all thresholds, percent."""
    names = [key.split("/")[1] for key in metrics if key.startswith("map/") and key.endswith("/iou@max")]
    lines = [f"{'map IoU, percent':<22}{'max':>8}" + "".join(f"{t:>8.2f}" for t in THRESHOLDS)]
    for name in names:
        keys = ["max", *(f"{t:.2f}" for t in THRESHOLDS)]
        shown = [metrics.get(f"map/{name}/iou@{key}") for key in keys]
        lines.append(f"{name:<22}" + "".join(f"{'':>8}" if v is None else f"{100 * v:>8.2f}" for v in shown))
    return "\n".join(lines)
