"""nuScenes submissions and metrics against published numbers and against themselves."""

from __future__ import annotations

import json
import os
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from mmdet3d.datasets import NuScenesDataset
from mmdet3d.datasets.nuscenes.submission import (
    MODALITIES,
    attribute,
    evaluate_submission,
    format_detections,
    write_submission,
)
from mmdet3d.datasets.nuscenes.tables import evaluation_split, load_tables, split_tokens
from mmdet3d.evaluation.nuscenes import CLASSES, format_metrics
from mmdet3d.structures import Boxes3D, Detections3D

REPOSITORY = Path(__file__).resolve().parents[2]
MAP, NDS = 0.07551617930781714, 0.10336284386435349
FIRST = "3e8750f331d7499e9b5123e9eb70f2e2"


@pytest.fixture(scope="session")
def root(shared: Path) -> Path:
    return shared / "data" / "nuscenes"


@pytest.fixture(scope="session")
def published(shared: Path) -> Path:
    return shared / "data" / "nuscenes_results" / "results_nusc.json"


@pytest.fixture(scope="session")
def val(shared: Path, root: Path) -> NuScenesDataset:
    infos = shared / "data" / "nuscenes_infos" / "bevfusion_mini_val.pkl"
    return NuScenesDataset(str(infos), str(root), use_valid_flag=True, test_mode=True, modality={"use_radar": True})


def detections(
    boxes: list[list[float]], scores: list[float] | None = None, labels: list[int] | None = None
) -> Detections3D:
    tensor = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 9)
    count = len(tensor)
    return Detections3D(
        Boxes3D(tensor), torch.tensor(scores or [0.5] * count), torch.tensor(labels or [0] * count, dtype=torch.int64)
    )


def none() -> Detections3D:
    return detections([])


# -- metrics --------------------------------------------------------------------------------------------------------


def test_published_submission_scores_exactly_as_published(published: Path, root: Path, tmp_path: Path) -> None:
    metrics = evaluate_submission(published, root, "v1.0-mini", "mini_val", tmp_path)
    assert (metrics["object/map"], metrics["object/nds"]) == (MAP, NDS)
    expected = json.loads((published.parent / "metrics_summary.json").read_text())
    written = json.loads((tmp_path / "metrics_summary.json").read_text())
    assert written["label_aps"] == expected["label_aps"]
    for name, errors in expected["label_tp_errors"].items():
        for error, value in errors.items():
            assert metrics[f"object/{name}_{error}"] == pytest.approx(value, nan_ok=True)
    assert metrics["object/mATE"] == pytest.approx(expected["tp_errors"]["trans_err"])
    assert metrics["object/mAAE"] == pytest.approx(expected["tp_errors"]["attr_err"])
    assert len(metrics) == 97 + len(CLASSES) + 1  # the objects of each class, and the mean over those that are there


def test_metrics_as_text(published: Path, root: Path, tmp_path: Path) -> None:
    text = format_metrics(evaluate_submission(published, root, "v1.0-mini", None, tmp_path))
    lines = text.splitlines()
    assert lines[0] == "mAP: 0.0755"
    assert "NDS: 0.1034" in lines
    assert next(line for line in lines if line.startswith("car ")).split()[:3] == ["car", "0.361", "0.175"]
    assert next(line for line in lines if line.startswith("traffic_cone ")).split()[-1] == "nan"


