"""TruckScenes detection: nuScenes' metrics over twelve classes, at ranges for the motorway (detection_cvpr_2024).

Matching and curves are those of nuScenes' devkit; what counts and the summary are TruckScenes' (truckscenes-devkit
1.2.0). Its breakdown by the tags of scenes is not computed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdet3d.evaluation import nuscenes
from mmdet3d.evaluation.benchmark import Benchmark
from mmdet3d.evaluation.nuscenes import DISTANCES, ERRORS, flat_metrics

if TYPE_CHECKING:
    from nuscenes import NuScenes

__all__ = ["CLASSES", "MAX_BOXES", "RANGES", "benchmark", "score_results"]

CLASSES = (
    "car",
    "truck",
    "bus",
    "trailer",
    "other_vehicle",
    "pedestrian",
    "motorcycle",
    "bicycle",
    "traffic_cone",
    "barrier",
    "animal",
    "traffic_sign",
)
# Metres from the vehicle, on the ground plane.
RANGES = {name: 150.0 if k < 5 else 75.0 for k, name in enumerate(CLASSES)}
MAX_BOXES = 500

_REFERENCE = "LIDAR_LEFT"
_MATCH = 2.0  # metres, of which true positives' errors are
_MIN_RECALL, _MIN_PRECISION, _AP_WEIGHT = 0.1, 0.1, 5.0
# How many numbers the lists of a submission's entries have, and what they stay below.
_NUMBERS = {"translation": 3, "size": 3, "rotation": 4, "velocity": 2}
_LARGEST = 1e12
# Errors that a class is not scored on.
_SKIPPED = {
    "traffic_cone": ("orient_err", "vel_err", "attr_err"),
    "barrier": ("vel_err", "attr_err"),
    "animal": ("attr_err",),
    "traffic_sign": ("vel_err",),
}
_TWO_SIDED = ("barrier", "traffic_sign")  # whose heading is known up to half a turn
_RACKED = ("bicycle", "motorcycle")  # which do not count in a rack
_RACK = "static_object.bicycle_rack"


def benchmark(classes: Sequence[str]) -> Benchmark:
    """What `score_results` reports where `classes` are looked for."""
    return nuscenes.benchmark(classes, CLASSES)


def score_results(
    tables: NuScenes,
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    class_of_category: Mapping[str, str],
    classes: Collection[str] = CLASSES,
    source: str = "the results",
) -> dict[str, float]:
    """Official metrics of all samples in `results`.

    Args:
        tables: with the access of nuScenes' devkit.
        results: entries of a submission by sample token.
        class_of_category: detection classes.
        classes: that were looked for.
        source: where `results` come from, for messages.

    Returns:
        As `evaluation.nuscenes.score_results`.

    Raises:
        ValueError: an entry that is none, or there is nothing to score.
    """
    truth = {token: _counting(tables, token, _truth(tables, token, class_of_category)) for token in results}
    found = {token: _counting(tables, token, _entries(token, entries, source)) for token, entries in results.items()}
    names = [box.detection_name for boxes in truth.values() for box in boxes]
    if not names:
        raise ValueError("the samples to score have no annotated object within evaluation range")
    summary = _summary(truth, found)
    return flat_metrics(summary, {name: names.count(name) for name in CLASSES if name in classes})


# -- what counts ----------------------------------------------------------------------------------------------------


def _box(token: str, name: str, attribute: str, score: float, points: int, row: Mapping[str, Any]) -> Any:
    from nuscenes.eval.detection.data_classes import DetectionBox

    box = DetectionBox(
        sample_token=token,
        translation=tuple(row["translation"]),
        size=tuple(row["size"]),
        rotation=tuple(row["rotation"]),
        velocity=tuple(row["velocity"]),
        num_pts=points,
        detection_score=score,
    )
    box.detection_name, box.attribute_name = name, attribute  # beside the checks, which know nuScenes' names alone
    return box


def _truth(tables: NuScenes, token: str, class_of_category: Mapping[str, str]) -> list[Any]:
    names = {a["token"]: a["name"] for a in tables.attribute}
    boxes = []
    for annotation in (tables.get("sample_annotation", a) for a in tables.get("sample", token)["anns"]):
        name = class_of_category.get(annotation["category_name"])
        attributes = annotation["attribute_tokens"]
        if name is None:
            continue
        if len(attributes) > 1:
            raise ValueError(f"annotation {annotation['token']} has {len(attributes)} attributes; one is allowed")
        row = {**annotation, "velocity": tables.box_velocity(annotation["token"])[:2]}
        points = int(annotation["num_lidar_pts"] + annotation["num_radar_pts"])
        boxes.append(_box(token, name, names[attributes[0]] if attributes else "", -1.0, points, row))
    return boxes


def _entries(token: str, entries: Sequence[Mapping[str, Any]], source: str) -> list[Any]:
    if not isinstance(entries, list):
        raise ValueError(f"{source}: sample {token} has {str(entries)[:40]} instead of a list of detections")
    if len(entries) > MAX_BOXES:
        raise ValueError(f"{source}: sample {token} has {len(entries)} boxes; TruckScenes allows {MAX_BOXES}")
    boxes = []
    for entry in entries:
        try:
            _check_entry(entry, token)
        except (KeyError, ValueError) as error:
            what = f"no key {error}" if isinstance(error, KeyError) else error
            raise ValueError(
                f"{source}: sample {token} has an entry that is no detection of TruckScenes: {what}"
            ) from None
        name, score = entry["detection_name"], float(entry["detection_score"])
        boxes.append(_box(token, name, entry["attribute_name"], score, -1, entry))
    return boxes


def _check_entry(entry: Any, token: str) -> None:
    """Raises KeyError or ValueError, which say what is wrong with it."""
    if not isinstance(entry, dict):
        raise ValueError(f"{entry!r} is no object")
    name = entry["detection_name"]
    if name not in CLASSES or entry["sample_token"] != token:
        raise ValueError(f"class {name!r}, sample {entry['sample_token']!r}")
    if not isinstance(entry["attribute_name"], str):
        raise ValueError(f"attribute_name is {entry['attribute_name']!r} instead of a text, which may be empty")
    for key, count in _NUMBERS.items():
        value = entry[key]
        if not isinstance(value, list) or len(value) != count or not all(map(_is_number, value)):
            raise ValueError(f"{key} is {value!r} instead of {count} numbers")
        # NaN says of a velocity that it is not known, as in the devkit.
        if not all(abs(v) < _LARGEST or (key == "velocity" and v != v) for v in value):
            raise ValueError(f"{key} is {value!r}, which is not finite, or larger than anything measured")
    score = entry["detection_score"]
    if not _is_number(score) or not abs(score) < _LARGEST:
        raise ValueError(f"detection_score is {score!r} instead of a finite number")
    if min(entry["size"]) <= 0 or not any(entry["rotation"]):
        raise ValueError(f"size {entry['size']} must be positive, and rotation {entry['rotation']} not zero")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _counting(tables: NuScenes, token: str, boxes: list[Any]) -> list[Any]:
    """Boxes within range and, of annotations, with points; two-wheelers in a rack are left out."""
    from nuscenes.utils.data_classes import Box
    from nuscenes.utils.geometry_utils import points_in_box
    from pyquaternion import Quaternion

    sample = tables.get("sample", token)
    pose = tables.get("ego_pose", tables.get("sample_data", sample["data"][_REFERENCE])["ego_pose_token"])
    for box in boxes:
        box.ego_translation = tuple(np.subtract(box.translation, pose["translation"]))
    annotations = [tables.get("sample_annotation", a) for a in sample["anns"]]
    racks = [
        Box(a["translation"], a["size"], Quaternion(a["rotation"])) for a in annotations if a["category_name"] == _RACK
    ]
    return [
        box
        for box in boxes
        if box.ego_dist < RANGES[box.detection_name]
        and box.num_pts != 0
        and not (
            box.detection_name in _RACKED
            and any(points_in_box(rack, np.reshape(box.translation, (3, 1))).any() for rack in racks)
        )
    ]


# -- metrics --------------------------------------------------------------------------------------------------------


def _summary(truth: Mapping[str, list[Any]], found: Mapping[str, list[Any]]) -> dict[str, Any]:
    """In the words of nuScenes' devkit."""
    from nuscenes.eval.detection.algo import calc_ap, calc_tp

    aps: dict[str, dict[float, float]] = {}
    errors: dict[str, dict[str, float]] = {}
    for name in CLASSES:
        curves = {distance: _curve(truth, found, name, distance) for distance in DISTANCES}
        aps[name] = {d: calc_ap(curve, _MIN_RECALL, _MIN_PRECISION) for d, curve in curves.items()}
        skipped = _SKIPPED.get(name, ())
        errors[name] = {e: float("nan") if e in skipped else calc_tp(curves[_MATCH], _MIN_RECALL, e) for e in ERRORS}
    mean_ap = float(np.mean([np.mean(list(of_class.values())) for of_class in aps.values()]))
    mean_errors = {e: float(np.nanmean([of_class[e] for of_class in errors.values()])) for e in ERRORS}
    score = _AP_WEIGHT * mean_ap + sum(max(0.0, 1 - error) for error in mean_errors.values())
    return {
        "label_aps": aps,
        "label_tp_errors": errors,
        "tp_errors": mean_errors,
        "mean_ap": mean_ap,
        "nd_score": score / (_AP_WEIGHT + len(mean_errors)),
    }


def _curve(truth: Mapping[str, list[Any]], found: Mapping[str, list[Any]], name: str, distance: float) -> Any:
    """The devkit's curve of a class, to which it is given under a name that has the class's symmetry there."""
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.common.utils import center_distance
    from nuscenes.eval.detection.algo import accumulate

    known = "barrier" if name in _TWO_SIDED else "car"
    sides = []
    for boxes_of in (truth, found):
        side = EvalBoxes()
        for token, boxes in boxes_of.items():
            side.add_boxes(token, [_renamed(box, known) for box in boxes if box.detection_name == name])
        sides.append(side)
    return accumulate(*sides, known, center_distance, distance)


def _renamed(box: Any, name: str) -> Any:
    from copy import copy

    other = copy(box)
    other.detection_name = name
    return other
