"""nuScenes detection: the official metrics, by the devkit."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdet3d.evaluation.benchmark import Benchmark
from mmdet3d.evaluation.control import Column
from mmdet3d.evaluation.conventions import conventions_at_fault, match_entries

if TYPE_CHECKING:
    from nuscenes import NuScenes

__all__ = [
    "CLASSES",
    "COLUMNS",
    "DISTANCES",
    "ERRORS",
    "Scored",
    "benchmark",
    "flat_metrics",
    "format_metrics",
    "score_results",
]

logger = logging.getLogger(__name__)

# The detection classes in the order of the labels (that of the published configs and checkpoints).
CLASSES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)

DISTANCES = (0.5, 1.0, 2.0, 4.0)
ERRORS = {"trans_err": "mATE", "scale_err": "mASE", "orient_err": "mAOE", "vel_err": "mAVE", "attr_err": "mAAE"}
COLUMNS = (
    Column("object/map", "mAP"),
    Column("object/nds", "NDS"),
    Column("object/mATE", "mATE", False),
    Column("object/mASE", "mASE", False),
    Column("object/mAOE", "mAOE", False),
    Column("object/mAVE", "mAVE", False),
    Column("object/mAAE", "mAAE", False),
)
_FRAMES, _FRAMES_OF_SPLIT = "object/frames", "object/frames_of_split"


@dataclass(frozen=True)
class Scored:
    """An evaluated submission.

    Args:
        metrics: see `score_results`.
        truth, found: by sample token the devkit's boxes that count, in the global frame.
    """

    metrics: dict[str, float]
    truth: dict[str, list[Any]]
    found: dict[str, list[Any]]


def score_results(
    tables: NuScenes,
    results: Mapping[str, list[dict[str, Any]]],
    meta: dict[str, Any],
    split: str,
    frames_of_split: int,
    out_dir: Path,
    source: str,
    classes: Collection[str] | None = None,
) -> Scored:
    """Official nuScenes detection metrics (devkit, `detection_cvpr_2019`) of the samples in `results`.

    Says what convention the boxes seem to be in if it is not that of nuScenes.

    Args:
        tables: of the devkit.
        results, meta: of a submission.
        split: what the devkit calls the samples.
        frames_of_split: how many there are, of which `results` may have a part.
        out_dir: where `metrics_summary.json` and `metrics_details.json` go.
        source: what messages call the results.
        classes: that were looked for; None for all ten.

    Returns:
        `object/nds`, `object/map`, `object/mATE`, ..., `object/{class}_ap_dist_{0.5, 1.0, 2.0, 4.0}` and
        `object/{class}_{trans, scale, orient, vel, attr}_err`; NaN where an error is not defined for a class. They are
        the benchmark's, which counts all ten classes whatever there is to find. Besides, `object/{class}_objects`, how
        many of each of `classes` there are to find, and `object/map_present`, the mean over those of which there is one
        (NaN if there is none). Where not all samples of the split are scored, also `object/frames` and
        `object/frames_of_split`.

    Raises:
        ValueError: an entry that the devkit refuses, or there is nothing to score.
    """
    summary, truth, found = _official_summary(tables, results, meta, split, out_dir, source)
    for fault in conventions_at_fault(match_entries(truth, results)):
        logger.warning("%s: %s", source, fault)
    names = [box.detection_name for boxes in truth.values() for box in boxes]
    wanted = [name for name in summary["label_aps"] if classes is None or name in classes]
    metrics = flat_metrics(summary, {name: names.count(name) for name in wanted})
    if len(results) < frames_of_split:
        metrics |= {_FRAMES: float(len(results)), _FRAMES_OF_SPLIT: float(frames_of_split)}
    return Scored(metrics, truth, found)


def _official_summary(
    tables: Any, results: Mapping[str, list], meta: dict[str, Any], split: str, out_dir: Path, source: str
) -> tuple[dict[str, Any], dict[str, list[Any]], dict[str, list[Any]]]:
    """The devkit's summary, and by sample token the objects that it looks for and the detections that it counts."""
    from nuscenes.eval.common import loaders
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.detection.data_classes import DetectionBox
    from nuscenes.eval.detection.evaluate import DetectionEval

    class SampleEval(DetectionEval):
        """The devkit's evaluation on given samples; reads the submission once, and samples may lack detections."""

        def __init__(self) -> None:
            self.nusc, self.cfg, self.meta, self.eval_set = tables, config_factory("detection_cvpr_2019"), meta, split
            self.verbose, self.output_dir = False, os.fspath(out_dir)
            self.sample_tokens = list(results)
            self.gt_boxes = self._filtered(loaders.load_gt_of_sample_tokens(tables, self.sample_tokens, DetectionBox))
            self.pred_boxes = self._filtered(EvalBoxes.deserialize(dict(results), DetectionBox))

        def _filtered(self, boxes: EvalBoxes) -> EvalBoxes:
            loaders.add_center_dist(tables, boxes)
            return loaders.filter_eval_boxes(tables, boxes, self.cfg.class_range) if boxes.all else boxes

    out_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            evaluation = SampleEval()
        except (AssertionError, KeyError, TypeError) as error:
            raise ValueError(f"{source} has an entry that the nuScenes devkit refuses: {error!r}") from error
        if not evaluation.gt_boxes.all:
            raise ValueError(f"the samples to score (split {split!r}) have no annotated object within evaluation range")
        truth, found = ({t: boxes[t] for t in results} for boxes in (evaluation.gt_boxes, evaluation.pred_boxes))
        return evaluation.main(render_curves=False), truth, found


