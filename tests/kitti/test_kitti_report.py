"""The page of `evaluate.py kitti --report`: its counts are those of objects that were put there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdet3d.commands import evaluate
from mmdet3d.datasets.kitti.labels import write_labels, write_results
from mmdet3d.evaluation.kitti_objects import Objects

# Cars 20, 30 (partly hidden) and 15 m ahead: truncated, occluded, alpha, box, size, place, rotation, score.
CARS = np.array(
    [
        [0, 0, 0.1, 600, 150, 700, 210, 1.5, 1.6, 4.0, 0, 1.6, 20, 0.1, 1],
        [0, 1, 0.1, 300, 150, 380, 200, 1.5, 1.6, 4.0, -10, 1.6, 30, 0.1, 1],
        [0, 0, 0.1, 900, 150, 1000, 220, 1.5, 1.6, 4.0, 5, 1.6, 15, 0.1, 1],
    ]
)
FRAMES = ("000000", "000001")


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two frames of three cars. `ours` has the first, one too far away, none of the third, and one where nothing is."""
    labels = Objects.from_table(["Car"] * 3, CARS)
    ours, theirs = CARS[[0, 1, 1]].copy(), CARS[1:].copy()
    ours[1, 12] = 40  # in the image as it should be
    ours[2, 3:7], ours[2, 10] = (1100, 150, 1180, 200), 15
    for name in FRAMES:
        write_labels(tmp_path / "training" / "label_2" / f"{name}.txt", labels)
        write_results(tmp_path / "ours" / "data" / f"{name}.txt", Objects.from_table(["Car"] * 3, ours))
        write_results(tmp_path / "theirs" / "data" / f"{name}.txt", Objects.from_table(["Car"] * 2, theirs))
    images = tmp_path / "training" / "image_2"
    images.mkdir()
    Image.new("RGB", (1242, 375), (120, 120, 120)).save(images / "000000.png")
    (tmp_path / "ids.txt").write_text("\n".join(FRAMES))
    return tmp_path


def report(root: Path, *more: str) -> str:
    words = ["kitti", root / "ours" / "data", "--labels", root / "training" / "label_2", "--ids", root / "ids.txt"]
    assert evaluate.main([*map(str, words), "--report", str(root / "report"), *more]) == 0
    return (root / "report" / "report.html").read_text()


def rows(page: str, heading: str) -> list[list[str]]:
    part = page.split(f"<h2>{heading}")[1].split("<h2>")[0]
    return [re.findall(r"<t[dh]>(.*?)</t[dh]>", line) for line in re.findall(r"<tr>.*?</tr>", part)]


def test_every_object_is_accounted_for(folders: Path) -> None:
    page = report(folders)
    assert "2 frames, 6 objects that KITTI counts" in page and not re.search(r'(src|href)="(?!data:)', page)
    reasons = rows(page, "What is missed")
    assert reasons[1] == ["Car", "0", "2", "2", "4"]  # the two far away ones are false, too
    by_distance = rows(page, "Share of the objects that is found, by distance")
    assert by_distance[1] == ["Car", "&ndash;", "0.000", "1.000", "0.000", "&ndash;"]
    by_occlusion = rows(page, "Share of the objects that is found, by occlusion")
    assert by_occlusion[1][:3] == ["Car", "0.500", "0.000"]
    assert rows(page, "Errors of what is found")[1] == ["Car", *["0.000"] * 5]
    assert page.count("<img") == 1 and "frame 000000: 2 missed (orange), 2 false (red)" in page
    assert "Frame 000001 is not drawn" in page
    assert (folders / "report" / "metrics.json").is_file()


def test_two_results_are_compared(folders: Path) -> None:
    page = report(folders, "--against", str(folders / "theirs" / "data"), "--titles", "mine", "other")
    assert "Both find 0 objects; mine alone finds 2, other alone 4." in page
    assert re.findall(r">([+-]\d+)<", page)[:2] == ["-4", "+2"]


def test_options_of_the_report_alone_are_refused(folders: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["kitti", str(folders / "ours" / "data"), "--against", str(folders / "theirs" / "data")]
    assert evaluate.main(words) == 2
    assert "--against is for the report: give --report DIR, too" in capsys.readouterr().err
