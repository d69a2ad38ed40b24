"""nuScenes submissions: detections to such a file, and one scored by the official metrics."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdet3d.datasets.nuscenes.tables import evaluation_split, load_tables, split_tokens
from mmdet3d.evaluation.nuscenes import Scored, score_results
from mmdet3d.io.files import atomic_write, read_json
from mmdet3d.structures import Detections3D

__all__ = [
    "MODALITIES",
    "attribute",
    "evaluate_submission",
    "format_detections",
    "read_submission",
    "score_submission",
    "write_entries",
    "write_submission",
]

MODALITIES = ("use_camera", "use_lidar", "use_radar", "use_map", "use_external")
MAX_BOXES = 500
MOVING = 0.2  # m/s, from which on an object counts as moving

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


# -- writing -----------------------------------------------------------------------------------------------------


def format_detections(
    detections: Detections3D,
    token: str,
    lidar2ego: np.ndarray,
    ego2global: np.ndarray,
    classes: Sequence[str],
    ranges: Mapping[str, float] | None = None,
    attribute_of: Callable[[str, float], str] | None = None,
) -> list[dict[str, Any]]:
    """Entries of one sample in a nuScenes submission (global frame).

    Boxes farther from the ego vehicle than the class's evaluation range are left out, then all but the 500 of highest
    score. The attribute follows from class and speed, as in CRKD: moving above 0.2 m/s.

    Args:
        detections: LiDAR frame.
        token: sample token.
        lidar2ego, ego2global: (4, 4) of the key-frame scan.
        classes: class name of each label.
        ranges: metres by class; None for nuScenes'.
        attribute_of: attribute of class name and speed; None for nuScenes'.

    Raises:
        ValueError: a number that is not finite, a size that is not positive, or a label without a class.
    """
    boxes = detections.boxes.tensor.detach().cpu().double().numpy()
    scores = detections.scores.detach().cpu().double().numpy()
    labels = detections.labels.detach().cpu().numpy()
    _check(boxes, scores, labels, token, len(classes))
    names = [classes[k] for k in labels]

    ego = boxes[:, :3] @ lidar2ego[:3, :3].T + lidar2ego[:3, 3]
    ranges = _class_range() if ranges is None else ranges
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
            "attribute_name": (attribute_of or attribute)(names[k], float(np.hypot(*velocities[k]))),
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
    return write_entries(results, path, {name: bool(modality.get(name, False)) for name in MODALITIES})


def write_entries(
    results: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path, meta: Mapping[str, bool | str]
) -> Path:
    """Write entries by sample token and a block `meta` as a submission file; it is whole or absent."""
    with atomic_write(path) as file:
        # Sample by sample: `json.dump` would encode each number in Python, `dumps` would hold the whole file in memory.
        file.write(f'{{"meta": {json.dumps(dict(meta))}, "results": {{')
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


# -- scoring ----------------------------------------------------------------------------------------------------------


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

    Args:
        results_json: the submission.
        dataroot: nuScenes root.
        version: `v1.0-mini`, `v1.0-trainval`, or any version with a `splits.json`.
        split: a split of that version; None for its validation split.
        out_dir: where `metrics_summary.json` and `metrics_details.json` go.
        tokens: score these samples only; None for all of the split.
        classes: that were looked for; None for all ten.

    Returns:
        See `score_results`.

    Raises:
        FileNotFoundError: the file, the tables or the splits are missing.
        ValueError: the file is no submission for these samples, or there is nothing to score.
    """
    return score_submission(results_json, dataroot, version, split, out_dir, tokens, classes).metrics


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
    _check_entries(results, str(results_json))
    tables = load_tables(dataroot, version)
    return score_results(tables, results, meta, split, len(whole), Path(out_dir), str(results_json), classes)


def read_submission(path: str | Path) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Entries by sample token, and the `meta` block.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not JSON or lacks `results` or `meta`.
    """
    content = read_json(path, "results file")
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


def _check_entries(results: Mapping[str, list], source: str) -> None:
    for token, entries in results.items():
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{source}: sample {token} has {str(entries)[:40]} instead of a list of detections")
        if len(entries) > MAX_BOXES:
            raise ValueError(f"{source}: sample {token} has {len(entries)} boxes; nuScenes allows {MAX_BOXES}")
        for entry in entries:
            if entry.get("sample_token") != token:
                raise ValueError(f"{source}: an entry of sample {token} names sample {entry.get('sample_token')}")
