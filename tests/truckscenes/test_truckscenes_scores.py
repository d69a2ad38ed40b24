"""TruckScenes' metrics against values of the authors' devkit, and what submissions may get wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from scored_case import Tables, detections

from mmdet3d.datasets.truckscenes.dataset import attribute
from mmdet3d.datasets.truckscenes.tables import CATEGORIES, CLASS_OF_CATEGORY
from mmdet3d.evaluation.truckscenes import CLASSES, RANGES, benchmark, score_results


@pytest.fixture(scope="module")
def tables() -> Tables:
    return Tables()


def test_scores_are_the_devkits(tables: Tables) -> None:
    """truckscenes-devkit 1.2.0 on the same boxes, by its filters, `accumulate`, `calc_ap` and `calc_tp`."""
    expected = json.loads((Path(__file__).parent / "devkit_scores.json").read_text())
    found = score_results(tables, detections(tables), CLASS_OF_CATEGORY)
    assert set(benchmark(CLASSES).metrics) == set(found) and len(expected) == 122
    for name, value in expected.items():
        assert found[name] == pytest.approx(math.nan if value is None else value, abs=1e-8, nan_ok=True), name


def test_headings_of_barriers_and_signs_count_up_to_half_a_turn(tables: Tables) -> None:
    errors = {}
    for turned in (False, True):
        results = detections(tables)
        for entry in (e for entries in results.values() for e in entries if turned):
            w, x, y, z = entry["rotation"]
            entry["rotation"] = [-z, x, y, w]
        errors[turned] = score_results(tables, results, CLASS_OF_CATEGORY)
    for name in ("barrier", "traffic_sign"):
        assert errors[True][f"object/{name}_orient_err"] == pytest.approx(errors[False][f"object/{name}_orient_err"])
    assert errors[True]["object/truck_orient_err"] > errors[False]["object/truck_orient_err"] + 0.2


def test_classes_and_ranges() -> None:
    assert len(CATEGORIES) == len(set(CATEGORIES)) == 27 and set(CLASS_OF_CATEGORY.values()) == set(CLASSES)
    assert RANGES["other_vehicle"] == 150 and RANGES["pedestrian"] == 75
    attributes = [attribute(name, speed) for name in ("other_vehicle", "animal", "traffic_sign") for speed in (0, 5)]
    assert attributes == ["vehicle.parked", "vehicle.moving", "", "", *["traffic_sign.pole_mounted"] * 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detection_name": "construction_vehicle"}, "class 'construction_vehicle'"),
        ({"sample_token": "other"}, "sample 'other'"),
        ({"translation": [0.0, 0.0]}, r"translation is \[0.0, 0.0\] instead of 3 numbers"),
        ({"translation": [0.0, 0.0, math.nan]}, "translation .* not finite"),
        ({"size": [1.0, 0.0, 1.0]}, "must be positive"),
        ({"size": [1.0, -1.0, 1.0]}, "must be positive"),
        ({"rotation": [0, 0, 0, 0]}, "rotation .* not zero"),
        ({"velocity": None}, "velocity is None instead of 2 numbers"),
        ({"velocity": ["fast", 1.0]}, "velocity is .'fast', 1.0. instead of 2 numbers"),
        ({"velocity": [math.inf, 1.0]}, "velocity .* not finite"),
        ({"velocity": [10**400, 1.0]}, "velocity .* not finite"),
        ({"detection_score": math.inf}, "detection_score is inf instead of a finite number"),
        ({"detection_score": "high"}, "detection_score is 'high' instead of a finite number"),
        ({"attribute_name": None}, "attribute_name is None instead of a text"),
    ],
)
def test_entries_that_are_none(tables: Tables, change: dict, message: str) -> None:
    results = detections(tables)
    results["s0"][0].update(change)
    with pytest.raises(ValueError, match=f"own.json: sample s0 has an entry .*{message}"):
        score_results(tables, results, CLASS_OF_CATEGORY, source="own.json")


def test_entries_that_are_no_objects_or_lack_a_key(tables: Tables) -> None:
    results = detections(tables)
    results["s0"][0] = None
    with pytest.raises(ValueError, match=r"sample s0 has an entry .*None is no object"):
        score_results(tables, results, CLASS_OF_CATEGORY)
    results["s0"][0] = {"sample_token": "s0"}
    with pytest.raises(ValueError, match=r"sample s0 has an entry .*no key 'detection_name'"):
        score_results(tables, results, CLASS_OF_CATEGORY)
    results["s0"] = None
    with pytest.raises(ValueError, match="sample s0 has None instead of a list of detections"):
        score_results(tables, results, CLASS_OF_CATEGORY)


def test_an_unknown_velocity_is_allowed(tables: Tables) -> None:
    """The devkit says that velocities may be NaN."""
    results = detections(tables)
    results["s0"][0]["velocity"] = [math.nan, math.nan]
    assert score_results(tables, results, CLASS_OF_CATEGORY)["object/map"] > 0


def test_too_many_boxes_and_nothing_to_find(tables: Tables) -> None:
    results = detections(tables)
    results["s1"] = results["s1"] * 20
    with pytest.raises(ValueError, match=r"sample s1 has \d+ boxes; TruckScenes allows 500"):
        score_results(tables, results, CLASS_OF_CATEGORY)
    with pytest.raises(ValueError, match="no annotated object within evaluation range"):
        score_results(tables, {"s0": []}, {})
