"""KITTI object detection: the official average precision in the image, on the ground, in space, and of orientation.

The rules are those of the benchmark's development kit (`evaluate_object_3d_offline`): which objects count at which
difficulty, what is ignored, how detections are assigned, and at which 41 scores precision is sampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mmdet3d.evaluation.kitti_matching import (
    SAMPLES,
    Candidates,
    Counts,
    best_by_overlap,
    best_by_score,
    count,
    thresholds,
)
from mmdet3d.evaluation.kitti_objects import NO_ORIENTATION, Objects
from mmdet3d.evaluation.kitti_overlap import Pairs, pair_up

__all__ = [
    "CLASSES",
    "DIFFICULTIES",
    "LOOSE",
    "METRICS",
    "STRICT",
    "candidates",
    "curves",
    "evaluate",
    "faults_of_truth",
    "found_objects",
    "heights",
    "precision_curves",
]

CLASSES = ("Car", "Pedestrian", "Cyclist")
METRICS = ("bbox", "bev", "3d", "aos")
DIFFICULTIES = ("easy", "moderate", "hard")

# Class -> IoU that a match must exceed, by metric. `STRICT` is the benchmark's; papers also quote `LOOSE`.
STRICT = {name: dict.fromkeys(("bbox", "bev", "3d"), iou) for name, iou in zip(CLASSES, (0.7, 0.5, 0.5), strict=True)}
LOOSE = {
    name: {"bbox": STRICT[name]["bbox"], "bev": iou, "3d": iou}
    for name, iou in zip(CLASSES, (0.5, 0.25, 0.25), strict=True)
}

_MIN_HEIGHT = (40, 25, 25)  # pixels, by difficulty
_MAX_OCCLUSION = (0, 1, 2)
_MAX_TRUNCATION = (0.15, 0.3, 0.5)
_NEIGHBOURS = {"Car": "Van", "Pedestrian": "Person_sitting"}  # found or not, they do not count

Metrics = dict[str, dict[str, dict[str, list[float]]]]


def faults_of_truth(labels: Sequence[Objects], classes: Sequence[str] = CLASSES) -> list[str]:
    """Why an average precision of 0 may say nothing about what was found: a sentence for each reason.

    Args:
        labels: of each frame.
        classes: that are looked at.
    """
    all_objects = Objects.cat(labels)
    objects = all_objects[np.isin(all_objects.names, list(classes))]
    if len(objects) and not (heights(objects) > 0).any():
        return [
            "the labels have no 2-D boxes, by whose height KITTI decides which objects count: every AP is 0; write the "
            "boxes of the projected objects into columns 5 to 8"
        ]
    countable = objects[~_is_hard(objects, len(DIFFICULTIES) - 1)]
    absent = [name for name in classes if not (countable.names == name).any()]
    if not absent:
        return []
    return [f"there is no {' and no '.join(absent)} to find that KITTI counts, so an AP of 0 there says nothing"]


def evaluate(
    labels: Sequence[Objects], results: Sequence[Objects], overlaps: Mapping[str, Mapping[str, float]] = STRICT
) -> Metrics:
    """Average precision of the detections `results[i]` of frame i, of which `labels[i]` is the truth.

    Returns:
        `{class: {metric: {"R40": [easy, moderate, hard], "R11": [...]}}}` in percent, for `METRICS`: average precision
        `bbox`, `bev`, `3d`, and `aos` for orientation (a detection with alpha -10 has none, so it adds nothing). 0
        where there is nothing to find.

    Raises:
        ValueError: no frame, or different numbers of frames.
    """
    return {
        name: {
            metric: {"R40": _percent(samples[:, 1:]), "R11": _percent(samples[:, ::4])}
            for metric, samples in metrics.items()
        }
        for name, metrics in precision_curves(labels, results, overlaps).items()
    }


def precision_curves(
    labels: Sequence[Objects], results: Sequence[Objects], overlaps: Mapping[str, Mapping[str, float]] = STRICT
) -> dict[str, dict[str, np.ndarray]]:
    """Precision at recall 0, 1/40, ..., 1, made monotone: `{class: {metric: (3 difficulties, 41)}}`, 0 to 1."""
    if len(labels) != len(results) or not labels:
        raise ValueError(f"as many frames of labels as of results are needed, got {len(labels)} and {len(results)}")
    pairs = pair_up(labels, results)
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in CLASSES:
        found[name] = {metric: np.zeros((len(DIFFICULTIES), SAMPLES)) for metric in METRICS}
        for level, least in enumerate(_MIN_HEIGHT):
            hard, small = _is_hard(pairs.labels, level), np.abs(heights(pairs.results)) < least
            for metric, minimum in overlaps[name].items():
                precision, similarity = curves(candidates(pairs, name, metric, minimum, hard, small))
                found[name][metric][level] = precision
                if metric == "bbox":
                    found[name]["aos"][level] = similarity
    return found


def found_objects(
    pairs: Pairs, name: str, level: int, min_score: float, metric: str = "3d"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which objects of a class are found by the official rules, and which detections of it are false.

    Args:
        pairs: see `pair_up`.
        level: the difficulty up to which objects count, 0 easy to 2 hard.
        min_score: of the detections that are taken.

    Returns:
        (G,) bool, objects of the class that count; (G,) index of the detection that found each, -1 for none, also of
        those that do not count; (D,) bool, detections of the class that are false.
    """
    hard, small = _is_hard(pairs.labels, level), np.abs(heights(pairs.results)) < _MIN_HEIGHT[level]
    matching = candidates(pairs, name, metric, STRICT[name][metric], hard, small)
    chosen, taken = best_by_overlap(matching, np.array([min_score]))
    objects = np.unique(matching.label)
    by = np.full(len(pairs.labels), -1)
    pair = chosen[:, 0]
    by[objects[pair >= 0]] = matching.result[pair[pair >= 0]]
    ignored = (by >= 0) & ~matching.result_counts[by]  # took the object away from the others, and neither counts
    by[ignored] = -1
    false = matching.result_counts & ~matching.excused & ~taken[:, 0] & (matching.scores >= min_score)
    return matching.label_counts & ~ignored, by, false


