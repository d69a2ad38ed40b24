"""TruckScenes tables to `FrameRecord`s in the vehicle's frame."""

from __future__ import annotations

import bisect
from functools import cached_property
from typing import Any

import numpy as np

from mmdet3d.datasets.nuscenes.frames import FrameReader
from mmdet3d.datasets.nuscenes.published import pose_matrix
from mmdet3d.datasets.nuscenes.source import Source
from mmdet3d.datasets.records import SensorRecord
from mmdet3d.datasets.transforms.lidar_pcd import read_lidar_pcd
from mmdet3d.datasets.transforms.radar4d import read_truck_radar
from mmdet3d.datasets.truckscenes.tables import CATEGORIES, CLASS_OF_CATEGORY, load_tables, version_splits
from mmdet3d.evaluation.truckscenes import CLASSES

__all__ = ["CAMERAS", "LIDARS", "RADARS", "TRUCKSCENES", "TruckReader"]

CAMERAS = ("CAMERA_LEFT_FRONT", "CAMERA_RIGHT_FRONT", "CAMERA_LEFT_BACK", "CAMERA_RIGHT_BACK")
LIDARS = ("LIDAR_LEFT", "LIDAR_RIGHT", "LIDAR_TOP_FRONT", "LIDAR_TOP_LEFT", "LIDAR_TOP_RIGHT", "LIDAR_REAR")
RADARS = (
    "RADAR_LEFT_FRONT",
    "RADAR_LEFT_SIDE",
    "RADAR_LEFT_BACK",
    "RADAR_RIGHT_FRONT",
    "RADAR_RIGHT_SIDE",
    "RADAR_RIGHT_BACK",
)


class TruckReader(FrameReader):
    """Builds `FrameRecord`s whose LiDAR frame is the vehicle's (x ahead, y left, z up) at the sample's time.

    The pose at that time is the one that is nearest to it, as in the authors' devkit. `lidar` is LIDAR_LEFT's scan,
    `sweeps` are those of the other scanners and the earlier ones of all, each with its channel; radar sweeps know how
    fast the radar moved. All is computed in float64: global coordinates are metres of a UTM zone.
    """

    lidar = LIDARS[0]
    cameras = CAMERAS
    radars = RADARS
    class_of_category = CLASS_OF_CATEGORY

    def _location(self, scene: dict[str, Any]) -> str:
        return ""

    def _reference(self, key: dict[str, Any], sample: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        pose = _nearest(self._poses, sample["timestamp"])
        return np.eye(4), pose_matrix(pose["translation"], pose["rotation"])

    def _scans(
        self, key: dict[str, Any], sample: dict[str, Any], global2lidar: np.ndarray
    ) -> tuple[SensorRecord, list[SensorRecord]]:
        sweeps: list[SensorRecord] = []
        for channel in self._channels(sample, "lidar", LIDARS):
            first = self.tables.get("sample_data", sample["data"][channel])
            scans = self._history(first, sample, global2lidar, self.max_sweeps + 1)
            for scan in scans:
                scan.channel = channel
            sweeps += scans
        scan = next(s for s in sweeps if s.token == key["token"])
        sweeps.remove(scan)
        return scan, sorted(sweeps, key=lambda s: -s.timestamp)

    def _radars(self, sample: dict[str, Any], global2lidar: np.ndarray) -> dict[str, list[SensorRecord]]:
        radars = super()._radars(sample, global2lidar)
        for sweeps in radars.values():
            for sweep in sweeps:
                sweep.velocity = self._velocity(sweep)
        return radars

    def _velocity(self, sweep: SensorRecord) -> np.ndarray:
        """(3,) of the sensor over ground, in its frame: of the cabin, and by its turning."""
        data = self.tables.get("sample_data", sweep.token)
        mount = self._sensor_pose(data)
        motion = _nearest(self._motions, sweep.timestamp)
        linear = np.array([motion[k] for k in ("vx", "vy", "vz")])
        turning = np.array([motion[k] for k in ("roll_rate", "pitch_rate", "yaw_rate")])
        return mount[:3, :3].T @ (linear + np.cross(turning, mount[:3, 3]))

    @cached_property
    def _poses(self) -> tuple[list[int], list[dict[str, Any]]]:
        return _in_time(self.tables.ego_pose)

    @cached_property
    def _motions(self) -> tuple[list[int], list[dict[str, Any]]]:
        return _in_time(self.tables.ego_motion_cabin)


def _in_time(rows: list[dict[str, Any]]) -> tuple[list[int], list[dict[str, Any]]]:
    ordered = sorted(rows, key=lambda row: row["timestamp"])
    if not ordered:
        raise ValueError("TruckScenes' tables ego_pose and ego_motion_cabin must not be empty; fetch them again")
    return [row["timestamp"] for row in ordered], ordered


def _nearest(rows: tuple[list[int], list[dict[str, Any]]], time: int) -> dict[str, Any]:
    """The row whose time is nearest; of two as near the earlier one."""
    times, ordered = rows
    after = bisect.bisect_left(times, time)
    near = [k for k in (after - 1, after) if 0 <= k < len(times)]
    return ordered[min(near, key=lambda k: (abs(times[k] - time), k))]


TRUCKSCENES = Source(
    "TruckScenes",
    load_tables,
    version_splits,
    TruckReader,
    CLASSES,
    CATEGORIES,
    check_scan=read_lidar_pcd,
    read_scan=read_lidar_pcd,
    read_radar=read_truck_radar,
)