def flat_metrics(summary: Mapping[str, Any], objects: Mapping[str, int]) -> dict[str, float]:
    """A summary in the devkit's words, and how many objects there are to find, as `score_results` names them."""
    metrics: dict[str, float] = {}
    for name, aps in summary["label_aps"].items():
        metrics |= {f"object/{name}_ap_dist_{float(d)}": float(ap) for d, ap in aps.items()}
        metrics |= {f"object/{name}_{e}": float(v) for e, v in summary["label_tp_errors"][name].items()}
    metrics |= {f"object/{short}": float(summary["tp_errors"][e]) for e, short in ERRORS.items()}
    metrics["object/nds"] = float(summary["nd_score"])
    metrics["object/map"] = float(summary["mean_ap"])
    metrics |= {f"object/{name}_objects": float(count) for name, count in objects.items()}
    present = [float(np.mean(list(summary["label_aps"][name].values()))) for name, count in objects.items() if count]
    metrics["object/map_present"] = float(np.mean(present)) if present else float("nan")
    return metrics


def benchmark(classes: Sequence[str], known: Sequence[str] = CLASSES) -> Benchmark:
    """What `score_results` reports of a whole split where `classes` are looked for; `known` are the benchmark's."""
    return Benchmark(_metric_names(classes, known), "object/nds", COLUMNS, format_metrics)


def _metric_names(classes: Sequence[str], known: Sequence[str]) -> list[str]:
    errors = dict.fromkeys(ERRORS, 0.0)
    summary = {
        "label_aps": {name: dict.fromkeys(DISTANCES, 0.0) for name in known},
        "label_tp_errors": dict.fromkeys(known, errors),
        "tp_errors": errors,
        "nd_score": 0.0,
        "mean_ap": 0.0,
    }
    return list(flat_metrics(summary, dict.fromkeys(classes, 1)))


def format_metrics(metrics: Mapping[str, float]) -> str:
    """The familiar nuScenes block with a table of classes, from the metrics of `score_results`."""
    part = f"scored on {metrics[_FRAMES]:.0f} of {metrics[_FRAMES_OF_SPLIT]:.0f} frames" if _FRAMES in metrics else ""
    lines = [*filter(None, [part]), f"mAP: {metrics['object/map']:.4f}"]
    lines += [f"{short}: {metrics[f'object/{short}']:.4f}" for short in ERRORS.values()]
    lines.append(f"NDS: {metrics['object/nds']:.4f}")
    names = _class_names(metrics)
    # A class that was not looked for has no count; metrics of older files have none at all.
    counted = any(f"object/{name}_objects" in metrics for name in names)
    absent = [name for name in names if counted and not metrics.get(f"object/{name}_objects")]
    if absent:
        lines.append(
            f"mAP over the {len(names) - len(absent)} classes that were looked for and are there: "
            f"{metrics['object/map_present']:.4f} (mAP and NDS count 0 for {', '.join(absent)}, marked -)"
        )
    lines += ["", "Per-class results:"]
    lines.append(_row("Object Class", ["AP", "ATE", "ASE", "AOE", "AVE", "AAE"]))
    for name in names:
        if name in absent:
            lines.append(_row(name, ["-"] * 6))
            continue
        ap = float(np.mean([metrics[f"object/{name}_ap_dist_{d}"] for d in DISTANCES]))
        values = [ap, *(metrics[f"object/{name}_{e}"] for e in ERRORS)]
        lines.append(_row(name, [f"{v:.3f}" for v in values]))
    return "\n".join(lines)


def _class_names(metrics: Iterable[str]) -> list[str]:
    suffix = f"_ap_dist_{DISTANCES[0]}"
    return [k.removeprefix("object/").removesuffix(suffix) for k in metrics if k.endswith(suffix)]


def _row(name: str, cells: Iterable[str]) -> str:
    return f"{name:<22}" + "  ".join(f"{c:<6}" for c in cells).rstrip()
