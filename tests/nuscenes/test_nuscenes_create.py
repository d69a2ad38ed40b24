"""Creating info files and the ground-truth database."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mmdet3d.datasets.nuscenes.create import create_nuscenes
from mmdet3d.datasets.nuscenes.database import points_in_box, read_database
from mmdet3d.datasets.nuscenes.infos import read_infos
from mmdet3d.datasets.nuscenes.resumable import resumable_map
from mmdet3d.io.pickles import dump_pickle
from mmdet3d.structures import Boxes3D

FIRST = "ca9a282c9e77460f8360f564131a8af5"
SPLITS = {"own_train": ["scene-0061"], "own_val": ["scene-0103"]}


def test_a_missing_sensor_file_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"LIDAR_TOP__\d+\.pcd\.bin \(sample \w+\) is missing.*--allow-missing"):
        create_nuscenes(root, tmp_path, "nuscenes", "v1.0-mini", workers=1)


def test_a_custom_version_needs_its_splits(copied: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"v1\.0-own is no official version.*splits\.json"):
        create_nuscenes(copied("v1.0-own"), tmp_path, version="v1.0-own")


def test_an_unknown_version_lists_those_that_exist(root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"'v1\.0-trainval'.*versions there: v1\.0-mini"):
        create_nuscenes(root, tmp_path, version="v1.0")


def test_custom_splits_and_what_is_in_no_split(copied: Callable[..., Path], tmp_path: Path) -> None:
    world = copied("v1.0-own", SPLITS)
    paths = create_nuscenes(world, tmp_path, "own", "v1.0-own", workers=1, allow_missing=True)
    assert {k: p.name for k, p in paths.items()} == {
        "train": "own_infos_train.pkl",
        "val": "own_infos_val.pkl",
        "database": "own_dbinfos_train.pkl",
    }
    records, metadata = read_infos(paths["val"])
    assert (len(records), metadata["split"], metadata["version"]) == (40, "own_val", "v1.0-own")
    assert records[0].next_token == records[1].token
    assert not [p for p in tmp_path.iterdir() if p.name.endswith((".parts", ".partial"))]


def test_a_test_split_has_no_annotation(copied: Callable[..., Path], tmp_path: Path) -> None:
    world = copied("v1.0-own", {"own_test": ["scene-0061"]})
    paths = create_nuscenes(world, tmp_path, "own", "v1.0-own", workers=1)
    assert list(paths) == ["test"]
    (record,) = read_infos(paths["test"])[0]
    assert record.boxes is None
    assert len(record.cameras) == 6


def test_a_split_without_scenes_is_not_written(copied: Callable[..., Path], tmp_path: Path) -> None:
    world = copied("v1.0-own", {"own_train": ["scene-0061"], "own_val": ["scene-9999"]})
    with pytest.warns(UserWarning, match="no scene of split 'own_val'"):
        paths = create_nuscenes(world, tmp_path, "own", "v1.0-own", workers=1)
    assert "val" not in paths


def test_bad_tables(copied: Callable[..., Path], tmp_path: Path) -> None:
    def no_size(rows: list[dict]) -> None:
        next(r for r in rows if r["sample_token"] == FIRST)["size"][0] = 0.0

    def no_number(rows: list[dict]) -> None:
        for row in rows:
            row["rotation"][0] = float("nan")

    world = copied("v1.0-size", {"own_train": ["scene-0061"]}, sample_annotation=no_size)
    with pytest.warns(UserWarning, match=f"sample {FIRST}: 1 of 68 boxes left out"):
        paths = create_nuscenes(world, tmp_path, "own", "v1.0-size", workers=1)
    assert len(read_infos(paths["train"])[0][0].boxes) == 67
    world = copied("v1.0-pose", {"own_train": ["scene-0061"]}, calibrated_sensor=no_number)
    with pytest.raises(ValueError, match=f"calibration of LIDAR_TOP in sample {FIRST} is not finite"):
        create_nuscenes(world, tmp_path, "own", "v1.0-pose", workers=1)


def test_finished_files_are_kept_until_something_changes(copied: Callable[..., Path], tmp_path: Path) -> None:
    world = copied("v1.0-own", {"own_train": ["scene-0061"]})

    def create(**settings: object) -> tuple[int, ...]:
        paths = create_nuscenes(world, tmp_path, "own", "v1.0-own", workers=1, **settings)
        return tuple(p.stat().st_mtime_ns for p in paths.values())

    first = create()
    assert create() == first
    assert create(max_sweeps=3)[0] != first[0]
    (world / "v1.0-own" / "visibility.json").write_text("[]")
    assert create()[0] != first[0]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_map_continues(workers: int, tmp_path: Path) -> None:
    done = tmp_path / "done"
    done.mkdir()
    pieces = {f"p{k}": k for k in range(6)}

    def failing(k: int) -> int:
        if k == 4:
            raise ValueError("interrupted")
        return square(k)

    def square(k: int) -> int:
        file = done / str(k)
        assert not file.exists(), "computed twice"
        file.touch()
        return k * k

    with pytest.raises(ValueError, match="interrupted"):
        resumable_map(failing, pieces, tmp_path / "parts", workers, "test")
    kept = {p.stem for p in (tmp_path / "parts").glob("*.pkl")}
    assert "p4" not in kept
    assert workers > 1 or kept == {"p0", "p1", "p2", "p3"}
    for file in done.iterdir():
        if f"p{file.name}" not in kept:
            file.unlink()
    assert resumable_map(square, pieces, tmp_path / "parts", workers, "test") == [k * k for k in range(6)]
    assert not (tmp_path / "parts").exists()


def test_a_killed_worker_is_an_error_and_what_was_done_is_kept(tmp_path: Path) -> None:
    """As by the kernel when memory runs out."""

    def killed(k: int) -> int:
        if k == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return k

    with pytest.raises(ValueError, match=r"a worker process was killed, probably for lack of memory; .*--workers"):
        resumable_map(killed, {f"p{k}": k for k in range(6)}, tmp_path / "parts", 2, "test")
    assert resumable_map(lambda k: k, {f"p{k}": k for k in range(6)}, tmp_path / "parts", 2, "test") == list(range(6))


def test_an_error_says_what_is_kept(tmp_path: Path) -> None:
    def fails(k: int) -> int:
        if k == 2:
            raise ValueError("file 2 is damaged")
        return k

    parts = tmp_path / "parts"
    with pytest.raises(ValueError, match=rf"file 2 is damaged \(2 of 3 parts are kept in {parts}"):
        resumable_map(fails, {f"p{k}": k for k in range(3)}, parts, 1, "test")
    with pytest.raises(ValueError, match=r"file 2 is damaged$"):
        resumable_map(fails, {"p2": 2}, tmp_path / "none", 1, "test")
    assert not (tmp_path / "none").exists()


# -- database -------------------------------------------------------------------------------------------------------


def test_database_points_lie_in_their_boxes(root: Path, created: dict[str, Path]) -> None:
    database = read_database(created["database"])
    (frame,) = read_infos(created["train"])[0]
    counts = {name: len(records) for name, records in database.items()}
    assert counts["car"] == 8
    assert sum(counts.values()) <= 68
    scan = torch.from_numpy(np.fromfile(root / frame.lidar.path, dtype="<f4").reshape(-1, 5))
    for record in (r for records in database.values() for r in records):
        points = np.fromfile(created["database"].parent / record.path, dtype="<f4").reshape(-1, 5)
        assert len(points) == record.num_points > 0
        points[:, :3] += record.origin
        box = Boxes3D(torch.from_numpy(record.box)[None])
        inside = scan[box.contains(scan)[0]].numpy()
        np.testing.assert_allclose(points[:, :4], inside[:, :4], atol=1e-4)
        assert (points[:, 4] == 0).all()


def test_points_in_box_equals_the_plain_test() -> None:
    rng = np.random.RandomState(0)
    points = torch.from_numpy(rng.uniform(-6, 6, (2000, 5))).float()
    for _ in range(20):
        box = torch.from_numpy(np.r_[rng.uniform(-2, 2, 3), rng.uniform(0.5, 6, 3), rng.uniform(-4, 4), 0, 0]).float()
        expected = points[Boxes3D(box[None]).contains(points)[0]]
        torch.testing.assert_close(points_in_box(points, box), expected)


def test_published_database(tmp_path: Path) -> None:
    record = {
        "name": "car",
        "path": "nuscenes_old_coor_gt_database/t_car_0.bin",
        "image_idx": "t",
        "gt_idx": 0,
        "box3d_lidar": np.array([1, 2, 0, 2, 4.5, 1.6, -0.3 - np.pi / 2, np.nan, 1], dtype=np.float32),
        "num_points_in_gt": 9,
        "difficulty": 0,
        "group_id": 3,
    }
    dump_pickle({"car": [record], "bus": []}, tmp_path / "db.pkl")
    database = read_database(tmp_path / "db.pkl")
    (found,) = database["car"]
    np.testing.assert_allclose(found.box, [1, 2, 0.8, 4.5, 2, 1.6, 0.3, 0, 1], atol=1e-6)
    np.testing.assert_allclose(found.origin, [1, 2, 0])
    assert (found.path, found.num_points, found.token) == (record["path"], 9, "t")
    assert database["bus"] == []


def test_no_database(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"create_data\.py"):
        read_database(tmp_path / "none.pkl")
    dump_pickle({"infos": [{"token": "a"}], "metadata": {}}, tmp_path / "infos.pkl")
    with pytest.raises(ValueError, match="no ground-truth database"):
        read_database(tmp_path / "infos.pkl")
