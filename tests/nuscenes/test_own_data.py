"""Own recordings in nuScenes' tables: what is used, what is lost, and what cannot be trained on is said."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmdet3d.commands import create_data
from mmdet3d.datasets import NuScenesDataset, check_data
from mmdet3d.datasets.nuscenes.create import create_nuscenes
from mmdet3d.datasets.nuscenes.infos import read_infos
from mmdet3d.datasets.nuscenes.submission import evaluate_submission
from mmdet3d.datasets.plausible import check_scan
from mmdet3d.datasets.synthetic import VERSION, WorldSettings, generate

SMALL = WorldSettings(scenes=2, keyframes=2, lidar_sweeps=1, radar_sweeps=1, image_size=(160, 90), val_fraction=0.5)
ANNOTATIONS = [{"type": "LoadAnnotations3D"}]
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("synthetic") / "world", SMALL, progress=False)


@pytest.fixture
def own(world: Path, tmp_path: Path) -> Callable[..., Path]:
    """`own(version, table=edit, ...)`: the world with its tables under another version name and changed."""

    def copy(version: str = VERSION, **edit: Callable[[Rows], Any]) -> Path:
        root = tmp_path / "own"
        shutil.copytree(world, root)
        (root / VERSION).rename(root / version)
        for table, change in edit.items():
            file = root / version / f"{table}.json"
            rows = json.loads(file.read_text())
            change(rows)
            file.write_text(json.dumps(rows))
        return root

    return copy


def create(root: Path, version: str = VERSION, **settings: Any) -> dict[str, Path]:
    return create_nuscenes(root, root, "own", version, workers=1, database=False, **settings)


def training(root: Path) -> NuScenesDataset:
    return NuScenesDataset("own_infos_train.pkl", str(root), ANNOTATIONS, use_valid_flag=True)


def everywhere(**values: Any) -> Callable[[Rows], None]:
    return lambda rows: [row.update(values) for row in rows] and None


def renamed(key: str, names: dict[str, str]) -> Callable[[Rows], None]:
    return lambda rows: [row.update({key: names.get(row[key], row[key])}) for row in rows] and None


# -- sensors --------------------------------------------------------------------------------------------------------


def test_channels_of_other_names_are_used_and_named(own: Callable[..., Path], capsys: pytest.CaptureFixture) -> None:
    names = {"CAM_BACK": "CAM_REAR", "RADAR_FRONT": "RAD_1", "RADAR_BACK_LEFT": "RAD_0"}
    root = own(sensor=renamed("channel", names))
    frame = read_infos(create(root)["train"])[0][0]
    assert list(frame.cameras)[:2] == ["CAM_FRONT", "CAM_FRONT_RIGHT"] and list(frame.cameras)[-1] == "CAM_REAR"
    assert len(frame.cameras) == 6 and list(frame.radars)[-2:] == ["RAD_0", "RAD_1"] and len(frame.radars) == 5
    out = capsys.readouterr().out
    assert "camera channels of other names than nuScenes': CAM_REAR (used like the others)" in out
    assert "radar channels of other names than nuScenes': RAD_0, RAD_1 (used" in out


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        (
            "sample",
            lambda rows: rows[0].update(next=rows[0]["token"]),
            r"sample\.json: from row \w+, `next` leads",
        ),
        ("log", lambda rows: rows[0].pop("location"), r"log\.json, row \w+: `location` is missing; it must be a text"),
        (
            "scene",
            lambda rows: rows[0].update(log_token="x"),
            r"scene\.json, row \w+: `log_token` is 'x'",
        ),
        ("map", lambda rows: rows[0].update(log_tokens=[]), r"map\.json: no map has log \w+ among its `log_tokens`"),
        ("map", lambda rows: rows.clear(), r"map\.json is empty"),
        (
            "ego_pose",
            lambda rows: rows[0].update(rotation=None),
            r"ego_pose\.json, row \w+: `rotation` is None",
        ),
        ("sample", lambda rows: rows.append(rows[0]), r"sample\.json has several rows of token"),
    ],
)
def test_tables_that_cannot_be_read(
    table: str, change: Callable, message: str, own: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    """The rest of the kinds is tested on TruckScenes' tables."""
    root = own(**{table: change})
    for words in ((), ("--check",)):
        assert create_data.main(["nuscenes", "--root-path", str(root), "--version", VERSION, *words]) == 2
        error = capsys.readouterr().err
        assert re.match(rf"error: table \S*{message}", error) and error.count("\n") == 1


def test_scanners_and_radars_need_no_intrinsics(own: Callable[..., Path]) -> None:
    create(own(calibrated_sensor=lambda rows: [r.pop("camera_intrinsic") for r in rows if not r["camera_intrinsic"]]))


