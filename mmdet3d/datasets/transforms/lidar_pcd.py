"""Scans of rigs with several LiDARs, in .pcd files with a time for every point (TruckScenes)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mmdet3d.blocks import at_least
from mmdet3d.datasets.records import Context, SensorRecord, Transform
from mmdet3d.datasets.transforms.lidar import is_kept
from mmdet3d.datasets.transforms.pcd import read_pcd
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import Sample

__all__ = ["LoadPointsOfScanners", "read_lidar_pcd"]

_FIELDS = ("x", "y", "z", "intensity")


def read_lidar_pcd(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(P, 4) float64 x, y, z, intensity, and (P,) int64 microseconds of each point; rows that are not finite go.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no .pcd, one without x, y, z, intensity and timestamp, truncated, or without a finite point.
    """
    table = read_pcd(path, (*_FIELDS, "timestamp"), "point")
    points = np.stack([table[name].astype(np.float64) for name in _FIELDS], axis=1)
    finite = np.isfinite(points).all(axis=1)
    if not finite.any():
        raise ValueError(f"point file {path} holds {len(points)} points but not one finite point; fetch it again")
    return points[finite], table["timestamp"].astype(np.int64)[finite]


@TRANSFORMS.register
class LoadPointsOfScanners(Transform):
    """The scans of all LiDARs of a rig, and earlier ones, in the key frame's LiDAR coordinates.

    Columns: x, y, z, intensity, time lag: seconds by which a point is older than the sample. Every scan is moved as a
    whole by the ego motion to its own time; within a scan points are where they were measured.

    Args:
        sweeps_num: earlier scans per LiDAR.
        remove_close: drop points within 1 m of the scanner along both x and y.
    """

    def __init__(self, sweeps_num: int = 0, remove_close: bool = True) -> None:
        self.sweeps_num = at_least(0, sweeps_num, "sweeps_num")
        self.remove_close = remove_close

    def __call__(self, sample: Sample, context: Context) -> Sample:
        record = context.record
        scans: dict[str, list[SensorRecord]] = defaultdict(list)
        for scan in (record.lidar, *record.sweeps):
            if scan.path:
                scans[scan.channel].append(scan)
        chosen = [scan for channel in scans.values() for scan in channel[: self.sweeps_num + 1]]
        files = [context.root / scan.path for scan in chosen]
        poses = [scan.sensor2lidar for scan in chosen]
        (points,) = context.read(_read_scans, files, poses, record.timestamp, self.remove_close)
        sample.points = torch.from_numpy(points)
        return sample


def _read_scans(
    files: Sequence[Path], poses: Sequence[np.ndarray], timestamp: int, remove_close: bool
) -> list[np.ndarray]:
    """The points of a frame's scans: (P, 5) float32."""
    found = [np.zeros((0, 5))]
    for file, pose in zip(files, poses, strict=True):
        points, times = read_lidar_pcd(file)
        kept = is_kept(points, remove_close)
        xyz = points[kept, :3] @ pose[:3, :3].T + pose[:3, 3]
        found.append(np.column_stack([xyz, points[kept, 3], (timestamp - times[kept]) * 1e-6]))
    return [np.concatenate(found).astype(np.float32)]
