"""The synthetic world in KITTI layout."""

from __future__ import annotations

import dataclasses
import hashlib
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from kitti_world import SMALL
from PIL import Image

from mmdet3d.datasets import KittiDataset
from mmdet3d.datasets.kitti.create import check_tree
from mmdet3d.datasets.kitti.files import read_calibration, read_depth, read_ids, read_scan
from mmdet3d.datasets.kitti.labels import read_labels
from mmdet3d.datasets.kitti.results import image_boxes
from mmdet3d.datasets.synthetic.kitti import KittiSettings, generate_kitti
from mmdet3d.evaluation.kitti import METRICS, evaluate
from mmdet3d.evaluation.kitti_objects import Objects
from mmdet3d.structures.camera_boxes import CAMERA_TO_LEVEL, boxes_from_kitti

REPOSITORY = Path(__file__).resolve().parents[2]
WIDTH, HEIGHT = SMALL.image_size


def digest(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def frames(world: Path) -> list[tuple[str, Objects]]:
    labels = [
        (i, read_labels(world / "training" / "label_2" / f"{i}.txt"))
        for i in read_ids(world / "ImageSets" / "trainval.txt")
    ]
    return [(i, objects[objects.names != "DontCare"]) for i, objects in labels]


def test_the_folder_is_complete(world: Path) -> None:
    lines = check_tree(world)
    assert "training/depth_dense: 8 of 8 files" in lines
    assert "testing/image_2: 1 of 1 files" in lines
    sets = {name: read_ids(world / "ImageSets" / f"{name}.txt") for name in ("train", "val", "trainval", "test")}
    assert sets["train"] == [f"{k:06d}" for k in range(4)]
    assert sorted(sets["train"] + sets["val"]) == sets["trainval"]
    assert sets["test"] == ["000000"]
    assert not (world / "testing" / "label_2").exists() and not (world / "testing" / "depth_dense").exists()
    with Image.open(world / "training" / "image_2" / "000000.png") as image:
        assert (image.size, image.mode) == ((WIDTH, HEIGHT), "RGB")


def test_equal_settings_give_equal_bytes_after_an_interruption(world: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    words = ["--frames", "8", "--test-frames", "1", "--image-size", "320", "96", "--val-fraction", "0.5"]
    tool = runpy.run_path(str(REPOSITORY / "tools" / "create_data.py"))["main"]
    assert tool(["synthetic-kitti", "--out-dir", str(again), *words]) == 0
    assert digest(again) == digest(world)
    (again / "training" / "calib" / "000007.txt").unlink()
    (again / "training" / "label_2" / "000007.txt").write_text("half")
    generate_kitti(again, SMALL, progress=False)
    assert digest(again) == digest(world)
    other = dataclasses.replace(SMALL, seed=1)
    with pytest.raises(ValueError, match="holds a synthetic data set with seed 0 instead of 1"):
        generate_kitti(again, other)
    assert generate_kitti(tmp_path / "other", dataclasses.replace(other, frames=1, test_frames=0), progress=False)
    assert digest(tmp_path / "other")["training/image_2/000000.png"] != digest(world)["training/image_2/000000.png"]


def test_labels_as_detections_score_as_high_as_their_number_allows(world: Path) -> None:
    labels = [objects for _, objects in frames(world)]
    metrics = evaluate(labels, labels)
    count = 0
    for objects in labels:
        tall = objects.boxes2d[:, 3] - objects.boxes2d[:, 1] > 25
        easier = (objects.truncated <= 0.5) & (objects.occluded <= 2)
        count += int(((objects.names == "Car") & tall & easier).sum())
    assert count > 3
    for metric in METRICS:
        assert metrics["Car"][metric]["R40"][2] == pytest.approx(100 * (min(count, 41) - 1) / 40)


def test_depth_meets_the_lidar(world: Path) -> None:
    for name, _ in frames(world)[:3]:
        calibration = read_calibration(world / "training" / "calib" / f"{name}.txt")
        points = read_scan(world / "training" / "velodyne" / f"{name}.bin")
        assert points[:, 3].min() >= 0 and points[:, 3].max() < 1
        rect = points[:, :3] @ calibration.lidar2rect[:3, :3].T + calibration.lidar2rect[:3, 3]
        rect = rect[rect[:, 2] > 2]
        u, v, w = calibration.p2 @ np.column_stack([rect, np.ones(len(rect))]).T
        column, line = np.floor(u / w).astype(int), np.floor(v / w).astype(int)
        seen = (column >= 0) & (column < WIDTH) & (line >= 0) & (line < HEIGHT)
        depth = read_depth(world / "training" / "depth_dense" / f"{name}.png")[line[seen], column[seen]]
        assert seen.sum() > 500
        assert np.median(np.abs(depth / rect[seen, 2] - 1)) < 0.01


def test_boxes_fit_what_is_drawn(world: Path) -> None:
    """2-D boxes lie in the projection of the 3-D boxes; the depth in the middle of a visible car is that of the car."""
    checked = 0
    for name, objects in frames(world):
        p2 = read_calibration(world / "training" / "calib" / f"{name}.txt").p2
        depth = read_depth(world / "training" / "depth_dense" / f"{name}.png")
        rows = np.column_stack([objects.sizes, objects.locations, objects.rotation_y])
        projected = image_boxes(boxes_from_kitti(torch.from_numpy(rows)), p2, SMALL.image_size)
        drawn = objects.boxes2d
        assert (drawn[:, :2] > projected[:, :2] - 2).all() and (drawn[:, 2:] < projected[:, 2:] + 2).all()
        area = [(b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (drawn, projected)]
        assert np.median(area[0] / area[1]) > 0.6
        whole = objects.truncated < 0.005
        inside = (projected[:, 0] > 0) & (projected[:, 2] < WIDTH) & (projected[:, 1] > 0) & (projected[:, 3] < HEIGHT)
        assert (whole == inside).all()
        for k in np.flatnonzero((objects.names == "Car") & (objects.occluded == 0) & whole):
            x, y = ((drawn[k, :2] + drawn[k, 2:]) / 2).astype(int)
            assert abs(depth[y, x] - objects.locations[k, 2]) < 3
            checked += 1
    assert checked > 5


def test_angles_and_level_boxes(world: Path) -> None:
    """alpha is the yaw as seen along the ray; boxes stand on the road, 1.65 m below the camera."""
    for _, objects in frames(world):
        ray = np.arctan2(objects.locations[:, 0], objects.locations[:, 2])
        difference = (objects.alpha - objects.rotation_y + ray + np.pi) % (2 * np.pi) - np.pi
        assert np.abs(difference).max(initial=0) < 0.02
        assert (objects.locations[:, 2] < 50.01).all()
        slope = (objects.locations[:, 1] - 1.65) / objects.locations[:, 2]
        assert np.abs(slope).max(initial=0) < 0.06


def test_cars_hold_lidar_points(world: Path) -> None:
    name, objects = max(frames(world), key=lambda f: ((f[1].names == "Car") & (f[1].occluded == 0)).sum())
    cars = objects[(objects.names == "Car") & (objects.occluded == 0) & (objects.locations[:, 2] < 20)]
    assert len(cars)
    calibration = read_calibration(world / "training" / "calib" / f"{name}.txt")
    rows = np.column_stack([cars.sizes, cars.locations, cars.rotation_y])
    rect2lidar = torch.from_numpy(np.linalg.inv(calibration.lidar2rect))
    boxes = boxes_from_kitti(torch.from_numpy(rows)).transform(rect2lidar @ CAMERA_TO_LEVEL.inverse())
    points = torch.from_numpy(read_scan(world / "training" / "velodyne" / f"{name}.bin")).double()
    assert (boxes.contains(points).sum(1) > 10).all()


def test_all_three_classes_are_learnt(tmp_path: Path) -> None:
    root = generate_kitti(tmp_path / "w", KittiSettings(frames=16, test_frames=0), progress=False)
    dataset = KittiDataset(str(root), "trainval", image_size=(96, 320), test_mode=True, depth_dir=None)
    labels = torch.cat([sample.objects.labels for sample in dataset])
    counts = torch.bincount(labels, minlength=3)
    assert (counts > 2).all(), counts
    assert counts[1] > 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 0}, "frames must be at least 1"),
        ({"test_frames": -1}, "test_frames 0, got 8 and -1"),
        ({"image_size": (8, 96)}, "image_size must be a width and a height of 16 pixels or more"),
        ({"val_fraction": 1.0}, r"val_fraction must lie in \[0, 1\)"),
    ],
)
def test_settings_out_of_range(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)
