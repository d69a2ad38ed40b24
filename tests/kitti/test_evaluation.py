"""KITTI average precision against the official program's curves, against plain loops, and on cases made by hand."""

from __future__ import annotations

import json
import math
import runpy
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kitti_rules import curve, dont_care, frame, random_frame, row

from mmdet3d.datasets import KittiDataset
from mmdet3d.datasets.kitti.files import split_ids
from mmdet3d.datasets.kitti.labels import write_labels, write_results
from mmdet3d.evaluation.kitti import (
    CLASSES,
    DIFFICULTIES,
    LOOSE,
    METRICS,
    STRICT,
    evaluate,
    faults_of_truth,
    precision_curves,
)
from mmdet3d.evaluation.kitti_objects import Objects
from mmdet3d.evaluation.kitti_table import metrics_by_name

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = {"bbox": "stats_car_detection.txt", "bev": "stats_car_detection_ground.txt", "3d": "stats_car_detection_3d.txt"}
BOX = [600.0, 150, 700, 210]


def command(*words: object) -> int:
    return runpy.run_path(str(REPOSITORY / "tools" / "evaluate.py"))["main"]([str(w) for w in words])


# -- the official program -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of the published Car results and of the labels."""
    results, labels = tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("labels")
    wanted = {f"{i}.txt" for i in split_ids("val")}
    with tarfile.open(shared / "data" / "kitti_eval" / "detections_val_car.tar.xz") as archive:
        for member in archive:
            if Path(member.name).name in wanted:
                (results / Path(member.name).name).write_bytes(archive.extractfile(member).read())
    with zipfile.ZipFile(shared / "data" / "kitti_all" / "label_2.zip") as archive:
        for name in archive.namelist():
            if Path(name).name in wanted:
                (labels / Path(name).name).write_bytes(archive.read(name))
    return results, labels


