"""LiDAR scans and sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from mmdet3d.blocks import at_least
from mmdet3d.datasets.records import Context, SensorRecord, Transform
from mmdet3d.datasets.transforms.loading import need, read_bytes
from mmdet3d.registry import TRANSFORMS
from mmdet3d.shell import command
from mmdet3d.structures import Sample

__all__ = ["LoadPointsFromFile", "LoadPointsFromMultiSweeps", "is_kept", "read_points"]

# Elevation borders (radians) between the 32 beams of the HDL-32E on the nuScenes cars, top beam first, and the beams
# that stand in for a coarser scanner.
_BEAM_BORDERS = np.array([*(0.1862 - 0.023275 * np.arange(31)), -0.5353]) - 0.012
_BEAMS = {16: range(1, 32, 2), 4: (7, 9, 11, 13), 1: (9,)}
_CLOSE = 1.0
_TIME = 4


def read_points(path: Path, load_dim: int = 5) -> np.ndarray:
    """A point file: (P, load_dim) float32, rows with a non-finite value removed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: empty, truncated, or without a single finite point.
    """
    content = read_bytes(path, "point")
    if not content or len(content) % (4 * load_dim):
        raise ValueError(
            f"point file {path} holds {len(content)} bytes, expected a positive multiple of {4 * load_dim} "
            f"({load_dim} float32 per point); it is empty or truncated (fetch it again), or its points have another "
            "number of values (set load_dim)"
        )
    points = np.frombuffer(content, dtype="<f4").reshape(-1, load_dim)
    finite = np.isfinite(points).all(axis=1)
    if not finite.any():
        raise ValueError(f"point file {path} holds {len(points)} points but not one finite point; fetch it again")
    return points[finite]


def keep_beams(points: np.ndarray, beams: int) -> np.ndarray:
    """The points that a scanner with `beams` (16, 4 or 1) of the 32 beams would have seen."""
    elevation = np.arcsin(points[:, 2] / np.linalg.norm(points[:, :3], axis=1).clip(min=1e-9))
    keep = np.zeros(len(points), dtype=bool)
    for beam in _BEAMS[beams]:
        keep |= (elevation > _BEAM_BORDERS[beam]) & (elevation < _BEAM_BORDERS[beam - 1])
    return points[keep]


@dataclass(frozen=True)
class _PointReader:
    """Reading one scan the way the config asks for."""

    load_dim: int
    use_dim: int | Sequence[int]
    reduce_beams: int
    max_distance: float | None

    def __post_init__(self) -> None:
        if self.reduce_beams < 32 and self.reduce_beams not in _BEAMS:
            raise ValueError(f"reduce_beams: {self.reduce_beams} is not supported, use 32 (all), 16, 4 or 1")
        if not self.columns or max(self.columns) >= self.load_dim:
            raise ValueError(
                f"use_dim: {self.use_dim} asks for columns that a file of load_dim: {self.load_dim} does not have"
            )

    @property
    def columns(self) -> list[int]:
        return list(range(self.use_dim)) if isinstance(self.use_dim, int) else list(self.use_dim)

    def read(self, path: Path) -> np.ndarray:
        """All columns of the file, in the scanner's frame."""
        points = read_points(path, self.load_dim)
        if self.max_distance is not None:
            points = points[np.linalg.norm(points[:, :2], axis=1) < self.max_distance]
        return keep_beams(points, self.reduce_beams) if self.reduce_beams < 32 else points

    def select(self, points: np.ndarray, lag: float) -> np.ndarray:
        """The columns in use, with the time lag in place of the ring index."""
        if self.load_dim > _TIME:
            points[:, _TIME] = lag
        return points[:, self.columns]


def _read_scan(files: Sequence[Path], reader: _PointReader, sensor2lidar: np.ndarray) -> list[np.ndarray]:
    """The points of one key-frame scan, in the record's LiDAR frame."""
    (file,) = files
    return [reader.select(_moved(reader.read(file), sensor2lidar), 0.0)]


def _read_sweep(
    files: Sequence[Path], reader: _PointReader, sensor2lidar: np.ndarray, lag: float, remove_close: bool
) -> list[np.ndarray]:
    """The points of one other scan, brought into the key frame."""
    (file,) = files
    points = reader.read(file)
    return [reader.select(_moved(points[is_kept(points, remove_close)], sensor2lidar), lag)]


