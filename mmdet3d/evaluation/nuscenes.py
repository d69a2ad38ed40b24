"""nuScenes detection: detections to a submission file, and its official metrics."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmdet3d.evaluation.conventions import conventions_at_fault, match_entries
from mmdet3d.evaluation.nuscenes_tables import CLASSES, evaluation_split, load_tables, split_tokens
from mmdet3d.io.files import atomic_write
from mmdet3d.structures import Detections3D

__all__ = [
    "MODALITIES",
    "Scored",
    "evaluate_submission",
    "format_detections",
    "format_metrics",
    "metric_names",
    "score_submission",
    "write_submission",
]

logger = logging.getLogger(__name__)

MODALITIES = ("use_camera", "use_lidar", "use_radar", "use_map", "use_external")
MAX_BOXES = 500
MOVING = 0.2  # m/s, from which on an object counts as moving
DISTANCES = (0.5, 1.0, 2.0, 4.0)
_FRAMES, _FRAMES_OF_SPLIT = "object/frames", "object/frames_of_split"
ERRORS = {"trans_err": "mATE", "scale_err": "mASE", "orient_err": "mAOE", "vel_err": "mAVE", "attr_err": "mAAE"}

_STILL = {
    **dict.fromkeys(("car", "truck", "trailer", "construction_vehicle"), "vehicle.parked"),
    "bus": "vehicle.stopped",
    **dict.fromkeys(("motorcycle", "bicycle"), "cycle.without_rider"),
    "pedestrian": "pedestrian.standing",
}
_MOVING = {
    **dict.fromkeys(("car", "truck", "trailer", "construction_vehicle", "bus"), "vehicle.moving"),
    **dict.fromkeys(("motorcycle", "bicycle"), "cycle.with_rider"),
    "pedestrian": "pedestrian.moving",
}


# -- submission -----------------------------------------------------------------------------------------------------


def format_detections(
    detections: Detections3D, token: str, lidar2ego: np.ndarray, ego2global: np.ndarray, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Entries of one sample in a nuScenes submission (global frame).

    Boxes farther from the ego vehicle than the class's evaluation range are left out, then all but the 500 of highest
    score. The attribute follows from class and speed, as in CRKD: moving above 0.2 m/s.

    Args:
        detections: LiDAR frame.
        token: sample token.
        lidar2ego, ego2global: (4, 4) of the key-frame scan.
        classes: class name of each label.

    Raises:
        ValueError: a number that is not finite, a size that is not positive, or a label without a class.
    """
    boxes = detections.boxes.tensor.detach().cpu().double().numpy()
    scores = detections.scores.detach().cpu().double().numpy()
    labels = detections.labels.detach().cpu().numpy()
    _check(boxes, scores, labels, token, len(classes))
    names = [classes[k] for k in labels]

    ego = boxes[:, :3] @ lidar2ego[:3, :3].T + lidar2ego[:3, 3]
    ranges = _class_range()
    limit = np.array([ranges[n] for n in names])
    kept = np.flatnonzero(np.hypot(ego[:, 0], ego[:, 1]) <= limit)
    kept = kept[np.argsort(-scores[kept], kind="stable")][:MAX_BOXES]

    lidar2global = ego2global @ lidar2ego
    centers = ego @ ego2global[:3, :3].T + ego2global[:3, 3]
    rotations = _quaternions(lidar2global[:3, :3], boxes[:, 6])
    velocities = boxes[:, 7:9] @ lidar2global[:2, :2].T
    return [
        {
            "sample_token": token,
            "translation": centers[k].tolist(),
            "size": boxes[k, [4, 3, 5]].tolist(),
            "rotation": rotations[k].tolist(),
            "velocity": velocities[k].tolist(),
            "detection_name": names[k],
            "detection_score": float(scores[k]),
            "attribute_name": attribute(names[k], float(np.hypot(*velocities[k]))),
        }
        for k in kept
    ]


def attribute(name: str, speed: float) -> str:
    """The attribute that a class most likely has at `speed` m/s; empty for classes without attributes."""
    return (_MOVING if speed > MOVING else _STILL).get(name, "")


