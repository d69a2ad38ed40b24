"""Average precision by bucket against the devkit's, and small cases by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from mmdet3d.evaluation.breakdown import (
    BUCKETS,
    EvaluatedBoxes,
    bucket_table,
    class_hits,
    confusion,
    found_objects,
    match,
)


def objects(*rows: tuple[int, int, float, float, float], score: Callable[[int], float] | None = None) -> EvaluatedBoxes:
    """Of (sample, class, x, y, speed); distances are those from the origin."""
    table = np.array(rows, dtype=float).reshape(-1, 5)
    return EvaluatedBoxes(
        samples=table[:, 0].astype(int),
        classes=table[:, 1].astype(int),
        xy=table[:, 2:4],
        distance=np.hypot(table[:, 2], table[:, 3]),
        speed=table[:, 4],
        scores=np.array([np.nan if score is None else score(k) for k in range(len(table))]),
        visibility=np.full(len(table), np.nan if score else 4.0),
    )


def table_of(truth: EvaluatedBoxes, found: EvaluatedBoxes, classes: list[str], by: str) -> dict[str, dict[str, float]]:
    return bucket_table(truth, found, class_hits(truth, found, len(classes)), classes, by)


def test_best_scores_choose_first() -> None:
    truth = objects((0, 0, 0, 0, 0), (0, 0, 1.5, 0, 0), (1, 0, 0, 0, 0), (1, 1, 9, 0, 0))
    found = objects(
        (0, 0, 1, 0, 0), (0, 0, 1.4, 0, 0), (0, 0, 1.3, 0, 0), (1, 0, 9, 0, 0), (2, 0, 0, 0, 0),
        score=lambda k: [0.5, 0.9, 0.4, 0.8, 1.0][k],
    )  # fmt: skip
    assert match(truth, found, 2.0).tolist() == [0, 1, -1, -1, -1]
    assert match(truth, found, 2.0, by_class=False).tolist() == [0, 1, -1, 3, -1]
    assert match(truth[:0], found, 2.0).tolist() == [-1] * 5


def test_buckets_leave_out_what_belongs_to_others() -> None:
    """A perfect detector is perfect in every bucket; a false detection harms the bucket that it lies in."""
    truth = objects((0, 0, 5, 0, 0.0), (0, 0, 15, 0, 5.0), (0, 0, 45, 0, 9.0))
    perfect = objects((0, 0, 5, 0, 0.0), (0, 0, 15, 0, 5.0), (0, 0, 45, 0, 9.0), score=lambda k: 0.5)
    rows = table_of(truth, perfect, ["car"], "distance")["car"]
    values = list(rows.values())
    assert list(rows) == list(BUCKETS["distance"][0])
    assert values[0] == values[1] == values[4] == pytest.approx(1) and np.isnan(values[2:4]).all()
    # Precision 0 up to recall 0, then 1/2 at recall 1, a line between: nuScenes counts what lies above 0.1 of both.
    extra = objects((0, 0, 12, 9, 5.0), score=lambda k: 0.9)
    both = EvaluatedBoxes(
        *(np.concatenate([getattr(perfect, f), getattr(extra, f)]) for f in perfect.__dataclass_fields__)
    )
    harmed = list(table_of(truth, both, ["car"], "distance")["car"].values())
    assert harmed[0] == harmed[4] == pytest.approx(1) and harmed[1] == pytest.approx(0.2)
    by_speed = list(table_of(truth, both, ["car"], "speed")["car"].values())
    assert by_speed[0] == pytest.approx(1) and by_speed[2] == pytest.approx(0.2)
    seen = table_of(replace(truth, visibility=np.array([1.0, 4.0, np.nan])), both, ["car", "bus"], "visibility")
    assert seen["car"]["0-40 %"] == pytest.approx(0.2)
    assert np.isnan(list(seen["bus"].values())).all() and seen["mean"]["0-40 %"] == seen["car"]["0-40 %"]


def test_confusion_and_found() -> None:
    truth = objects((0, 0, 0, 0, 0), (0, 1, 9, 0, 0), (1, 1, 0, 0, 0))
    found = objects(
        (0, 1, 0, 0.5, 0), (0, 1, 9, 0, 0), (0, 0, 30, 0, 0), (1, 1, 0, 0, 0), score=lambda k: [0.9, 0.8, 0.7, 0.1][k]
    )
    assert confusion(truth, found, 2, 0.3).tolist() == [[0, 1, 0], [0, 1, 1], [1, 0, 0]]
    taken, false = found_objects(truth, found, 0.3)
    assert taken.tolist() == [False, True, False] and false.tolist() == [2, 0]