def _percent(samples: np.ndarray) -> list[float]:
    return (100 * samples.mean(1)).tolist()


# -- which objects and detections count -----------------------------------------------------------------------------


def candidates(
    pairs: Pairs, name: str, metric: str, minimum: float, hard: np.ndarray, ignored: np.ndarray
) -> Candidates:
    """What may match for class `name`: pairs of an overlap above `minimum`.

    Args:
        hard: (G,) bool, objects that need not be found.
        ignored: (D,) bool, detections that do not count; those of any class, as the official program has it.
    """
    labels, results = pairs.labels, pairs.results
    of_class = labels.names == name
    label_matters = of_class | (labels.names == _NEIGHBOURS.get(name))
    result_matters = ignored | (results.names == name)

    overlap = pairs.overlaps[metric]
    kept = np.flatnonzero((overlap > minimum) & label_matters[pairs.label] & result_matters[pairs.result])
    label, result = pairs.label[kept], pairs.result[kept]
    similarity = (1 + np.cos(labels.alpha[label] - results.alpha[result])) / 2
    return Candidates(
        label=label,
        result=result,
        overlap=overlap[kept],
        frames=pairs.frames,
        label_counts=of_class & ~hard,
        result_counts=(results.names == name) & ~ignored,
        scores=results.scores,
        similarity=np.where(results.alpha[result] == NO_ORIENTATION, 0.0, similarity),
        excused=pairs.unlabelled > minimum if metric == "bbox" else np.zeros(len(results), dtype=bool),
    )


def _is_hard(labels: Objects, level: int) -> np.ndarray:
    """(N,) bool: harder than the difficulty `level` allows."""
    return (
        (labels.occluded > _MAX_OCCLUSION[level])
        | (labels.truncated > _MAX_TRUNCATION[level])
        | (heights(labels) <= _MIN_HEIGHT[level])
    )


def heights(objects: Objects) -> np.ndarray:
    """(N,) of the 2-D boxes, pixels."""
    return objects.boxes2d[:, 3] - objects.boxes2d[:, 1]


def curves(candidates: Candidates) -> tuple[np.ndarray, np.ndarray]:
    """(41,) precision and (41,) orientation similarity at the sampled recalls; 0 beyond the largest recall."""
    precision, similarity = np.zeros(SAMPLES), np.zeros(SAMPLES)
    if not len(candidates.label):
        return precision, similarity
    limits = thresholds(best_by_score(candidates), int(candidates.label_counts.sum()))
    counts = count(candidates, limits)
    precision[: len(limits)] = _of_detections(counts.true, counts)
    similarity[: len(limits)] = _of_detections(counts.similarity, counts)
    return _monotone(precision), _monotone(similarity)


def _of_detections(part: np.ndarray, counts: Counts) -> np.ndarray:
    return part / np.maximum(counts.true + counts.false, 1)


def _monotone(samples: np.ndarray) -> np.ndarray:
    return np.maximum.accumulate(samples[::-1])[::-1]
