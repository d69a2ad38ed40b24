"""Tables with every sort of fault: the command ends with one sentence that names table and row."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmdet3d.commands import create_data
from mmdet3d.datasets.synthetic import VERSION

Rows = list[dict[str, Any]]


@pytest.fixture
def own(world: Path, tmp_path: Path) -> Path:
    """The world with tables of its own, and the same sensor files."""
    shutil.copytree(world / VERSION, tmp_path / "own" / VERSION)
    for folder in ("samples", "sweeps"):
        (tmp_path / "own" / folder).symlink_to(world / folder)
    return tmp_path / "own"


def edit(root: Path, table: str, change: Callable[[Rows], Any]) -> Rows:
    file = root / VERSION / f"{table}.json"
    rows = json.loads(file.read_text())
    change(rows)
    file.write_text(json.dumps(rows))
    return rows


def error(root: Path, capsys: pytest.CaptureFixture, *words: str) -> str:
    capsys.readouterr()
    assert create_data.main(["truckscenes", "--root-path", str(root), "--workers", "1", *words]) == 2
    said = capsys.readouterr().err
    return said[said.index("error: ") :]


def in_first(**values: Any) -> Callable[[Rows], None]:
    return lambda rows: rows[0].update(values)


def without(column: str) -> Callable[[Rows], None]:
    return lambda rows: [row.pop(column) for row in rows] and None


def own_token(column: str) -> Callable[[Rows], None]:
    return lambda rows: rows[0].update({column: rows[0]["token"]})


def circle(rows: Rows) -> None:
    """Two rows that follow each other for ever."""
    chained = next(row for row in rows if row["next"])
    next(row for row in rows if row["token"] == chained["next"])["next"] = chained["token"]


def of_cameras(rows: Rows) -> None:
    for row in rows:
        row["camera_intrinsic"] = []


@pytest.mark.parametrize("words", [(), ("--check",)])
@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("sample", own_token("next"), "from row {token}, `next` leads back to that row"),
        ("sample", own_token("prev"), "from row {token}, `prev` leads back to that row"),
        ("sample", circle, "`next` leads back to that row"),
        ("sample_data", own_token("prev"), "from row {token}, `prev` leads back to that row"),
        ("sample_annotation", own_token("next"), "from row {token}, `next` leads back to that row"),
        ("sample", lambda rows: rows.append(dict(rows[0])), "several rows of token {token}"),
        ("sample", lambda rows: rows.clear(), "is empty"),
        ("calibrated_sensor", lambda rows: rows.clear(), "is empty"),
        ("sample", lambda rows: rows.append(1), "must be a JSON list of objects"),
        ("sample", in_first(next="nowhere"), "row {token}: `next` is 'nowhere', which no row of sample.json"),
        (
            "sample_annotation",
            in_first(instance_token="nowhere"),
            "`instance_token` is 'nowhere', which no row of",
        ),
        ("sample_annotation", in_first(attribute_tokens=["x"]), "`attribute_tokens` is 'x', which no row of"),
        ("sample_data", in_first(sample_token="nowhere", is_key_frame=True), "`sample_token` is 'nowhere'"),
        ("sample_data", in_first(timestamp=None), "row {token}: `timestamp` is None instead of a time in microseconds"),
        ("sample_annotation", in_first(size=[1.0, 2.0]), r"`size` is [1.0, 2.0] instead of three numbers"),
        ("ego_pose", in_first(rotation=None), "`rotation` is None instead of a quaternion"),
        ("ego_pose", in_first(rotation=[0, 0, 0, 0]), "`rotation` is [0, 0, 0, 0] instead of a quaternion"),
        ("ego_pose", in_first(translation=[1.0, 2.0]), "`translation` is [1.0, 2.0] instead of three numbers"),
        ("ego_pose", in_first(translation=[10**400, 0, 0]), "instead of three numbers"),
        ("calibrated_sensor", of_cameras, "`camera_intrinsic` of a camera is empty"),
        ("calibrated_sensor", in_first(camera_intrinsic=[[1.0]]), "instead of 3 x 3 numbers"),
        ("ego_motion_cabin", without("timestamp"), "`timestamp` is missing; it must be a time in microseconds"),
        ("ego_motion_cabin", without("vx"), "`vx` is missing; it must be a number"),
    ],
)
def test_a_table_with_a_fault_is_named_with_its_row(
    table: str, change: Callable, message: str, words: tuple, own: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = edit(own, table, change)
    token = rows[0].get("token") if rows else ""
    said = error(own, capsys, *words)
    assert message.format(token=token) in said and said.count("\n") == 1
    assert f"{own / VERSION / table}.json" in said


def test_an_object_is_no_table(own: Path, capsys: pytest.CaptureFixture) -> None:
    (own / VERSION / "sample.json").write_text("{}")
    assert "sample.json must be a JSON list of objects" in error(own, capsys)


def test_motion_that_is_no_number(own: Path, capsys: pytest.CaptureFixture) -> None:
    edit(own, "ego_motion_cabin", lambda rows: [row.update(vx=math.nan) for row in rows])
    for words in ((), ("--check",)):
        said = error(own, capsys, *words)
        assert re.search(r"the motion of RADAR_\w+ in sample \w+ \(table ego_motion_cabin\) is not finite", said)


@pytest.mark.parametrize("values", [{"size": [1e300, 2.0, 2.0]}, {"translation": [1e300, 0.0, 0.0]}])
def test_the_check_finds_boxes_that_cannot_be(values: dict, own: Path, capsys: pytest.CaptureFixture) -> None:
    edit(own, "sample_annotation", in_first(**values))
    assert "box: 1 wrong" in error(own, capsys, "--check")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"own_val": [["nowhere"]]}, "must be a JSON object from split name to list of scene names"),
        ({"own_val": ["nowhere"]}, "none of the 2 scenes"),
        ({"own_train": ["synthetic-0000"], "own_val": ["nowhere"]}, "split 'own_val' of v1.0-synthetic names no scene"),
    ],
)
def test_the_check_finds_splits_without_scenes(
    names: dict, message: str, own: Path, capsys: pytest.CaptureFixture
) -> None:
    (own / VERSION / "splits.json").write_text(json.dumps(names))
    assert message in error(own, capsys, "--check")