def test_equals_the_official_program(
    published: tuple[Path, Path], shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    results, labels = published
    ids = shared / "data" / "kitti_eval" / "val.txt"
    start = time.process_time()
    assert command("kitti", results, "--labels", labels, "--ids", ids, "--out", tmp_path) == 0
    assert time.process_time() - start < 20
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for metric, file in FILES.items():
        curves = 100 * np.loadtxt(shared / "data" / "kitti_eval" / file)
        np.testing.assert_allclose(metrics["Car"][metric]["R40"], curves[:, 1:].mean(1), rtol=0, atol=1e-4)
        np.testing.assert_allclose(metrics["Car"][metric]["R11"], curves[:, ::4].mean(1), rtol=0, atol=1e-4)
    assert metrics["Car"]["aos"]["R40"] == [0, 0, 0]  # these results give no orientation
    assert metrics["Cyclist"]["3d"]["R40"] == [0, 0, 0]
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert ["3d@0.7", "88.92", "77.08", "69.78"] in [row[:4] for row in rows]
    assert "3769 frames" in printed


# -- the same rules as plain loops ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("overlaps", [STRICT, LOOSE], ids=["strict", "loose"])
def test_equals_plain_loops(seed: int, overlaps: dict) -> None:
    rng = np.random.default_rng(seed)
    labels, results = zip(*(random_frame(rng, CLASSES) for _ in range(40)), strict=True)
    got = precision_curves(labels, results, overlaps)
    for name in CLASSES:
        level = int(rng.integers(0, 3))
        for metric, minimum in overlaps[name].items():
            precision, similarity = curve(labels, results, name, level, metric, minimum)
            np.testing.assert_allclose(got[name][metric][level], precision, atol=1e-12)
            if metric == "bbox":
                np.testing.assert_allclose(got[name]["aos"][level], similarity, atol=1e-12)
    assert max(c["3d"].max() for c in got.values()) > 0.3


# -- by hand --------------------------------------------------------------------------------------------------------


def cars(count: int, **changes: object) -> list[Objects]:
    return [frame(row(scores=1 - k / 1000, **changes)) for k in range(count)]


def scores(labels: list[Objects], results: list[Objects], kind: str = "R40", level: int = 1, name: str = "Car") -> dict:
    metrics = evaluate(labels, results)
    return {metric: metrics[name][metric][kind][level] for metric in METRICS}


def same(value: float) -> dict:
    return pytest.approx(dict.fromkeys(METRICS, value))


@pytest.mark.parametrize("count", [1, 2, 10, 40, 41, 60])
@pytest.mark.parametrize("shift", [0.0, 0.02])
def test_all_found(count: int, shift: float) -> None:
    """Also bit-identical boxes; fewer than 41 objects never reach 100."""
    assert scores(cars(count), cars(count, x=shift, boxes2d=BOX)) == same(100 * (min(count, 41) - 1) / 40)


def test_r11_needs_eleven_samples() -> None:
    assert scores(cars(41), cars(41), "R11") == same(100)
    assert scores(cars(5), cars(5), "R11") == same(100 * 2 / 11)


def test_nothing_to_find_and_nothing_found() -> None:
    none = [Objects.empty()] * 3
    assert scores(none, none) == scores(cars(3), none) == scores(none, cars(3)) == same(0)


def test_what_a_zero_means_is_said() -> None:
    assert faults_of_truth(cars(3), ["Car"]) == []
    (absent,) = faults_of_truth(cars(3), ["Car", "Cyclist"])
    assert absent.startswith("there is no Cyclist to find that KITTI counts")
    (flat,) = faults_of_truth(cars(3, boxes2d=(0, 0, 0, 0)), ["Car"])
    assert "the labels have no 2-D boxes" in flat and "every AP is 0" in flat
    (hidden,) = faults_of_truth(cars(3, occluded=3), ["Car"])
    assert "no Car to find" in hidden


def test_a_duplicate_is_a_false_positive() -> None:
    results = cars(41)
    results[0] = frame(row(scores=1.5), row(x=0.2, boxes2d=[605, 150, 705, 210], scores=2.0))
    assert scores(cars(41), results) == same(100 * 41 / 42)


def test_equal_overlap_of_another_class_does_not_matter() -> None:
    results = [frame(row(scores=1 - k / 1000), row("Cyclist", scores=2.0)) for k in range(41)]
    assert scores(cars(41), results) == same(100)


def test_dont_care_regions_excuse_in_the_image_only() -> None:
    labels, results = cars(41), cars(41)
    inside, outside = [1000.0, 150, 1100, 210], [200.0, 150, 300, 210]
    labels[0] = Objects.cat([labels[0], frame(dont_care([990, 140, 1110, 220]))])
    for box, excused in [(inside, True), (outside, False)]:
        results[0] = frame(row(), row(x=30, boxes2d=box, scores=2.0))
        got = scores(labels, results)
        assert got["bbox"] == pytest.approx(100 if excused else 100 * 41 / 42)
        assert got["bev"] == got["3d"] == pytest.approx(100 * 41 / 42)


@pytest.mark.parametrize(("height", "easy", "moderate"), [(25, 0, 0), (25.01, 0, 1), (40, 0, 1), (40.01, 1, 1)])
def test_small_objects_are_ignored(height: float, easy: int, moderate: int) -> None:
    labels = [frame(row(boxes2d=[600, 150, 700, 150 + height])) for _ in range(41)]
    assert scores(labels, labels, level=0) == same(100 * easy)
    assert scores(labels, labels, level=1) == same(100 * moderate)


@pytest.mark.parametrize(("height", "counts"), [(24.99, 0), (25, 1)])
def test_small_false_detections_are_ignored(height: float, counts: int) -> None:
    results = cars(41)
    results[0] = frame(row(), row(x=30, boxes2d=[100, 150, 200, 150 + height], scores=2.0))
    assert scores(cars(41), results) == same(100 * 41 / (41 + counts))


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        ({"occluded": 1}, [0, 1, 1]),
        ({"occluded": 2}, [0, 0, 1]),
        ({"occluded": 3}, [0, 0, 0]),
        ({"truncated": 0.15}, [1, 1, 1]),
        ({"truncated": 0.3}, [0, 1, 1]),
        ({"truncated": 0.5}, [0, 0, 1]),
        ({"truncated": 0.51}, [0, 0, 0]),
    ],
)
def test_difficulty(change: dict, counts: list[int]) -> None:
    got = evaluate(cars(41, **change), cars(41))["Car"]["3d"]["R40"]
    assert got == pytest.approx([100.0 * c for c in counts])