def write_submission(results: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path, **modality: bool) -> Path:
    """Write entries by sample token as a submission file; it is whole or absent.

    Args:
        results: sample token to entries of `format_detections`; every sample of the split, also those without entries.
        path: the JSON file.
        modality: what was used, by the names in `MODALITIES`; those not given are false.
    """
    meta = {name: bool(modality.get(name, False)) for name in MODALITIES}
    with atomic_write(path) as file:
        # Sample by sample: `json.dump` would encode each number in Python, `dumps` would hold the whole file in memory.
        file.write(f'{{"meta": {json.dumps(meta)}, "results": {{')
        for index, (token, entries) in enumerate(results.items()):
            file.write(f"{', ' if index else ''}{json.dumps(token)}: {json.dumps(entries)}")
        file.write("}}")
    return Path(path)


def _check(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, token: str, n_classes: int) -> None:
    bad = ~(np.isfinite(boxes).all(axis=1) & np.isfinite(scores))
    if bad.any():
        k = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"sample {token}: detection {k} is not finite (box {boxes[k].round(3).tolist()}, score {scores[k]}); "
            "the model diverged or its weights are not for this config"
        )
    if (boxes[:, 3:6] <= 0).any():
        k = int(np.flatnonzero((boxes[:, 3:6] <= 0).any(axis=1))[0])
        raise ValueError(f"sample {token}: detection {k} has a size that is not positive: {boxes[k, 3:6].tolist()}")
    if len(labels) and not 0 <= labels.min() <= labels.max() < n_classes:
        raise ValueError(f"sample {token}: labels {labels.min()} to {labels.max()} do not fit {n_classes} classes")