@TRANSFORMS.register
class LoadPointsFromFile(Transform):
    """The key-frame scan in the record's LiDAR frame. Column 4 of the file (ring index) becomes the time lag, here 0.

    A frame without a scan, which only a model that reads no LiDAR is given, has no points.

    Args:
        load_dim: float32 values per point in the file.
        use_dim: which columns to keep, or how many.
        reduce_beams: 32 keeps every beam; 16, 4 and 1 imitate a coarser scanner.
        max_distance: drop points as far from the scanner on the ground plane, metres; None keeps all.
    """

    def __init__(
        self,
        load_dim: int = 5,
        use_dim: int | Sequence[int] = 5,
        reduce_beams: int = 32,
        max_distance: float | None = None,
    ) -> None:
        self._reader = _PointReader(load_dim, use_dim, reduce_beams, max_distance)

    def __call__(self, sample: Sample, context: Context) -> Sample:
        lidar = context.record.lidar
        if not lidar.path:
            sample.points = torch.zeros(0, len(self._reader.columns))
            return sample
        (points,) = context.read(_read_scan, [context.root / lidar.path], self._reader, lidar.sensor2lidar)
        sample.points = torch.from_numpy(points)
        return sample


@TRANSFORMS.register
class LoadPointsFromMultiSweeps(Transform):
    """Other scans, brought into the key frame by ego motion and appended with their time lag in seconds.

    Args:
        sweeps_num: how many earlier sweeps; of more, a random subset while training and the newest ones otherwise.
        future_sweeps: how many of the scans that come next, with a negative lag; fewer at the end of a scene.
        load_dim, use_dim, reduce_beams, max_distance: as in `LoadPointsFromFile`.
        pad_empty_sweeps: a frame without sweeps gets `sweeps_num` copies of its own scan.
        remove_close: drop sweep points within 1 m of the sensor along both x and y (the car's own roof).
    """

    def __init__(
        self,
        sweeps_num: int = 10,
        load_dim: int = 5,
        use_dim: int | Sequence[int] = 5,
        reduce_beams: int = 32,
        pad_empty_sweeps: bool = False,
        remove_close: bool = False,
        future_sweeps: int = 0,
        max_distance: float | None = None,
    ) -> None:
        self.sweeps_num = at_least(0, sweeps_num, "sweeps_num")
        self.future_sweeps = future_sweeps
        self.pad_empty_sweeps = pad_empty_sweeps
        self.remove_close = remove_close
        self._reader = _PointReader(load_dim, use_dim, reduce_beams, max_distance)

    def __call__(self, sample: Sample, context: Context) -> Sample:
        key = need(sample, "points", self, "LoadPointsFromFile").numpy()
        if not context.record.lidar.path:
            return sample
        chosen = self._choose(context) + (_later_sweeps(context, self.future_sweeps) if self.future_sweeps else [])
        if chosen:
            sweeps = [self._load(sweep, context) for sweep in chosen]
        else:
            own = _moved(key, np.linalg.inv(context.record.lidar.sensor2lidar))
            own = key[is_kept(own, self.remove_close)]
            sweeps = [own] * (self.sweeps_num if self.pad_empty_sweeps else 0)
        sample.points = torch.from_numpy(np.concatenate([key, *sweeps]))
        return sample

    def _choose(self, context: Context) -> list[SensorRecord]:
        sweeps = context.record.sweeps
        if len(sweeps) <= self.sweeps_num or not context.training:
            return sweeps[: self.sweeps_num]
        return [sweeps[i] for i in context.rng.choice(len(sweeps), self.sweeps_num, replace=False)]

    def _load(self, sweep: SensorRecord, context: Context) -> np.ndarray:
        lag = (context.record.timestamp - sweep.timestamp) * 1e-6
        files = [context.root / sweep.path]
        (points,) = context.read(_read_sweep, files, self._reader, sweep.sensor2lidar, lag, self.remove_close)
        return points


def is_kept(points: np.ndarray, remove_close: bool) -> np.ndarray:
    """(P,) bool, of points in the scanner's own frame: not within 1 m of it along both x and y."""
    return (np.abs(points[:, :2]) >= (_CLOSE if remove_close else 0)).any(axis=1)


def _later_sweeps(context: Context, count: int) -> list[SensorRecord]:
    """Up to `count` scans after the key frame's, the next one first, out of the history of the next key frame.

    Raises:
        ValueError: the info file does not say which frame that is.
    """
    record = context.record
    if context.find is None or record.next_token is None:
        raise ValueError(
            f"future_sweeps: {count} needs the frame after {record.token}, but the info file does not say which one "
            f"that is; create it anew with {command('create-data')}"
        )
    following = context.find(record.next_token) if record.next_token else None
    if following is None:
        return []
    next2own = np.linalg.inv(record.ego2global @ record.lidar2ego) @ following.ego2global @ following.lidar2ego
    # An incomplete frame may lack its own scan; sweeps without a file are in no record.
    own = [] if following.token in context.incomplete or not following.lidar.path else [following.lidar]
    later = [s for s in (*own, *following.sweeps) if s.timestamp > record.lidar.timestamp]
    later = sorted(later, key=lambda s: s.timestamp)[:count]
    return [replace(s, sensor2lidar=next2own @ s.sensor2lidar) for s in later]


def _moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    out = points.copy()
    out[:, :3] = points[:, :3] @ matrix[:3, :3].T + matrix[:3, 3]
    return out