def test_nothing_is_printed(published: Path, root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    evaluate_submission(published, root, "v1.0-mini", "mini_val", tmp_path)
    assert capfd.readouterr() == ("", "")


def test_ground_truth_scores_perfectly(val: NuScenesDataset, tmp_path: Path) -> None:
    metrics = val.evaluate([val.ground_truth(k) for k in range(len(val))], tmp_path)
    present = ["car", "truck", "bus", "pedestrian", "motorcycle", "bicycle", "traffic_cone"]
    for name in present:
        for distance in (0.5, 1.0, 2.0, 4.0):
            assert metrics[f"object/{name}_ap_dist_{distance}"] == pytest.approx(1.0)
        assert metrics[f"object/{name}_trans_err"] < 1e-9
        assert metrics[f"object/{name}_scale_err"] < 1e-9
    for name in present[:-1]:
        # The yaw about the tilted scanner's axis is that of the upright box up to the tilt squared.
        assert metrics[f"object/{name}_orient_err"] < 1e-3
        assert metrics[f"object/{name}_vel_err"] < 1e-3
    assert metrics["object/map"] == pytest.approx(len(present) / len(CLASSES))
    submission = json.loads((tmp_path / "results_nusc.json").read_text())
    assert submission["meta"] == {
        "use_camera": False,
        "use_lidar": False,
        "use_radar": True,
        "use_map": False,
        "use_external": False,
    }
    assert (tmp_path / "metrics_summary.json").is_file()


def test_nothing_to_find_is_told_from_nothing_found(val: NuScenesDataset, root: Path, tmp_path: Path) -> None:
    """Truth of two classes as detections: the benchmark's mean counts 0 for the other eight."""
    two = NuScenesDataset(
        str(root.parent / "nuscenes_infos" / "bevfusion_mini_val.pkl"), str(root), use_valid_flag=True, test_mode=True,
        object_classes=["car", "trailer"],
    )  # fmt: skip
    metrics = two.evaluate([two.ground_truth(k) for k in range(len(two))], tmp_path)
    assert metrics["object/map"] == pytest.approx(0.1)
    assert metrics["object/map_present"] == pytest.approx(1.0)
    assert metrics["object/car_objects"] > 100
    assert metrics["object/trailer_objects"] == 0
    assert "object/truck_objects" not in metrics
    lines = format_metrics(metrics).splitlines()
    assert lines[0] == "mAP: 0.1000"
    (line,) = (each for each in lines if "looked for and are there" in each)
    assert line.startswith(
        "mAP over the 1 classes that were looked for and are there: 1.0000 (mAP and NDS count 0 for "
    )
    assert next(each for each in lines if each.startswith("truck")).split() == ["truck", *"------"]
    assert next(each for each in lines if each.startswith("car ")).split()[1] == "1.000"


def _turned(entry: dict, angle: float) -> None:
    w, x, y, z = entry["rotation"]
    turn = Rotation.from_rotvec([0, 0, angle]) * Rotation.from_quat([x, y, z, w])
    x, y, z, w = turn.as_quat()
    entry["rotation"] = [w, x, y, z]


def _old_boxes(entry: dict) -> None:
    entry["size"] = [entry["size"][k] for k in (1, 0, 2)]
    _turned(entry, np.pi / 2)


def _sink(entry: dict) -> None:
    entry["translation"][2] -= entry["size"][2] / 2


def _unlearnt(entry: dict) -> None:
    """As of an untrained detector whose boxes lie at the height of the road: everywhere, hence also near objects."""
    entry["size"], entry["rotation"] = [1.01, 1.0, 1.02], [np.sqrt(0.5), 0, 0, np.sqrt(0.5)]
    _sink(entry)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _old_boxes,
            "width and length are swapped and the yaw is a quarter turn off: boxes of mmdetection3d before 1.0",
        ),
        (lambda e: e.update(size=[e["size"][k] for k in (1, 0, 2)]), "width and length are swapped: nuScenes sizes"),
        (lambda e: _turned(e, np.pi / 2), "the yaw is a quarter turn off"),
        (lambda e: _turned(e, np.pi), "boxes face backwards"),
        (lambda e: e.update(velocity=[-v for v in e["velocity"]]), "velocities point backwards"),
        (_sink, "half a height too low: z is that of the bottom face"),
        (lambda e: None, None),
        (_unlearnt, None),
    ],
)
def test_another_convention_is_named(
    val: NuScenesDataset, root: Path, tmp_path: Path, change, message: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = val.format([val.ground_truth(k) for k in range(len(val))], tmp_path)
    content = json.loads(path.read_text())
    for entries in content["results"].values():
        for entry in entries:
            change(entry)
    path.write_text(json.dumps(content))
    evaluate_submission(path, root, "v1.0-mini", "mini_val", tmp_path)
    faults = [record.getMessage() for record in caplog.records]
    assert len(faults) == (message is not None)
    if message is not None:
        assert message in faults[0]


def test_some_samples_only(val: NuScenesDataset, root: Path, tmp_path: Path) -> None:
    tokens = [FIRST, "3950bd41f74548429c0f7700ff3d8269", "fdc39b23ab4242eda6ec5e1e6574fe33"]
    found = [val.ground_truth(k) if t in tokens else none() for k, t in enumerate(val.tokens)]
    path = val.format(found, tmp_path)
    whole = evaluate_submission(path, root, "v1.0-mini", "mini_val", tmp_path / "whole")
    part = evaluate_submission(path, root, "v1.0-mini", "mini_val", tmp_path / "part", tokens=tokens)
    for name in ("car", "pedestrian"):
        assert part[f"object/{name}_ap_dist_0.5"] == pytest.approx(1.0)
        assert whole[f"object/{name}_ap_dist_0.5"] < 0.5


def test_a_data_set_that_is_part_of_a_split(shared: Path, root: Path, tmp_path: Path) -> None:
    infos = shared / "data" / "nuscenes_infos" / "mmdet3d_v0_mini_val.pkl"
    part = NuScenesDataset(str(infos), str(root), load_interval=20, use_valid_flag=True, test_mode=True)
    metrics = part.evaluate([part.ground_truth(k) for k in range(len(part))], tmp_path)
    assert metrics["object/car_ap_dist_1.0"] == pytest.approx(1.0)
    assert (metrics["object/frames"], metrics["object/frames_of_split"]) == (len(part), 81)
    assert format_metrics(metrics).splitlines()[0] == f"scored on {len(part)} of 81 frames"


def test_no_detection_at_all_scores_zero(val: NuScenesDataset, tmp_path: Path) -> None:
    metrics = val.evaluate([none()] * len(val), tmp_path)
    assert metrics["object/map"] == metrics["object/nds"] == 0.0


def test_tables_are_loaded_once_until_they_change(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "v1.0-mini", tmp_path / "v1.0-mini")
    (tmp_path / "maps").symlink_to(root / "maps")
    first = load_tables(tmp_path, "v1.0-mini")
    assert load_tables(f"{tmp_path}/", "v1.0-mini") is first
    os.utime(tmp_path / "v1.0-mini" / "scene.json", (1, 1))
    assert load_tables(tmp_path, "v1.0-mini") is not first
    (tmp_path / "v1.0-mini" / "scene.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"scene\.json is missing"):
        load_tables(tmp_path, "v1.0-mini")


# -- what goes into a submission ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "slow", "fast"),
    [
        ("car", "vehicle.parked", "vehicle.moving"),
        ("truck", "vehicle.parked", "vehicle.moving"),
        ("trailer", "vehicle.parked", "vehicle.moving"),
        ("construction_vehicle", "vehicle.parked", "vehicle.moving"),
        ("bus", "vehicle.stopped", "vehicle.moving"),
        ("motorcycle", "cycle.without_rider", "cycle.with_rider"),
        ("bicycle", "cycle.without_rider", "cycle.with_rider"),
        ("pedestrian", "pedestrian.standing", "pedestrian.moving"),
        ("barrier", "", ""),
        ("traffic_cone", "", ""),
    ],
)
def test_attributes(name: str, slow: str, fast: str) -> None:
    assert (attribute(name, 0.2), attribute(name, 0.21)) == (slow, fast)


def test_entry_in_the_global_frame() -> None:
    # LiDAR x right, y forward on a vehicle that heads along global y.
    lidar2ego = np.array([[0, 1, 0, 1], [-1, 0, 0, 0], [0, 0, 1, 2], [0, 0, 0, 1.0]])
    ego2global = np.array([[0, -1, 0, 100], [1, 0, 0, 200], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    found = detections([[3, 10, -1, 4.5, 2, 1.6, np.pi / 2, 0, 5]], [0.75])
    (entry,) = format_detections(found, "t", lidar2ego, ego2global, ["car"])
    np.testing.assert_allclose(entry["translation"], [103, 211, 1], atol=1e-9)
    assert entry["size"] == [2, 4.5, 1.6]
    half = np.sqrt(0.5)
    np.testing.assert_allclose(np.abs(np.dot(entry["rotation"], [half, 0, 0, half])), 1.0)
    np.testing.assert_allclose(entry["velocity"], [0, 5], atol=1e-9)
    assert (entry["detection_name"], entry["detection_score"], entry["attribute_name"]) == (
        "car",
        0.75,
        "vehicle.moving",
    )


def test_boxes_beyond_the_class_range_are_left_out() -> None:
    def kept(label: int, distance: float) -> int:
        found = detections([[distance, 0, 0, 1, 1, 1, 0, 0, 0]], labels=[label])
        return len(format_detections(found, "t", np.eye(4), np.eye(4), CLASSES))

    for name, limit in {"car": 50, "trailer": 50, "pedestrian": 40, "bicycle": 40, "barrier": 30}.items():
        assert (kept(CLASSES.index(name), limit - 0.01), kept(CLASSES.index(name), limit + 0.01)) == (1, 0)


def test_the_500_best_boxes_are_kept() -> None:
    scores = np.random.RandomState(0).permutation(600) / 600
    found = detections([[1, 0, 0, 1, 1, 1, 0, 0, 0]] * 600, scores.tolist())
    kept = [e["detection_score"] for e in format_detections(found, "t", np.eye(4), np.eye(4), CLASSES)]
    np.testing.assert_allclose(sorted(kept), np.arange(100, 600) / 600, atol=1e-6)


@pytest.mark.parametrize(
    ("box", "score", "label", "message"),
    [
        ([float("nan"), 0, 0, 1, 1, 1, 0, 0, 0], 0.5, 0, "detection 0 is not finite"),
        ([0, 0, 0, 1, 1, 1, 0, float("inf"), 0], 0.5, 0, "detection 0 is not finite"),
        ([0, 0, 0, 1, 1, 1, 0, 0, 0], float("nan"), 0, "detection 0 is not finite"),
        ([0, 0, 0, 1, 0, 1, 0, 0, 0], 0.5, 0, "size that is not positive"),
        ([0, 0, 0, 1, 1, 1, 0, 0, 0], 0.5, 10, "do not fit 10 classes"),
    ],
)
def test_bad_detections_are_refused(box: list[float], score: float, label: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"sample t: .*{message}"):
        format_detections(detections([box], [score], [label]), "t", np.eye(4), np.eye(4), CLASSES)


def test_number_of_results_must_match(val: NuScenesDataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 results for 81 samples"):
        val.format([none()] * 2, tmp_path)


# -- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("results", [{}, {"a": []}, {"a": [{"size": [1.0, 0.1, 1e-20], "name": '\u00e9"'}], "b": []}])
def test_a_submission_is_plain_json(results: dict, tmp_path: Path) -> None:
    meta = dict.fromkeys(MODALITIES, False) | {"use_radar": True}
    path = write_submission(results, tmp_path / "results.json", use_radar=True)
    assert path.read_text() == json.dumps({"meta": meta, "results": results})


def test_missing_samples_are_counted_and_named(root: Path, tmp_path: Path) -> None:
    path = write_submission({FIRST: []}, tmp_path / "results.json")
    with pytest.raises(ValueError, match="no entry for 80 of 81 samples"):
        evaluate_submission(path, root, "v1.0-mini", "mini_val", tmp_path)


def test_bad_submissions(root: Path, tmp_path: Path) -> None:
    def evaluate(text: str, **arguments: object) -> None:
        (tmp_path / "r.json").write_text(text)
        evaluate_submission(tmp_path / "r.json", root, "v1.0-mini", "mini_val", tmp_path, **arguments)

    with pytest.raises(FileNotFoundError, match="does not exist"):
        evaluate_submission(tmp_path / "none.json", root, "v1.0-mini", "mini_val", tmp_path)
    with pytest.raises(ValueError, match="not valid JSON"):
        evaluate("{")
    with pytest.raises(ValueError, match="needs an object 'meta'"):
        evaluate('{"results": {}}')
    entry = {"sample_token": FIRST, "translation": [0, 0, 0], "size": [1, 1, 1], "rotation": [1, 0, 0, 0]}
    entry |= {"velocity": [0, 0], "detection_name": "cat", "detection_score": 0.5, "attribute_name": ""}
    submission = {"meta": {}, "results": {FIRST: [entry]}}
    with pytest.raises(ValueError, match="devkit refuses"):
        evaluate(json.dumps(submission), tokens=[FIRST])
    for nothing in (None, [None]):
        submission["results"][FIRST] = nothing
        with pytest.raises(ValueError, match=rf"r\.json: sample {FIRST} has \[?None\]? instead of a list"):
            evaluate(json.dumps(submission), tokens=[FIRST])
    submission["results"][FIRST] = [{**entry, "sample_token": "x"}]
    with pytest.raises(ValueError, match=f"an entry of sample {FIRST} names sample x"):
        evaluate(json.dumps(submission), tokens=[FIRST])
    submission["results"][FIRST] = [entry] * 501
    with pytest.raises(ValueError, match="has 501 boxes"):
        evaluate(json.dumps(submission), tokens=[FIRST])
    with pytest.raises(ValueError, match="1 samples to score are not in split"):
        evaluate(json.dumps(submission), tokens=["x"])
    with pytest.raises(ValueError, match="no sample to score"):
        evaluate(json.dumps(submission), tokens=[])


def test_splits_that_cannot_be_scored(root: Path, published: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"v1\.0-test has no public annotations"):
        evaluate_submission(published, root, "v1.0-test", None, tmp_path)
    with pytest.raises(ValueError, match="no split 'mini_vla', did you mean 'mini_val'"):
        evaluate_submission(published, root, "v1.0-mini", "mini_vla", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"v1\.0-synthetic is no official version"):
        evaluation_split(root, "v1.0-synthetic")


def test_custom_splits(root: Path, published: Path, tmp_path: Path) -> None:
    world = tmp_path / "world"
    world.mkdir()
    for folder in ("samples", "sweeps", "maps"):
        (world / folder).symlink_to(root / folder)
    (world / "v1.0-own").mkdir()
    for table in (root / "v1.0-mini").iterdir():
        (world / "v1.0-own" / table.name).symlink_to(table)
    # Also names that the devkit reserves for its own versions.
    (world / "v1.0-own" / "splits.json").write_text(
        json.dumps({"train": ["scene-0061"], "val": ["scene-0103", "scene-0916"]})
    )
    assert evaluation_split(world, "v1.0-own") == "val"
    assert split_tokens(world, "v1.0-own", "train") == ["ca9a282c9e77460f8360f564131a8af5"]
    metrics = evaluate_submission(published, world, "v1.0-own", None, tmp_path / "out")
    assert metrics["object/map"] == MAP


# -- command line and files -----------------------------------------------------------------------------------------


def test_command_line(published: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(REPOSITORY / "tools" / "evaluate.py"))["main"]
    where = ["--dataroot", str(root), "--version", "v1.0-mini", "--split", "mini_val", "--out", str(tmp_path)]
    assert main(["nuscenes", str(published), *where]) == 0
    assert "mAP: 0.0755" in capsys.readouterr().out
    assert json.loads((tmp_path / "metrics_summary.json").read_text())["mean_ap"] == MAP
    (tmp_path / "tokens.json").write_text(json.dumps([FIRST]))
    assert main(["nuscenes", str(published), *where, "--tokens", str(tmp_path / "tokens.json")]) == 0
    assert "mAP: 0.0755" not in capsys.readouterr().out
    assert main(["nuscenes", str(tmp_path / "none.json"), *where]) == 2
    assert capsys.readouterr().err == f"error: results file {tmp_path / 'none.json'} does not exist\n"


def test_command_line_replaces_no_metrics_unasked(published: Path, root: Path, tmp_path: Path, capsys) -> None:
    main = runpy.run_path(str(REPOSITORY / "tools" / "evaluate.py"))["main"]
    results = tmp_path / "results_nusc.json"
    results.write_bytes(published.read_bytes())
    (tmp_path / "metrics_summary.json").write_text("of the submission")
    where = ["nuscenes", str(results), "--dataroot", str(root), "--version", "v1.0-mini", "--split", "mini_val"]
    assert main(where) == 2
    assert f"give --out FOLDER for the new metrics, or --out {tmp_path} to replace it" in capsys.readouterr().err
    assert (tmp_path / "metrics_summary.json").read_text() == "of the submission"
    (tmp_path / "tokens.txt").write_text("no JSON")
    assert main([*where, "--out", str(tmp_path), "--tokens", str(tmp_path / "tokens.txt")]) == 2
    said = capsys.readouterr().err
    assert f"--tokens {tmp_path / 'tokens.txt'} is not valid JSON" in said and "a JSON list of sample tokens" in said
