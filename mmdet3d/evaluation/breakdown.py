"""Where detections go wrong: average precision by distance, speed and visibility, confusion, samples, two results.

Matching is that of nuScenes: detections choose in order of their scores, each the nearest free object of its class in
its sample, by the distance of the centres on the ground.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "BUCKETS",
    "REACH",
    "EvaluatedBoxes",
    "average_precision",
    "bucket_table",
    "class_hits",
    "confusion",
    "found_objects",
    "match",
    "objects_of",
]

DISTANCES = (0.5, 1.0, 2.0, 4.0)  # metres, over which nuScenes averages
REACH = 2.0  # metres, for everything that is counted once
# By property: names and upper ends (exclusive) of the buckets.
BUCKETS: Mapping[str, tuple[Sequence[str], Sequence[float]]] = {
    "distance": (("0-10 m", "10-20 m", "20-30 m", "30-40 m", "40 m and more"), (10, 20, 30, 40, np.inf)),
    "speed": (("standing", "0.2-3 m/s", "3-8 m/s", "8 m/s and more"), (0.2, 3, 8, np.inf)),
    "visibility": (("0-40 %", "40-60 %", "60-80 %", "80-100 %"), (1.5, 2.5, 3.5, np.inf)),
}
_RECALLS = np.linspace(0, 1, 101)
_LEAST = 0.1  # recall and precision below which nuScenes counts nothing


@dataclass(frozen=True)
class EvaluatedBoxes:
    """Boxes of all samples, ground truth or detections.

    Args:
        samples: (N,) int, number of the sample.
        classes: (N,) int, index into the class list.
        xy: (N, 2) metres, global frame.
        distance: (N,) metres from the car.
        speed: (N,) m/s; NaN where unknown.
        scores: (N,); NaN for ground truth.
        visibility: (N,) level 1 (0-40 %) to 4 (80-100 %) of nuScenes; NaN where unknown, so for all detections.
    """

    samples: np.ndarray
    classes: np.ndarray
    xy: np.ndarray
    distance: np.ndarray
    speed: np.ndarray
    scores: np.ndarray
    visibility: np.ndarray

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: np.ndarray) -> EvaluatedBoxes:
        return EvaluatedBoxes(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def objects_of(
    boxes: Mapping[str, Sequence[Any]], classes: Sequence[str], visibility: Mapping[tuple, float] | None = None
) -> EvaluatedBoxes:
    """The devkit's boxes by sample token, truth or detections.

    Args:
        classes: their names, in the order of the labels.
        visibility: the level by token and place; without it unknown.
    """
    rows = [(sample, token, box) for sample, (token, found) in enumerate(boxes.items()) for box in found]
    seen = [float("nan") if visibility is None else visibility[token, tuple(box.translation)] for _, token, box in rows]
    return EvaluatedBoxes(
        samples=np.array([sample for sample, *_ in rows], dtype=int),
        classes=np.array([classes.index(box.detection_name) for *_, box in rows], dtype=int),
        xy=np.array([box.translation[:2] for *_, box in rows]).reshape(-1, 2),
        distance=np.array([np.hypot(*box.ego_translation[:2]) for *_, box in rows]),
        speed=np.array([np.hypot(*box.velocity) for *_, box in rows]),
        scores=np.array([box.detection_score for *_, box in rows], dtype=float),
        visibility=np.array(seen),
    )


def match(truth: EvaluatedBoxes, found: EvaluatedBoxes, reach: float, by_class: bool = True) -> np.ndarray:
    """(len(found),) int: the object that each detection hits, or -1.

    Args:
        reach: metres that the two centres must be less than apart.
        by_class: only objects of the detection's class.
    """
    hit = np.full(len(found), -1)
    if not len(truth):
        return hit
    samples, starts = np.unique(np.sort(truth.samples), return_index=True)
    places = dict(zip(samples, np.split(np.argsort(truth.samples, kind="stable"), starts[1:]), strict=True))
    taken = np.zeros(len(truth), dtype=bool)
    # As in the devkit, of equal scores the last comes first.
    for k in np.lexsort((np.arange(len(found)), found.scores))[::-1]:
        near = places.get(found.samples[k])
        if near is None:
            continue
        near = near[~taken[near] & ((truth.classes[near] == found.classes[k]) | (not by_class))]
        if not len(near):
            continue
        apart = np.hypot(*(truth.xy[near] - found.xy[k]).T)
        best = apart.argmin()
        if apart[best] < reach:
            hit[k] = near[best]
            taken[near[best]] = True
    return hit


def average_precision(
    truth: EvaluatedBoxes, found: EvaluatedBoxes, hit: np.ndarray, counts: np.ndarray, false: np.ndarray
) -> float:
    """AP of nuScenes over some objects of one class; NaN if there is none of them.

    A detection that hits another object is left out.

    Args:
        truth: objects of the class.
        found: detections of the class.
        hit: see `match`.
        counts: (len(truth),) bool, the objects that are looked for.
        false: (len(found),) bool, the detections that count as false where they hit nothing.
    """
    if not counts.any():
        return float("nan")
    right = (hit >= 0) & counts[hit]
    used = np.flatnonzero(right | ((hit < 0) & false))
    order = used[np.lexsort((used, found.scores[used]))[::-1]]
    positives = np.cumsum(right[order])
    if not len(order) or not positives[-1]:
        return 0.0
    precision = positives / np.arange(1, len(order) + 1)
    curve = np.interp(_RECALLS, positives / counts.sum(), precision, right=0)[round(100 * _LEAST) + 1 :]
    return float(np.clip(curve - _LEAST, 0, None).mean() / (1 - _LEAST))


def class_hits(truth: EvaluatedBoxes, found: EvaluatedBoxes, count: int) -> list[list[np.ndarray]]:
    """Of each of `count` classes what its detections hit, at each distance of matching; see `match`."""
    pairs = [(truth[truth.classes == label], found[found.classes == label]) for label in range(count)]
    return [[match(objects, guesses, reach) for reach in DISTANCES] for objects, guesses in pairs]


def bucket_table(
    truth: EvaluatedBoxes, found: EvaluatedBoxes, hits: Sequence[Sequence[np.ndarray]], classes: Sequence[str], by: str
) -> dict[str, dict[str, float]]:
    """AP per class and bucket of a property in `BUCKETS`, with the row `mean` over the classes that are there.

    A detection that hits nothing counts where its own distance or speed lies; visibility it has none, so there it
    counts in every bucket.

    Args:
        hits: see `class_hits`.

    Returns:
        By class the AP of each bucket, NaN where there is nothing to find.
    """
    names, ends = BUCKETS[by]
    table: dict[str, dict[str, float]] = {}
    for label, name in enumerate(classes):
        objects, guesses = truth[truth.classes == label], found[found.classes == label]
        places, guessed = (np.searchsorted(ends, getattr(side, by), side="right") for side in (objects, guesses))
        known = ~np.isnan(getattr(objects, by))
        anywhere = np.isnan(getattr(guesses, by))
        table[name] = {
            bucket: float(
                np.mean(
                    [
                        average_precision(objects, guesses, hit, known & (places == k), anywhere | (guessed == k))
                        for hit in hits[label]
                    ]
                )
            )
            for k, bucket in enumerate(names)
        }
    rows = np.array([[row[bucket] for bucket in names] for row in table.values()])
    there = ~np.isnan(rows)
    mean = np.where(there.any(axis=0), np.nansum(rows, axis=0) / np.maximum(there.sum(axis=0), 1), np.nan)
    return {"mean": dict(zip(names, mean.tolist(), strict=True)), **table}


def confusion(truth: EvaluatedBoxes, found: EvaluatedBoxes, count: int, min_score: float) -> np.ndarray:
    """(count + 1, count + 1) int: objects of class i that a detection of class j lies nearest to.

    The last column are objects that nothing hits, the last row detections that hit nothing.
    """
    found = found[found.scores >= min_score]
    hit = match(truth, found, REACH, by_class=False)
    table = np.zeros((count + 1, count + 1), dtype=int)
    np.add.at(table, (np.append(truth.classes, count)[hit], found.classes), 1)
    missed = np.setdiff1d(np.arange(len(truth)), hit)
    np.add.at(table, (truth.classes[missed], count), 1)
    return table


def found_objects(truth: EvaluatedBoxes, found: EvaluatedBoxes, min_score: float) -> tuple[np.ndarray, np.ndarray]:
    """Which objects are found by a detection of their class, and the number of false detections per sample.

    Returns:
        (len(truth),) bool, and (S,) int with S samples.
    """
    found = found[found.scores >= min_score]
    hit = match(truth, found, REACH)
    taken = np.zeros(len(truth), dtype=bool)
    taken[hit[hit >= 0]] = True
    samples = 1 + max([*truth.samples.tolist(), *found.samples.tolist()], default=-1)
    return taken, np.bincount(found.samples[hit < 0], minlength=samples)
