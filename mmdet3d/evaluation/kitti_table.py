"""KITTI's average precisions under flat names, and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mmdet3d.evaluation.benchmark import Benchmark
from mmdet3d.evaluation.control import Column
from mmdet3d.evaluation.kitti import DIFFICULTIES, LOOSE, METRICS, STRICT, Metrics

__all__ = ["benchmark", "format_metrics", "metrics_by_name"]

_LOOSE_METRICS = ("bev", "3d")
_KINDS = ("R40", "R11")


def metrics_by_name(strict: Metrics, loose: Metrics, classes: Sequence[str]) -> dict[str, float]:
    """`Car/3d/R40/moderate` and the like, at the benchmark's overlaps; `Car/3d@0.5/R40/moderate` at the looser ones.

    Of several classes also the means, `mean/3d/R40/moderate` and `mean/3d@loose/R40/moderate`.
    """
    flat: dict[str, float] = {}
    for name in classes:
        flat |= _flatten(name, {metric: strict[name][metric] for metric in METRICS})
        flat |= _flatten(name, {f"{metric}@{LOOSE[name][metric]:g}": loose[name][metric] for metric in _LOOSE_METRICS})
    if len(classes) > 1:
        flat |= _flatten("mean", {metric: _mean([strict[name][metric] for name in classes]) for metric in METRICS})
        means = {f"{metric}@loose": _mean([loose[name][metric] for name in classes]) for metric in _LOOSE_METRICS}
        flat |= _flatten("mean", means)
    return flat


def benchmark(classes: Sequence[str]) -> Benchmark:
    """What is reported where `classes` are scored; the first of them is what counts most."""
    first = classes[0]
    headings = {"3d": "3D", "bev": "BEV", "bbox": "2D", f"3d@{LOOSE[first]['3d']:g}": f"3D ({LOOSE[first]['3d']:g})"}
    columns = [Column(f"{first}/{key}/R40/moderate", f"{first} {name}") for key, name in headings.items()]
    return Benchmark(_metric_names(classes), columns[0].key, columns, format_metrics)


def _metric_names(classes: Sequence[str]) -> list[str]:
    """The names that `metrics_by_name` gives."""
    nothing = {metric: dict.fromkeys(_KINDS, [0.0] * len(DIFFICULTIES)) for metric in METRICS}
    return list(metrics_by_name(dict.fromkeys(classes, nothing), dict.fromkeys(classes, nothing), classes))


def format_metrics(metrics: Mapping[str, float]) -> str:
    """What `metrics_by_name` returns as one table: a row per class and metric, a column per difficulty and kind of AP.

    Behind a metric stands the overlap that a match must exceed.
    """
    columns = [f"{kind}/{difficulty}" for kind in _KINDS for difficulty in DIFFICULTIES]
    kinds = "".join(f"{f'AP_{kind}':^{10 * len(DIFFICULTIES)}}" for kind in _KINDS)
    lines = [f"{'percent':<22}{kinds}".rstrip()]
    lines.append(f"{'':<22}" + "".join(f"{difficulty:>10}" for _ in _KINDS for difficulty in DIFFICULTIES))
    rows = dict.fromkeys(tuple(key.split("/")[:2]) for key in metrics if key.count("/") == 3)
    above = None
    for name, metric in rows:
        overlap = STRICT.get(name, {}).get(metric)
        shown = metric if overlap is None else f"{metric}@{overlap:g}"
        values = "".join(f"{metrics[f'{name}/{metric}/{column}']:>10.2f}" for column in columns)
        lines.append(f"{'' if name == above else name:<12}{shown:<10}{values}")
        above = name
    return "\n".join(lines)


def _mean(tables: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """Over classes, by kind of average precision and difficulty."""
    return {kind: np.mean([table[kind] for table in tables], axis=0).tolist() for kind in tables[0]}


def _flatten(name: str, metrics: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, float]:
    return {
        f"{name}/{metric}/{kind}/{difficulty}": value
        for metric, kinds in metrics.items()
        for kind, values in kinds.items()
        for difficulty, value in zip(DIFFICULTIES, values, strict=True)
    }
