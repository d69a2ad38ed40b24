"""The TruckScenes data set on its synthetic world: frames, points, radar, scores, training."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from mmdet3d.config import load_config
from mmdet3d.datasets import TruckScenesDataset, build_split, check_data
from mmdet3d.datasets.nuscenes.infos import read_infos
from mmdet3d.datasets.nuscenes.published import pose_matrix
from mmdet3d.datasets.synthetic import VERSION
from mmdet3d.datasets.transforms.lidar_pcd import read_lidar_pcd
from mmdet3d.datasets.truckscenes.dataset import evaluate_submission
from mmdet3d.datasets.truckscenes.frames import CAMERAS, LIDARS, RADARS
from mmdet3d.datasets.truckscenes.tables import load_tables, version_splits
from mmdet3d.models import build_model
from mmdet3d.structures import Batch, Boxes3D, Detections3D

REPOSITORY = Path(__file__).resolve().parents[2]
LOADERS = [
    {"type": "LoadMultiViewImageFromFiles"},
    {"type": "LoadPointsOfScanners", "sweeps_num": 1},
    {"type": "LoadRadarPoints4D", "sweeps_num": 2},
    {"type": "LoadAnnotations3D"},
]


def command(*words: object) -> int:
    return runpy.run_path(str(REPOSITORY / "tools" / "create_data.py"))["main"]([str(w) for w in words])


@pytest.fixture
def copied(world: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world, tmp_path / "copy"))


@pytest.fixture(scope="module")
def dataset(world: Path) -> TruckScenesDataset:
    return TruckScenesDataset("truckscenes_infos_val.pkl", str(world), LOADERS, use_valid_flag=True, test_mode=True)


def test_frames_are_the_vehicles_at_the_samples_time(world: Path) -> None:
    """Poses by plain products of matrices from the tables; global coordinates are those of a UTM zone."""
    tables = load_tables(world, VERSION)
    records, _ = read_infos(world / "truckscenes_infos_train.pkl")
    record = records[1]
    assert tuple(record.cameras) == CAMERAS and tuple(record.radars) == RADARS and record.location == ""
    assert record.lidar.channel == "LIDAR_LEFT" and {s.channel for s in record.sweeps} == set(LIDARS)
    assert len(record.sweeps) == 6 * 4 - 1  # two key frames, a scan between and one before the first
    times = {p["timestamp"]: p for p in tables.ego_pose}
    pose = times[min(times, key=lambda t: abs(t - record.timestamp))]
    assert abs(pose["translation"][1]) > 5e6
    vehicle2global = pose_matrix(pose["translation"], pose["rotation"])
    assert record.ego2global == pytest.approx(vehicle2global) and (record.lidar2ego == np.eye(4)).all()
    for sensor in (*record.cameras.values(), record.lidar, record.sweeps[0], *record.radars["RADAR_LEFT_SIDE"]):
        data = tables.get("sample_data", sensor.token)
        matrices = []
        for table, token in (("ego_pose", "ego_pose_token"), ("calibrated_sensor", "calibrated_sensor_token")):
            row = tables.get(table, data[token])
            matrices.append(pose_matrix(row["translation"], row["rotation"]))
        difference = matrices[0][:3, 3] - vehicle2global[:3, 3]  # small numbers: exact
        turned = vehicle2global[:3, :3].T
        expected = np.eye(4)
        expected[:3, :3] = turned @ matrices[0][:3, :3]
        expected[:3, 3] = turned @ difference
        assert sensor.sensor2lidar == pytest.approx(expected @ matrices[1], abs=1e-6)
    cars = record.boxes[record.names == "car"]
    assert len(cars) and np.abs(cars[:, 2] - 0.8).max() < 1.5  # on the road, not in orbit


def test_points_of_all_scanners_meet_on_objects(dataset: TruckScenesDataset) -> None:
    sample = dataset[0]
    assert len(sample.images) == 4 and sample.points.shape[1] == 5
    lag = sample.points[:, 4]
    assert lag.min() > -0.12 and 0.2 < lag.max() < 0.35  # of this sweep, and one a quarter of a second earlier
    still = sample.boxes.tensor[:, 7:9].norm(dim=1) < 0.1
    grown = sample.boxes.tensor[still].clone()
    grown[:, 3:6] += 0.2
    key, older = sample.points[lag < 0.12], sample.points[lag > 0.15]
    for points in (key, older):
        assert Boxes3D(grown).contains(points[:, :3]).any(0).sum() > 50
    near_road = sample.points[(sample.points[:, :2].norm(dim=1) < 15) & (sample.points[:, 2].abs() < 0.2)]
    assert len(near_road) > 500


def test_radar_is_compensated_for_the_trucks_motion(world: Path) -> None:
    """In a scene in which the truck drives, most of what its radars see stands."""
    records, _ = read_infos(world / "truckscenes_infos_train.pkl")
    velocities = np.array([s.velocity for r in records for s in r.radars["RADAR_LEFT_SIDE"]])
    speed = np.linalg.norm(velocities, axis=1)
    assert (speed > 2).all() and (velocities[:, 1] < -0.95 * speed).all()  # the radar looks left: forward is its -y
    sample = TruckScenesDataset("truckscenes_infos_train.pkl", str(world), LOADERS, test_mode=True)[0]
    assert sample.radar.shape[1] == 9 and len(sample.radar) > 300
    over_ground, relative = sample.radar[:, 8].abs(), sample.radar[:, 7].abs()
    assert (over_ground < 0.5).float().mean() > 0.6 and relative.mean() > 2 * over_ground.mean()


def test_point_files_say_what_is_wrong(world: Path, tmp_path: Path) -> None:
    file = next((world / "samples/LIDAR_REAR").iterdir())
    points, times = read_lidar_pcd(file)
    assert points.dtype == np.float64 and times.dtype == np.int64 and np.ptp(times) < 200_000
    (tmp_path / "a.pcd").write_bytes(file.read_bytes().replace(b"timestamp", b"time"))
    with pytest.raises(ValueError, match=r"point file .*a\.pcd has no timestamp \(its fields: x, y, z, intensity"):
        read_lidar_pcd(tmp_path / "a.pcd")
    (tmp_path / "a.pcd").write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        read_lidar_pcd(tmp_path / "a.pcd")


def test_the_ground_truth_scores_high(dataset: TruckScenesDataset, world: Path, tmp_path: Path) -> None:
    metrics = dataset.evaluate([dataset.ground_truth(k) for k in range(len(dataset))], tmp_path)
    present = [name for name in dataset.classes if metrics[f"object/{name}_objects"]]
    assert "car" in present and metrics["object/map_present"] > 0.95 and metrics["object/animal_objects"] == 0
    assert metrics["object/car_trans_err"] < 0.01 and metrics["object/car_vel_err"] < 0.05
    content = json.loads((tmp_path / "results_nusc.json").read_text())
    assert content["meta"]["use_tta"] is False and content["meta"]["method_name"] == ""
    far = content["results"][dataset.tokens[0]][0]["translation"]
    assert abs(far[1]) > 5e6
    first = dataset.tokens[0]
    (tmp_path / "null.json").write_text(json.dumps({**content, "results": {**content["results"], first: None}}))
    with pytest.raises(ValueError, match=rf"null\.json: sample {first} has None instead of a list"):
        evaluate_submission(tmp_path / "null.json", world, VERSION, None)
    content["results"].popitem()
    (tmp_path / "part.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="each sample of the split needs one"):
        evaluate_submission(tmp_path / "part.json", world, VERSION, None)


def test_the_command_writes_and_checks(copied: Path, capsys: pytest.CaptureFixture) -> None:
    assert command("truckscenes", "--root-path", copied, "--extra-tag", "own", "--workers", 1) == 0
    out = capsys.readouterr().out
    assert "own_infos_train.pkl: 2 frames" in out and "other names than" not in out
    assert command("truckscenes", "--root-path", copied, "--workers", 1, "--check") == 0
    assert "points: 48 files read" in capsys.readouterr().out
    next((copied / "samples/RADAR_LEFT_BACK").iterdir()).write_bytes(b"no pcd")
    next((copied / "sweeps/LIDAR_REAR").iterdir()).unlink()
    assert command("truckscenes", "--root-path", copied, "--workers", 1, "--check") == 2
    error = capsys.readouterr().err
    assert "RADAR_LEFT_BACK" in error and "is no .pcd" in error and "LIDAR_REAR" in error


def test_splits_are_the_devkits_or_ones_own(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copied / VERSION).rename(copied / "v1.2-trainval")
    (copied / "v1.2-trainval" / "splits.json").unlink()
    monkeypatch.setitem(sys.modules, "truckscenes", None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps truckscenes-devkit"):
        version_splits(copied, "v1.2-trainval")
    with pytest.raises(FileNotFoundError, match=r"v1\.2-own is no official version"):
        version_splits(copied, "v1.2-own")
    devkit = types.ModuleType("truckscenes.utils.splits")
    devkit.create_splits_scenes = lambda: {"train": ["synthetic-0000"], "val": ["synthetic-0001"], "test": []}
    for name in ("truckscenes", "truckscenes.utils"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "truckscenes.utils.splits", devkit)
    splits = version_splits(copied, "v1.2-trainval")
    assert splits == {"train": {"train": ["synthetic-0000"]}, "val": {"val": ["synthetic-0001"]}}


def test_a_table_that_is_missing(copied: Path) -> None:
    (copied / VERSION / "weather_annotation.json").unlink()
    load_tables(copied, VERSION)
    (copied / VERSION / "ego_motion_cabin.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"TruckScenes table .*ego_motion_cabin\.json is missing"):
        load_tables(copied, VERSION)


# -- models -----------------------------------------------------------------------------------------------------------


def empty() -> Detections3D:
    return Detections3D(Boxes3D.empty(), torch.zeros(0), torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize("name", ["camera+radar", "camera+lidar"])
def test_a_training_step_on_the_synthetic_world(name: str, world: Path, tmp_path: Path) -> None:
    cfg = load_config(f"truckscenes/synthetic/{name}.yaml", {"dataset_root": f"{world}/", "data.cache": "none"})
    train, val = build_split(cfg.data, "train", seed=0), build_split(cfg.data, "val", seed=0)
    torch.manual_seed(0)
    model = build_model(cfg.model)
    check_data(train, set(model.inputs), "data.train")
    terms = model.train().loss(Batch.collate([train[0], train[1]]))
    total = sum(v for k, v in terms.items() if k.startswith("loss/"))
    total.backward()
    assert total.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    val.format([empty() for _ in range(len(val))], tmp_path)
    meta = json.loads((tmp_path / "results_nusc.json").read_text())["meta"]
    used = {key.removeprefix("use_") for key, value in meta.items() if value is True}
    assert used == set(name.split("+"))


@pytest.mark.slow
def test_the_student_trains_and_is_scored(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    train = runpy.run_path(str(REPOSITORY / "tools" / "train.py"))["main"]
    words = ["--dataset_root", f"{world}/", "--max_epochs", "1", "--data.workers_per_gpu", "0", "--data.cache", "none"]
    assert not train(["truckscenes/synthetic/camera+radar.yaml", "--run-dir", str(tmp_path / "run"), *words])
    assert "object/nds" in (tmp_path / "run" / "metrics.jsonl").read_text()