def test_a_scanner_of_another_name(own: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"has no LIDAR_TOP key frame \(LiDARs: TOP\)"):
        create(own(sensor=renamed("channel", {"LIDAR_TOP": "TOP"})))


@pytest.mark.parametrize("sort", ["camera", "radar"])
def test_a_model_whose_sensor_no_frame_has(sort: str, own: Callable[..., Path], capsys: pytest.CaptureFixture) -> None:
    def without(rows: Rows) -> None:
        rows[:] = [row for row in rows if f"/{sort[:3].upper()}" not in row["filename"]]

    root = own(sample_data=without)
    create(root)
    assert f"no frame has a {sort}: models that read one cannot be trained on this" in capsys.readouterr().out
    check_data(training(root), {"camera", "radar"} - {sort} | {"lidar"}, "data.train")
    with pytest.raises(ValueError, match=rf"data\.train: no frame in .* has a file of a {sort}, which the model \(or"):
        check_data(training(root), ("camera", "radar"), "data.train")


def test_images_of_none_are_no_images(own: Callable[..., Path]) -> None:
    """A LiDAR rig goes through the usual pipeline."""
    root = own(sample_data=lambda rows: rows.__setitem__(slice(None), [r for r in rows if "/CAM" not in r["filename"]]))
    create(root)
    steps = [
        {"type": "LoadMultiViewImageFromFiles"},
        {"type": "LoadPointsFromFile"},
        {"type": "ImageAug3D", "final_dim": [32, 64], "resize_lim": [0.4, 0.5]},
        {"type": "ImageNormalize", "mean": [0.5], "std": [0.5]},
        {"type": "GridMask", "prob": 1.0},
    ]
    (sample, _) = NuScenesDataset("own_infos_train.pkl", str(root), steps, test_mode=True)
    assert len(sample.images) == 0 and len(sample.points) > 100


# -- annotations ----------------------------------------------------------------------------------------------------


def test_categories_may_be_called_as_the_classes(world: Path, own: Callable[..., Path], tmp_path: Path) -> None:
    """They train and they are scored; before, the evaluation found no object after the training."""
    names = {"vehicle.car": "car", "human.pedestrian.adult": "pedestrian", "vehicle.bus.rigid": "bus"}
    root = own(category=renamed("name", names))
    create(root)
    val = NuScenesDataset("own_infos_val.pkl", str(root), use_valid_flag=True, test_mode=True)
    metrics = val.evaluate([val.ground_truth(k) for k in range(len(val))], tmp_path / "own-scores")
    usual = evaluate_submission(tmp_path / "own-scores" / "results_nusc.json", world, VERSION, None, tmp_path / "usual")
    assert metrics == pytest.approx(usual, nan_ok=True) and metrics["object/map"] > 0


def test_unknown_categories_are_counted_and_named(own: Callable[..., Path], capsys: pytest.CaptureFixture) -> None:
    root = own(category=renamed("name", {"vehicle.car": "Car"}))
    create(root)
    out = capsys.readouterr().out
    records = read_infos(root / "own_infos_train.pkl")[0]
    cars = sum((r.names == "Car").sum() for r in records)
    assert cars and f"{cars} objects are left out: their category 'Car' is none of nuScenes', did you mean 'car'" in out
    tally = training(root).tally
    assert tally.left_out["Car of no class here"] > 0 and "car" not in tally.counting


def test_half_a_name_of_a_category_is_completed(own: Callable[..., Path], capsys: pytest.CaptureFixture) -> None:
    create(own(category=renamed("name", {"human.pedestrian.adult": "adult"})))
    assert (
        "their category 'adult' is none of nuScenes', did you mean 'human.pedestrian.adult'?" in capsys.readouterr().out
    )


def test_the_command_that_makes_missing_info_files_names_the_tables_that_are_there(own: Callable[..., Path]) -> None:
    with pytest.raises(FileNotFoundError, match=rf"--extra-tag none --version {VERSION}$"):
        NuScenesDataset("none_infos_val.pkl", str(own()))


def test_points_that_nobody_counted(own: Callable[..., Path], capsys: pytest.CaptureFixture) -> None:
    """One sentence at once, instead of a search for a sample that ends with the ranges being blamed."""
    root = own(sample_annotation=everywhere(num_lidar_pts=0, num_radar_pts=0))
    create(root)
    assert "num_lidar_pts and num_radar_pts are 0 in all annotations, so none counts" in capsys.readouterr().out
    message = (
        r"no object of car, .* to learn in .*: 0 of \d+ annotated objects in 2 frames; left out: .*without LiDAR or"
    )
    with pytest.raises(ValueError, match=f"{message}.*if nobody counted the points"):
        check_data(training(root), ("lidar",), "data.train")
    with pytest.raises(ValueError, match=message):
        training(root)[0]
    val = NuScenesDataset("own_infos_val.pkl", str(root), test_mode=True)
    check_data(val, ("lidar",), "data.val")
    with pytest.raises(ValueError, match=r"data\.val: there is no object of .* to score"):
        check_data(val, ("lidar",), "data.val", scored=True)


