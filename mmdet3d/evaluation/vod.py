"""View-of-Delft: KITTI's average precision in two regions, at looser overlaps and without levels of difficulty.

The rules are those of the authors' evaluator. Where its variants differ, overlaps are those of exact polygons, with
which the evaluation server's variant agrees (docs/deviations.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mmdet3d.evaluation.benchmark import Benchmark
from mmdet3d.evaluation.control import Column
from mmdet3d.evaluation.kitti import candidates, curves, heights
from mmdet3d.evaluation.kitti_objects import Objects
from mmdet3d.evaluation.kitti_overlap import pair_up

__all__ = ["CLASSES", "METRICS", "REGIONS", "SATURATED", "benchmark", "evaluate", "format_metrics"]

CLASSES = ("Car", "Pedestrian", "Cyclist")
METRICS = ("3d", "bev", "aos")
# Entire annotated area; driving corridor.
REGIONS = {"entire_area": "entire annotated area", "roi": "driving corridor"}
SATURATED = 41  # objects of a class from which on an AP of 100 can be reached

_HEIGHT = 40  # pixels that an object must exceed
_SIDE, _AHEAD = 4.0, 25.0  # metres to either side of the camera, and ahead of it: the driving corridor
# IoU that a match must exceed; orientation is scored on matches in the image.
_OVERLAPS = {
    "Car": {"bbox": 0.7, "bev": 0.5, "3d": 0.5},
    "Pedestrian": {"bbox": 0.5, "bev": 0.25, "3d": 0.25},
    "Cyclist": {"bbox": 0.5, "bev": 0.25, "3d": 0.25},
}


def evaluate(labels: Sequence[Objects], results: Sequence[Objects]) -> dict[str, float]:
    """Average precision of the detections `results[i]` of frame i, of which `labels[i]` is the truth.

    Both are in the camera frame of KITTI files; both need 2-D boxes, by whose height objects and detections count.

    Returns:
        For both `REGIONS`: `{region}/{class}/{3d, bev, aos}` in percent, the mean of the precision at 11 of 41 recalls,
        `{region}/mAP`, the mean of the three classes' `3d`, and `{region}/{class}/objects`, how many there are to find.
        The recalls that are sampled are at most as many as objects: of fewer than 41, even a perfect result has less
        than 100.

    Raises:
        ValueError: no frame, or different numbers of frames.
    """
    if len(labels) != len(results) or not labels:
        raise ValueError(f"as many frames of labels as of results are needed, got {len(labels)} and {len(results)}")
    pairs = pair_up(labels, results)
    metrics: dict[str, float] = {}
    for region in REGIONS:
        hard = (heights(pairs.labels) <= _HEIGHT) | _outside(pairs.labels, region)
        ignored = (np.abs(heights(pairs.results)) < _HEIGHT) | _outside(pairs.results, region)
        for name in CLASSES:
            for metric, minimum in _OVERLAPS[name].items():
                precision, similarity = curves(candidates(pairs, name, metric, minimum, hard, ignored))
                samples = similarity if metric == "bbox" else precision
                metrics[f"{region}/{name}/{'aos' if metric == 'bbox' else metric}"] = float(100 * samples[::4].mean())
            metrics[f"{region}/{name}/objects"] = float(((pairs.labels.names == name) & ~hard).sum())
        metrics[f"{region}/mAP"] = float(np.mean([metrics[f"{region}/{name}/3d"] for name in CLASSES]))
    return metrics


def _outside(objects: Objects, region: str) -> np.ndarray:
    """(N,) bool: not in the region, in which places behind the camera are, too."""
    x, _, z = objects.locations.T
    return (np.abs(x) > _SIDE) | (z > _AHEAD) if region == "roi" else np.zeros(len(objects), dtype=bool)


def benchmark() -> Benchmark:
    """What `evaluate` reports."""
    names = [f"{region}/{name}/{m}" for region in REGIONS for name in CLASSES for m in (*METRICS, "objects")]
    columns = [Column(f"{region}/mAP", f"mAP {title}") for region, title in REGIONS.items()]
    columns += [Column(f"entire_area/{name}/3d", f"{name} 3D") for name in CLASSES]
    return Benchmark([*(f"{region}/mAP" for region in REGIONS), *names], columns[0].key, columns, format_metrics)


def format_metrics(metrics: Mapping[str, float]) -> str:
    """What `evaluate` returns as one table: a row per class, the metrics of both regions beside each other."""
    lines = [f"{'percent':<12}" + "".join(f"{title:^32}" for title in REGIONS.values()).rstrip()]
    lines.append(f"{'':<12}" + "".join(f"{heading:>8}" for _ in REGIONS for heading in ("3D", "BEV", "AOS", "objects")))
    for name in CLASSES:
        cells = []
        for region in REGIONS:
            count = metrics[f"{region}/{name}/objects"]
            values = [metrics[f"{region}/{name}/{m}"] for m in METRICS]
            cells += [f"{value:>8.2f}" if count else f"{'-':>8}" for value in values] + [f"{count:>8.0f}"]
        lines.append(f"{name:<12}{''.join(cells)}")
    lines.append(f"{'mAP':<12}" + "".join(f"{metrics[f'{region}/mAP']:>8.2f}{'':<24}" for region in REGIONS).rstrip())
    if any(metrics[f"{region}/{name}/objects"] == 0 for region in REGIONS for name in CLASSES):
        lines.append("- nothing to find: counts 0 in the mean, as in the authors' evaluator")
    few = sorted({name for r in REGIONS for name in CLASSES if metrics[f"{r}/{name}/objects"] < SATURATED})
    if few:
        lines.append(f"of fewer than {SATURATED} objects (here {', '.join(few)}) no result reaches 100")
    return "\n".join(lines)
