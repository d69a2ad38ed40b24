"""View-of-Delft's average precision: values of the authors' evaluator, plain loops over its rules, cases by hand."""

from __future__ import annotations

import kitti_rules
import numpy as np
import pytest
from kitti_rules import curve, frame, random_frame, row

from mmdet3d.evaluation.kitti_objects import Objects
from mmdet3d.evaluation.kitti_overlap import pair_up
from mmdet3d.evaluation.vod import CLASSES, benchmark, evaluate, format_metrics

NEAR, FAR = {"z": 20.0}, {"z": 30.0}


def several(name: str, count: int, first: int = 0, **where: float) -> list[dict]:
    """Objects of a class in a column that do not meet."""
    return [row(name, locations=[1.0, 1.6 - 3 * (first + k), where["z"]]) for k in range(count)]


# Ground truth against itself, by how many objects count.
SATURATION = {1: 9.0909, 8: 18.1818, 16: 36.3636, 24: 54.5455, 40: 90.9091, 41: 100.0, 48: 100.0}


@pytest.mark.parametrize(("count", "expected"), SATURATION.items())
def test_a_perfect_result_of_few_objects(count: int, expected: float) -> None:
    truth = [frame(*several("Car", count, **NEAR))]
    found = evaluate(truth, truth)
    assert [found[f"entire_area/Car/{m}"] for m in ("3d", "bev", "aos")] == pytest.approx([expected] * 3, abs=1e-4)
    assert found["roi/Car/objects"] == count and found["roi/mAP"] == pytest.approx(expected / 3, abs=1e-4)
    assert "no result reaches 100" in format_metrics(found)  # of the other classes there is none


def test_the_public_example_frames() -> None:
    """1 Car, 16 Pedestrians, of which 8 are beyond the corridor, and 8 Cyclists: what the program gives."""
    people = several("Pedestrian", 8, **NEAR) + several("Pedestrian", 8, first=8, **FAR)
    truth = [frame(*several("Car", 1, **NEAR), *people), frame(*several("Cyclist", 8, **NEAR))]
    found = evaluate(truth, truth)
    entire, corridor = ([found[f"{region}/{name}/3d"] for name in CLASSES] for region in ("entire_area", "roi"))
    assert entire == pytest.approx([9.091, 36.364, 18.182], abs=1e-3)
    assert corridor == pytest.approx([9.091, 18.182, 18.182], abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "iou"),
    [({"x": 1.0}, 0.6), ({"turn": np.pi / 2}, 0.333333), ({"turn": np.pi / 4}, 0.517428), ({}, 1.0)],
)
def test_rectangles_on_the_ground(changes: dict, iou: float) -> None:
    """4 x 2 m about one centre; shifted along the length, turned."""
    one = row(sizes=[1.5, 2.0, 4.0], rotation_y=0.0, locations=[0.0, 1.6, 20.0])
    other = one | {"rotation_y": changes.get("turn", 0.0), "locations": [changes.get("x", 0.0), 1.6, 20.0]}
    overlaps = pair_up([frame(one)], [frame(other)]).overlaps
    assert overlaps["bev"] == pytest.approx(iou, abs=1e-6) and overlaps["3d"] == pytest.approx(iou, abs=1e-6)


# -- plain loops ----------------------------------------------------------------------------------------------------


def outside(objects: Objects, i: int, region: str) -> bool:
    x, _, z = objects.locations[i]
    return region == "roi" and (x < -4 or x > 4 or z > 25)


def state_of_label(labels: Objects, i: int, name: str, region: str) -> int | None:
    if labels.names[i] == kitti_rules.NEIGHBOURS[name]:
        return 0
    if labels.names[i] != name:
        return None
    box = labels.boxes2d[i]
    return 0 if box[3] - box[1] <= 40 or labels.occluded[i] > 4 or outside(labels, i, region) else 1


def state_of_result(results: Objects, j: int, name: str, region: str) -> int | None:
    if abs(results.boxes2d[j, 3] - results.boxes2d[j, 1]) < 40 or outside(results, j, region):
        return 0
    return 1 if results.names[j] == name else None


LIMITS = {
    "3d": {"Car": 0.5, "Pedestrian": 0.25, "Cyclist": 0.25},
    "bbox": {"Car": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5},
}
LIMITS["bev"] = LIMITS["3d"]


@pytest.mark.parametrize("seed", range(3))
def test_against_plain_loops(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kitti_rules, "state_of_label", state_of_label)
    monkeypatch.setattr(kitti_rules, "state_of_result", state_of_result)
    rng = np.random.default_rng(seed)
    labels, results = zip(*(random_frame(rng, CLASSES) for _ in range(16)), strict=True)
    for objects in (*labels, *results):
        objects.boxes2d[:, 3] += 20  # a quarter remains too small
        objects.locations[:, 0] *= 0.5
    found = evaluate(labels, results)
    expected = {}
    for region in ("entire_area", "roi"):
        for name in CLASSES:
            for metric in ("3d", "bev", "bbox"):
                precision, similarity = curve(labels, results, name, region, metric, LIMITS[metric][name])
                samples = similarity if metric == "bbox" else precision
                expected[f"{region}/{name}/{'aos' if metric == 'bbox' else metric}"] = 100 * samples[::4].mean()
            counts = [state_of_label(f, i, name, region) or 0 for f in labels for i in range(len(f))]
            expected[f"{region}/{name}/objects"] = sum(counts)
        expected[f"{region}/mAP"] = np.mean([expected[f"{region}/{name}/3d"] for name in CLASSES])
    assert found == pytest.approx(expected)
    assert set(benchmark().metrics) == set(found)
    assert max(found.values()) > 5


# -- what counts ----------------------------------------------------------------------------------------------------


def test_small_objects_and_the_column_truncated() -> None:
    """An object of 40 pixels does not count, one that moves (truncated 1) does."""
    small = row(boxes2d=[600, 150, 700, 190])
    moving = row(truncated=1.0, boxes2d=[600, 150, 700, 191], locations=[0, 5.0, 20])
    found = evaluate([frame(small, moving)], [frame(small, moving)])
    assert found["entire_area/Car/objects"] == 1 and found["entire_area/Car/3d"] > 0


def test_detections_without_a_2d_box_find_nothing() -> None:
    truth = several("Car", 2, **NEAR)
    found = evaluate([frame(*truth)], [frame(*(r | {"boxes2d": [0, 0, 0, 0]} for r in truth))])
    assert found["entire_area/Car/3d"] == 0


def test_the_corridor_has_no_lower_bound_and_holds_its_border() -> None:
    places = [(-4.0, 25.0), (4.0, -3.0), (4.01, 10.0), (0.0, 25.01)]
    truth = [frame(*(row(locations=[x, 1.6 - 3 * k, z]) for k, (x, z) in enumerate(places)))]
    assert evaluate(truth, truth)["roi/Car/objects"] == 2


def test_different_numbers_of_frames() -> None:
    with pytest.raises(ValueError, match="as many frames of labels as of results are needed, got 1 and 0"):
        evaluate([Objects.empty()], [])