@pytest.mark.parametrize(
    ("name", "neighbour"), [("Car", "Van"), ("Pedestrian", "Person_sitting"), ("Cyclist", "Pedestrian")]
)
def test_neighbouring_classes(name: str, neighbour: str) -> None:
    """A Van found as Car is no error, and one not found is not missed; there is no such class beside Cyclist."""
    labels = [frame(row(name), row(neighbour, x=30)) for _ in range(41)]
    found = [frame(row(name, scores=1 - k / 1000), row(name, x=30, scores=2 - k / 1000)) for k in range(41)]
    missed = [frame(row(name, scores=1 - k / 1000)) for k in range(41)]
    assert scores(labels, missed, name=name) == same(100)
    assert scores(labels, found, name=name) == same(100 if name != "Cyclist" else 50)


@pytest.mark.parametrize(("turn", "share"), [(0, 1), (math.pi / 2, 0.5), (math.pi, 0), (2 * math.pi, 1)])
def test_orientation(turn: float, share: float) -> None:
    got = scores(cars(41), cars(41, alpha=0.3 + turn))
    assert got["aos"] == pytest.approx(100 * share)
    assert got["bbox"] == got["3d"] == pytest.approx(100)


def test_overlap_must_exceed_the_minimum() -> None:
    """A box of 70 x 100 in one of 100 x 100 has an IoU of exactly 0.7."""
    labels = cars(41, boxes2d=[0, 0, 100, 100])
    for width, found in [(70, 0), (70.01, 1)]:
        assert scores(labels, cars(41, boxes2d=[0, 0, width, 100]))["bbox"] == pytest.approx(100 * found)


def test_loose_overlaps() -> None:
    labels, results = cars(41), cars(41, locations=[0, 1.6, 20.4])
    assert evaluate(labels, results)["Car"]["3d"]["R40"] == [0, 0, 0]
    assert evaluate(labels, results, LOOSE)["Car"]["3d"]["R40"] == pytest.approx([100] * 3)


