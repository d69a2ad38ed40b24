"""4-D radar: returns with elevation and radial velocity, of View-of-Delft and of TruckScenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mmdet3d.blocks import at_least
from mmdet3d.datasets.records import Context, SensorRecord, Transform
from mmdet3d.datasets.transforms.loading import read_bytes
from mmdet3d.datasets.transforms.pcd import read_pcd
from mmdet3d.datasets.transforms.radar import subsample
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import Sample

__all__ = ["LoadRadarPoints4D", "Returns", "read_truck_radar", "read_vod_radar"]

_VOD_WIDTH = 7  # x, y, z, rcs, v_r, v_r_compensated, time
_VOD_SCAN = 1 / 13  # seconds between two scans that an accumulated file holds
_TRUCK_FIELDS = ("x", "y", "z", "vrel_x", "vrel_y", "vrel_z", "rcs")
_NEAR = 1e-6  # metres, below which a ray has no direction


@dataclass(frozen=True)
class Returns:
    """What a radar saw, in its own frame (x forward, y left, z up).

    Args:
        xyz: (R, 3) metres.
        rcs: (R,) dBsm.
        relative: (R,) radial velocity against the radar, negative when approaching, m/s.
        over_ground: (R,) radial velocity without the radar's own motion, m/s.
        lag: (R,) seconds by which a return is older than the file.
    """

    xyz: np.ndarray
    rcs: np.ndarray
    relative: np.ndarray
    over_ground: np.ndarray
    lag: np.ndarray


def read_vod_radar(path: Path) -> Returns:
    """A radar file of View-of-Delft: float32 rows of x, y, z, rcs, v_r, v_r_compensated, time (0, -1, ... scans).

    Accumulated files hold several scans, already in the frame of the newest. Rows that are not finite are left out; a
    file without a return is legal.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the size is no multiple of such rows.
    """
    content = read_bytes(path, "radar")
    if len(content) % (4 * _VOD_WIDTH):
        raise ValueError(
            f"radar file {path} holds {len(content)} bytes, expected a multiple of {4 * _VOD_WIDTH} ({_VOD_WIDTH} "
            "float32 per return: x, y, z, rcs, v_r, v_r_compensated, time); fetch it again, or write it so"
        )
    rows = np.frombuffer(content, dtype="<f4").reshape(-1, _VOD_WIDTH).astype(np.float64)
    rows = rows[np.isfinite(rows).all(axis=1)]
    return Returns(rows[:, :3], rows[:, 3], rows[:, 4], rows[:, 5], -rows[:, 6] * _VOD_SCAN)


def read_truck_radar(path: Path, velocity: np.ndarray | None = None) -> Returns:
    """A radar file of TruckScenes: a .pcd with x, y, z, rcs and the relative radial velocity as a vector along the ray.

    Rows that are not finite are left out.

    Args:
        velocity: (3,) of the radar over ground in its own frame; None takes it as standing.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no .pcd, one without these fields, or truncated.
    """
    table = read_pcd(path, _TRUCK_FIELDS, "radar")
    rows = np.stack([table[name].astype(np.float64) for name in _TRUCK_FIELDS], axis=1)
    rows = rows[np.isfinite(rows).all(axis=1)]
    relative = (rows[:, 3:6] * _rays(rows[:, :3])).sum(1)
    own = np.zeros(3) if velocity is None else velocity
    return Returns(rows[:, :3], rows[:, 6], relative, relative + _rays(rows[:, :3]) @ own, np.zeros(len(rows)))


def _rays(xyz: np.ndarray) -> np.ndarray:
    return xyz / np.linalg.norm(xyz, axis=1, keepdims=True).clip(min=_NEAR)


@TRANSFORMS.register
class LoadRadarPoints4D(Transform):
    """Returns of all 4-D radars and several sweeps, in the key frame's LiDAR coordinates.

    Files are View-of-Delft's (`.bin`) or TruckScenes' (`.pcd`). Positions are brought into the key frame by ego motion,
    and moved on along the radial velocity over ground by the time lag. A channel that the frame does not have
    contributes nothing; (0, 9) is a legal result.

    Columns: 0-2 x, y, z; 3 rcs; 4-5 radial velocity over ground as a vector along the ray, its part in the ground
    plane; 6 time lag (to the channel's own key-frame sweep), seconds; 7 radial velocity against the radar; 8 radial
    velocity over ground. The last two are along the ray, which augmentation leaves as they are.

    Args:
        sweeps_num: sweeps per channel, the key frame's own included.
        max_num: at most so many points, a random subset while training and an evenly spaced one otherwise.
        compensate_velocity: move returns of earlier sweeps along their velocity.
    """

    def __init__(self, sweeps_num: int = 1, max_num: int | None = None, compensate_velocity: bool = True) -> None:
        self.sweeps_num = at_least(1, sweeps_num, "sweeps_num")
        self.max_num = max_num
        self.compensate_velocity = compensate_velocity

    def __call__(self, sample: Sample, context: Context) -> Sample:
        sweeps: list[SensorRecord] = []
        lags: list[float] = []
        for channel in context.record.radars.values():
            sweeps += channel[: self.sweeps_num]
            lags += [(channel[0].timestamp - sweep.timestamp) * 1e-6 for sweep in channel[: self.sweeps_num]]
        files = [context.root / sweep.path for sweep in sweeps]
        poses, own = [sweep.sensor2lidar for sweep in sweeps], [sweep.velocity for sweep in sweeps]
        (points,) = context.read(_read_sweeps, files, poses, own, lags, self.compensate_velocity)
        sample.radar = torch.from_numpy(subsample(np.asarray(points), self.max_num, context))
        return sample


def _read_sweeps(
    files: Sequence[Path],
    poses: Sequence[np.ndarray],
    velocities: Sequence[np.ndarray | None],
    lags: Sequence[float],
    compensate_velocity: bool,
) -> list[np.ndarray]:
    """The points of all sweeps of a frame in its LiDAR frame: (R, 9) float32."""
    points = [np.zeros((0, 9))]
    for file, pose, velocity, lag in zip(files, poses, velocities, lags, strict=True):
        returns = read_truck_radar(file, velocity) if file.suffix == ".pcd" else read_vod_radar(file)
        points.append(_to_lidar(returns, pose, lag, compensate_velocity))
    return [np.concatenate(points).astype(np.float32)]


def _to_lidar(returns: Returns, sensor2lidar: np.ndarray, lag: float, compensate_velocity: bool) -> np.ndarray:
    rotation = sensor2lidar[:3, :3]
    velocity = (_rays(returns.xyz) * returns.over_ground[:, None]) @ rotation.T
    xyz = returns.xyz @ rotation.T + sensor2lidar[:3, 3]
    age = returns.lag + lag
    if compensate_velocity:
        xyz[:, :2] += velocity[:, :2] * age[:, None]
    return np.column_stack([xyz, returns.rcs, velocity[:, :2], age, returns.relative, returns.over_ground])