def test_objects_without_velocity(
    own: Callable[..., Path],
    capsys: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
) -> None:
    root = own(sample_annotation=everywhere(prev="", next=""))
    create(root)
    assert "no object has a velocity, which needs prev and next" in capsys.readouterr().out
    with caplog.at_level(logging.INFO, "mmdet3d"):
        check_data(training(root), ("lidar",), "data.train")
    assert any("no object in" in line and "has a velocity" in line for line in caplog.messages)
    assert any(line.startswith("learnt: ") and "annotated objects in 2 frames" in line for line in caplog.messages)


def test_what_is_left_out_of_the_ground_truth_is_counted(own: Callable[..., Path]) -> None:
    root = own(sample_annotation=lambda rows: rows[0].update(num_lidar_pts=0, num_radar_pts=0))
    create(root)
    whole = [r for role in ("train", "val") for r in read_infos(root / f"own_infos_{role}.pkl")[0]]
    datasets = [NuScenesDataset(f"own_infos_{role}.pkl", str(root), test_mode=True) for role in ("train", "val")]
    tallies = [d.annotations(range(len(d))) for d in datasets]
    assert sum(t.annotated for t in tallies) == sum(len(r.boxes) for r in whole)
    assert sum(t.counting.total() for t in tallies) == sum(len(d.ground_truth(k)) for d in datasets for k in range(2))
    assert sum(n for t in tallies for why, n in t.left_out.items() if "without LiDAR points" in why) >= 1


# -- splits ---------------------------------------------------------------------------------------------------------


def test_own_scenes_under_an_official_name(own: Callable[..., Path], capsys: pytest.CaptureFixture) -> None:
    root = own("v1.0-mini")
    assert list(create(root, "v1.0-mini")) == ["train", "val"]  # by its own splits.json
    assert read_infos(root / "own_infos_val.pkl")[1]["split"] == "synthetic_val"
    splits = root / "v1.0-mini" / "splits.json"
    splits.write_text(json.dumps({"own_train": ["synthetic-0000"]}))
    create(root, "v1.0-mini")
    assert "1 of 2 scenes are in no split (own_train) and left out: synthetic-0001" in capsys.readouterr().out
    splits.unlink()
    with pytest.raises(ValueError, match=r"none of the 2 scenes of v1.0-mini \(synthetic-0000, .*mini_train, mini_val"):
        create(root, "v1.0-mini")


# -- files of another layout ----------------------------------------------------------------------------------------


def shrink(file: Path) -> None:
    image = Image.open(file).convert("RGB")
    image.resize((96, 54)).save(file)


def test_images_of_another_size_than_the_tables_say(own: Callable[..., Path]) -> None:
    root = own()
    infos = create(root)
    for file in root.glob("samples/CAM_*/*"):
        shrink(file)
    images = NuScenesDataset("own_infos_val.pkl", str(root), [{"type": "LoadMultiViewImageFromFiles"}], test_mode=True)
    message = r"has 96 x 54 pixels, but sample_data.json gives its calibration for 160 x 90.*scale camera_intrinsic"
    with pytest.raises(ValueError, match=message):
        images[0]
    infos["train"].unlink()
    with pytest.raises(ValueError, match=message):
        create(root)


@pytest.mark.parametrize("width", [3, 4, 6])
def test_scans_of_another_layout(width: int, own: Callable[..., Path]) -> None:
    root = own()
    for file in root.glob("samples/LIDAR_TOP/*"):
        points = np.fromfile(file, dtype="<f4").reshape(-1, 5)
        check_scan(file, 5)
        points = np.hstack([points, points[:, 4:]])[: len(points) // 5 * 5, :width]  # its size fits rows of five
        points.tofile(file)
    with pytest.raises(ValueError, match=rf"no float32 rows of 5 values .*: it reads like {width} values per point"):
        create(root)


def test_scans_of_doubles_and_of_nothing(tmp_path: Path) -> None:
    file = tmp_path / "scan.bin"
    np.random.RandomState(0).uniform(-50, 50, (2000, 5)).astype("<f8").tofile(file)
    with pytest.raises(ValueError, match="its values are none, or it is damaged"):
        check_scan(file, 5)
    file.write_bytes(b"123")
    with pytest.raises(ValueError, match="no float32 rows of 5 values"):
        check_scan(file, 5)


def test_radar_of_another_maker(own: Callable[..., Path]) -> None:
    root = own()
    for file in root.glob("samples/RADAR_FRONT/*"):
        file.write_bytes(file.read_bytes().replace(b"pdh0", b"pfa "))
    with pytest.raises(ValueError, match=r"RADAR_FRONT\S+ has no pdh0 \(its fields"):
        create(root)