def test_detections_without_a_box_in_space() -> None:
    results = cars(41, sizes=[-1, -1, -1], locations=[-1000] * 3)
    assert scores(cars(41), results) == pytest.approx({"bbox": 100, "bev": 0, "3d": 0, "aos": 100})


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6))
def test_neither_the_order_of_frames_nor_the_scale_of_scores_matters(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frames = [random_frame(rng, CLASSES) for _ in range(20)]
    expected = evaluate(*zip(*frames, strict=True))
    for _, results in frames:
        results.scores = np.exp(results.scores / 3) * 7 - 100
    rng.shuffle(frames)
    changed = evaluate(*zip(*frames, strict=True))
    for name in CLASSES:
        for metric in METRICS:
            assert changed[name][metric]["R40"] == pytest.approx(expected[name][metric]["R40"])
            assert all(0 <= v <= 100 for v in changed[name][metric]["R11"])


def test_numbers_of_frames_must_agree() -> None:
    with pytest.raises(ValueError, match="got 3 and 2"):
        evaluate(cars(3), cars(2))
    with pytest.raises(ValueError, match="got 0 and 0"):
        evaluate([], [])


def test_table_names_every_class_and_metric() -> None:
    strict, loose = (evaluate(cars(41), cars(41), overlaps) for overlaps in (STRICT, LOOSE))
    metrics = metrics_by_name(strict, loose, CLASSES)
    kinds, difficulties, *rows = KittiDataset.benchmark({}).table(metrics).splitlines()
    assert kinds.split() == ["percent", "AP_R40", "AP_R11"] and difficulties.split() == [*DIFFICULTIES, *DIFFICULTIES]
    assert len(rows) * 6 == len(metrics) and max(map(len, rows)) < 100
    assert [row.split()[0] for row in rows if not row.startswith(" ")] == [*CLASSES, "mean"]
    assert rows[:2] == [
        f"{'Car':<12}{'bbox@0.7':<10}" + f"{'100.00':>10}" * 6,
        f"{'':<12}{'bev@0.7':<10}" + f"{'100.00':>10}" * 6,
    ]
    assert [row.split()[0] for row in rows[18:]] == ["mean", "bev", "3d", "aos", "bev@loose", "3d@loose"]


# -- command --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """`{root}/labels`, `{root}/results`, `{root}/ids.txt` with three frames, the last without detections."""
    for k in range(3):
        write_labels(tmp_path / "labels" / f"{k:06d}.txt", frame(row()))
        write_results(tmp_path / "results" / f"{k:06d}.txt", frame(row()) if k < 2 else Objects.empty())
    (tmp_path / "ids.txt").write_text("000000\n000001\n000002")
    return tmp_path


def score(root: Path) -> int:
    return command("kitti", root / "results", "--labels", root / "labels", "--ids", root / "ids.txt", "--out", root)


def test_command_takes_any_number_of_frames(folders: Path) -> None:
    assert score(folders) == 0
    metrics = json.loads((folders / "metrics.json").read_text())
    assert set(metrics) == set(CLASSES)
    assert set(metrics["Car"]) == set(METRICS)
    assert metrics["Car"]["3d"]["R40"] == pytest.approx([2.5] * 3)


GOOD = "Car 0.0 0 0.30 600 150 700 210 1.50 1.60 4.00 0.00 1.60 20.00 0.40 0.50"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (GOOD.rsplit(" ", 1)[0], "000001.txt, line 2: expected 16 columns (a result ends with a score), found 15"),
        (GOOD.replace("Car", "Lorry"), "000001.txt, line 2: unknown class 'Lorry'"),
        (GOOD.replace("0.50", "nan"), "000001.txt, line 2: column 16 is nan, not a finite number"),
        (GOOD.replace("1.60", "wide", 1), "000001.txt, line 2: not a number: 'wide'"),
    ],
)
def test_command_names_malformed_lines(folders: Path, line: str, message: str, capsys: pytest.CaptureFixture) -> None:
    (folders / "results" / "000001.txt").write_text(f"{GOOD}\n{line}\n")
    assert score(folders) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_command_names_what_is_missing(folders: Path, capsys: pytest.CaptureFixture) -> None:
    (folders / "results" / "000001.txt").unlink()
    assert score(folders) == 2
    assert f"1 of 3 files are missing in {folders / 'results'}: 000001.txt" in capsys.readouterr().err
    (folders / "results").rename(folders / "data")
    assert score(folders) == 2
    assert f"there is no folder {folders / 'results'}" in capsys.readouterr().err
    (folders / "results").mkdir()
    (folders / "data").rename(folders / "results" / "data")
    assert score(folders) == 2
    assert f"they may be in {folders / 'results' / 'data'}" in capsys.readouterr().err
    (folders / "ids.txt").write_text("\n")
    assert score(folders) == 2
    assert "ids.txt names no frame" in capsys.readouterr().err


def test_command_whose_output_folder_is_a_file(folders: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["--labels", folders / "labels", "--ids", folders / "ids.txt", "--out", folders / "ids.txt"]
    assert command("kitti", folders / "results", *words) == 2
    assert "ids.txt is a file); pass another folder with --out" in capsys.readouterr().err