def _quaternions(rotation: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """(N, 4) w, x, y, z of `rotation` (3, 3) after a turn by each of `yaw` (N,) about z."""
    from scipy.spatial.transform import Rotation  # half a second that most imports of this module need not pay

    turn = Rotation.from_rotvec(np.outer(yaw, [0.0, 0.0, 1.0]))
    xyzw = (Rotation.from_matrix(rotation) * turn).as_quat().reshape(-1, 4)
    return xyzw[:, [3, 0, 1, 2]]


@functools.cache
def _class_range() -> Mapping[str, float]:
    from nuscenes.eval.common.config import config_factory

    return config_factory("detection_cvpr_2019").class_range


# -- official metrics -----------------------------------------------------------------------------------------------


def evaluate_submission(
    results_json: str | Path,
    dataroot: str | Path,
    version: str,
    split: str | None,
    out_dir: str | Path,
    tokens: Collection[str] | None = None,
    classes: Collection[str] | None = None,
) -> dict[str, float]:
    """Official nuScenes detection metrics (devkit, `detection_cvpr_2019`) of a submission file.

    Says what convention the boxes seem to be in if it is not that of nuScenes.

    Args:
        results_json: the submission.
        dataroot: nuScenes root.
        version: `v1.0-mini`, `v1.0-trainval`, or any version with a `splits.json`.
        split: a split of that version; None for its validation split.
        out_dir: where `metrics_summary.json` and `metrics_details.json` go.
        tokens: score these samples only; None for all of the split.
        classes: that were looked for; None for all ten.

    Returns:
        `object/nds`, `object/map`, `object/mATE`, ..., `object/{class}_ap_dist_{0.5, 1.0, 2.0, 4.0}` and
        `object/{class}_{trans, scale, orient, vel, attr}_err`; NaN where an error is not defined for a class. They are
        the benchmark's, which counts all ten classes whatever there is to find. Besides, `object/{class}_objects`, how
        many of each of `classes` there are to find, and `object/map_present`, the mean over those of which there is one
        (NaN if there is none). Where not all samples of the split are scored, also `object/frames` and
        `object/frames_of_split`.

    Raises:
        FileNotFoundError: the file, the tables or the splits are missing.
        ValueError: the file is no submission for these samples, or there is nothing to score.
    """
    return score_submission(results_json, dataroot, version, split, out_dir, tokens, classes).metrics


@dataclass(frozen=True)
class Scored:
    """An evaluated submission.

    Args:
        metrics: see `evaluate_submission`.
        truth, found: by sample token the devkit's boxes that count, in the global frame.
    """

    metrics: dict[str, float]
    truth: dict[str, list[Any]]
    found: dict[str, list[Any]]


def score_submission(
    results_json: str | Path,
    dataroot: str | Path,
    version: str,
    split: str | None,
    out_dir: str | Path,
    tokens: Collection[str] | None = None,
    classes: Collection[str] | None = None,
) -> Scored:
    """`evaluate_submission` with the boxes that were compared."""
    if version == "v1.0-test" or split is None:
        split = evaluation_split(dataroot, version)
    results, meta = read_submission(results_json)
    whole = wanted = split_tokens(dataroot, version, split)
    if tokens is not None:
        _check_tokens(set(tokens), set(whole), split)
        wanted = [t for t in whole if t in set(tokens)]
    missing = [t for t in wanted if t not in results]
    if missing:
        raise ValueError(
            f"{results_json} has no entry for {len(missing)} of {len(wanted)} samples of split {split!r} of {version}, "
            f"such as {missing[0]}; each sample needs one, if only an empty list (`tokens` scores some samples)"
        )
    results = {t: results[t] for t in wanted}
    source = str(results_json)
    summary, truth, found = _official_summary(
        load_tables(dataroot, version), results, meta, split, Path(out_dir), source
    )
    for fault in conventions_at_fault(match_entries(truth, results)):
        logger.warning("%s: %s", source, fault)
    names = [box.detection_name for boxes in truth.values() for box in boxes]
    wanted_classes = [name for name in summary["label_aps"] if classes is None or name in classes]
    counts = {} if len(wanted) == len(whole) else {_FRAMES: float(len(wanted)), _FRAMES_OF_SPLIT: float(len(whole))}
    metrics = _metrics(summary, {name: names.count(name) for name in wanted_classes}) | counts
    return Scored(metrics, truth, found)


def read_submission(path: str | Path) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Entries by sample token, and the `meta` block.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not JSON or lacks `results` or `meta`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"results file {path} does not exist")
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    for key in ("results", "meta"):
        if not isinstance(content, dict) or not isinstance(content.get(key), dict):
            raise ValueError(f"{path} is no nuScenes submission: it needs an object {key!r} at the top level")
    return content["results"], content["meta"]


def _check_tokens(tokens: set[str], known: set[str], split: str) -> None:
    if not tokens:
        raise ValueError("no sample to score was given")
    unknown = tokens - known
    if unknown:
        raise ValueError(f"{len(unknown)} samples to score are not in split {split!r}, such as {min(unknown)}")


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

    _check_entries(results, source)
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


def _check_entries(results: Mapping[str, list], source: str) -> None:
    for token, entries in results.items():
        if len(entries) > MAX_BOXES:
            raise ValueError(f"{source}: sample {token} has {len(entries)} boxes; nuScenes allows {MAX_BOXES}")
        for entry in entries:
            if entry.get("sample_token") != token:
                raise ValueError(f"{source}: an entry of sample {token} names sample {entry.get('sample_token')}")


def _metrics(summary: Mapping[str, Any], objects: Mapping[str, int]) -> dict[str, float]:
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


def metric_names(classes: Sequence[str]) -> list[str]:
    """What `evaluate_submission` reports of a whole split where `classes` are looked for."""
    errors = dict.fromkeys(ERRORS, 0.0)
    summary = {
        "label_aps": {name: dict.fromkeys(DISTANCES, 0.0) for name in CLASSES},
        "label_tp_errors": dict.fromkeys(CLASSES, errors),
        "tp_errors": errors,
        "nd_score": 0.0,
        "mean_ap": 0.0,
    }
    return list(_metrics(summary, dict.fromkeys(classes, 1)))


def format_metrics(metrics: Mapping[str, float]) -> str:
    """The familiar nuScenes block with a table of classes, from the dict of `evaluate_submission`."""
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
