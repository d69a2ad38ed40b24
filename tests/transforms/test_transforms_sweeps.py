"""LiDAR scans around a key frame: past and future ones, a cut in distance, and the augmentation of heights."""

from __future__ import annotations

from pathlib import Path

import frames
import numpy as np
import pytest
import torch

from mmdet3d.datasets.nuscenes.ego_frame import in_ego_frame
from mmdet3d.datasets.records import FrameRecord, SensorRecord
from mmdet3d.datasets.transforms import Compose, LoadPointsFromFile, LoadPointsFromMultiSweeps

# A landmark of the world that every scan sees.
LANDMARK = np.array([30.0, 12.0, 1.5, 1.0])


def pose(x: float, yaw: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    matrix[:2, 3] = [x, 0.1 * x]
    return matrix


LIDAR2EGO = pose(0.9, -np.pi / 2)
LIDAR2EGO[2, 3] = 1.84


def ego(time: int) -> np.ndarray:
    """The vehicle's pose `time` microseconds after the first key frame, while it turns."""
    return pose(8e-6 * time, 0.3e-6 * time)


def drive(root: Path) -> dict[str, FrameRecord]:
    """Two key frames, half a second apart, each with the two scans before it; a scan holds the landmark alone."""

    def scan(time: int, key: int) -> SensorRecord:
        point = np.linalg.inv(ego(time) @ LIDAR2EGO) @ LANDMARK
        np.array([[*point[:3], 7, 0]], dtype="<f4").tofile(root / f"{time}.bin")
        return SensorRecord(f"{time}.bin", time, np.linalg.inv(ego(key) @ LIDAR2EGO) @ ego(time) @ LIDAR2EGO)

    made = {}
    for token, following, key in (("first", "second", 0), ("second", "", 500_000)):
        made[token] = FrameRecord(
            token=token,
            timestamp=key,
            lidar=scan(key, key),
            lidar2ego=LIDAR2EGO,
            ego2global=ego(key),
            sweeps=[scan(key - 50_000 * (i + 1), key) for i in range(9)],
            next_token=following,
        )
    return made


def load(record: FrameRecord, records: dict[str, FrameRecord], root: Path, **arguments: object) -> torch.Tensor:
    steps = Compose([LoadPointsFromFile(), LoadPointsFromMultiSweeps(**arguments)])
    return steps.load(frames.context(record, root, training=False, find=records.get)).points


@pytest.mark.parametrize("frame", ["lidar", "ego"])
def test_past_and_future_scans_see_the_landmark_at_one_place(tmp_path: Path, frame: str) -> None:
    records = drive(tmp_path)
    if frame == "ego":
        records = {token: in_ego_frame(record) for token, record in records.items()}
    points = load(records["first"], records, tmp_path, sweeps_num=5, future_sweeps=3)
    assert points[:, 4].tolist() == pytest.approx([0, 0.05, 0.1, 0.15, 0.2, 0.25, -0.05, -0.1, -0.15])
    own = np.linalg.inv(records["first"].ego2global @ records["first"].lidar2ego) @ LANDMARK
    np.testing.assert_allclose(points[:, :3], np.tile(own[:3], (9, 1)), atol=1e-4)


def test_future_scans_do_not_depend_on_past_ones_and_end_with_the_next_key_frame(tmp_path: Path) -> None:
    records = drive(tmp_path)
    records["first"].sweeps = []
    lags = load(records["first"], records, tmp_path, sweeps_num=5, future_sweeps=30)[:, 4]
    assert lags.tolist() == pytest.approx([0, *(-0.05 * i for i in range(1, 11))])


def test_at_the_end_of_a_scene_there_is_no_future(tmp_path: Path) -> None:
    records = drive(tmp_path)
    assert load(records["second"], records, tmp_path, sweeps_num=2, future_sweeps=3)[:, 4].tolist() == pytest.approx(
        [0, 0.05, 0.1]
    )


def test_an_info_file_without_order_is_named(tmp_path: Path) -> None:
    record = drive(tmp_path)["first"]
    steps = Compose([LoadPointsFromFile(), LoadPointsFromMultiSweeps(future_sweeps=3)])
    with pytest.raises(ValueError, match=r"future_sweeps: 3 needs the frame after first.*tools/create_data.py"):
        steps.load(frames.context(record, tmp_path))


def test_far_points_are_cut_around_the_scanner_of_every_scan(tmp_path: Path) -> None:
    record = frames.small_frame(tmp_path, sweeps=1)
    row = [[57.9, 0, 50, 1, 0], [58.1, 0, 0, 1, 0], [-41.5, 41.5, 0, 1, 0], [0, 2, 0, 1, 0]]
    for name in ("key.bin", "sweep0.bin"):
        np.array(row, dtype="<f4").tofile(tmp_path / name)
    record.sweeps[0].sensor2lidar[0, 3] = 100
    options = {"max_distance": 58.0}
    steps = Compose([LoadPointsFromFile(**options), LoadPointsFromMultiSweeps(**options)])
    points = steps.load(frames.context(record, tmp_path)).points
    assert points[:, 0].tolist() == pytest.approx([57.9, 0, 157.9, 100])


def test_scaling_the_scene_scales_heights_of_points_and_boxes(tmp_path: Path) -> None:
    record = frames.small_frame(tmp_path, sweeps=0)
    aug = {"type": "GlobalRotScaleTrans", "resize_lim": [1.05, 1.05], "rot_lim": [0.3, 0.3], "trans_lim": 0}
    raw = np.fromfile(tmp_path / "key.bin", dtype="<f4").reshape(-1, 5)
    steps = [{"type": "LoadPointsFromFile"}, {"type": "LoadAnnotations3D"}, aug, {"type": "RandomFlip3D"}]
    sample = Compose(steps).load(frames.context(record, tmp_path))
    np.testing.assert_allclose(sample.points[:, 2], 1.05 * raw[:, 2], rtol=1e-5)
    np.testing.assert_allclose(sample.boxes.tensor[:, [2, 5]], 1.05 * record.boxes[:, [2, 5]], rtol=1e-5)
