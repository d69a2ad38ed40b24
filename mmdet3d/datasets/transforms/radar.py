"""Radar sweeps of nuScenes: the .pcd reader and the 45-channel points of CRKD."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mmdet3d.blocks import at_least
from mmdet3d.datasets.records import Context, Transform
from mmdet3d.datasets.transforms.pcd import read_pcd
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import Sample

__all__ = ["LoadRadarPointsMultiSweeps", "read_radar_pcd", "subsample"]

# The fields of a nuScenes file.
_FIELDS = (
    *("x", "y", "z", "dyn_prop", "id", "rcs", "vx", "vy", "vx_comp", "vy_comp"),
    *("is_quality_valid", "ambig_state", "x_rms", "y_rms", "invalid_state", "pdh0", "vx_rms", "vy_rms"),
)
_HINT = (
    "detections are read by nuScenes' 18 fields, so write all of them, states that the radar does not tell as those of "
    "a valid detection (dyn_prop 0, ambig_state 3, invalid_state 0, pdh0 1), or take the radar out of the tables"
)
_COLUMN = {name: i for i, name in enumerate(_FIELDS)}
_STATES = {"dyn_prop": 8, "ambig_state": 5, "invalid_state": 18, "pdh0": 8}
_DEFAULT_FILTER = {"invalid_state": (0,), "dyn_prop": range(7), "ambig_state": (3,)}

# What augmentation and the radar encoder read by position: x, y, z, rcs, vx_comp, vy_comp, time lag.
_LEADING = [0, 1, 2, 5, 8, 9, 18]
_USE_DIM = [*_LEADING, *range(19, 57)]
_WIDTH = 58
# Full scale of rcs (dBsm) and of both velocities (m/s).
_FULL_SCALE = np.array([50.0, 100.0, 100.0], dtype=np.float32)


def read_radar_pcd(path: Path) -> np.ndarray:
    """Detections of one radar sweep: (R, 18) float32 in the order of nuScenes' fields.

    Fields: x, y, z, dyn_prop, id, rcs, vx, vy, vx_comp, vy_comp, is_quality_valid, ambig_state, x_rms, y_rms,
    invalid_state, pdh0, vx_rms, vy_rms; metres, m/s, dBsm, sensor frame (x forward, y left). A file may hold them in
    any order and type, besides others, in binary, compressed or as text. Rows with a non-finite value are removed:
    nuScenes writes a sweep without detections as one row of NaN.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no .pcd, one without these fields, or truncated.
    """
    table = read_pcd(path, _FIELDS, "radar", _HINT)
    points = np.stack([table[name].astype(np.float32) for name in _FIELDS], axis=1)
    return points[np.isfinite(points).all(axis=1)]


def check_radar(path: Path) -> None:
    """Raises as `read_radar_pcd`, and ValueError for a state that nuScenes' radars do not know."""
    _check_states(read_radar_pcd(path), path)


@TRANSFORMS.register
class LoadRadarPointsMultiSweeps(Transform):
    """Radar detections of all channels and several sweeps, in the key frame's LiDAR coordinates.

    Positions are brought into the key frame by ego motion and moved on along the compensated velocity by the time lag.
    A channel that the frame does not have contributes nothing; (0, C) is a legal result.

    Output columns with the default `use_dim`: 0-2 x, y, z; 3 rcs; 4-5 compensated velocity; 6 time lag (to the
    channel's own key-frame sweep); 7-14 dynamic property, 15-19 ambiguity state, 20-37 invalid state, one-hot; 38-44
    false-alarm class, bit i set where the class exceeds i.

    Args:
        sweeps_num: sweeps per channel, the key frame's own included.
        use_dim: columns out of 58: the 18 file fields with positions and velocities in the LiDAR frame, 18 time lag,
            19-26, 27-31, 32-49 one-hot states, 50-56 false-alarm bits, 57 whether the devkit's default filter keeps the
            point. Must start with 0, 1, 2, 5, 8, 9, 18.
        max_num: at most so many points, a random subset while training and an evenly spaced one otherwise.
        compensate_velocity: move detections of earlier sweeps along their velocity.
        filtering: "none", or "default" for the devkit's default filter.
        normalize: divide rcs by 50 dBsm and velocities by 100 m/s.
    """

    def __init__(
        self,
        sweeps_num: int = 6,
        use_dim: Sequence[int] = tuple(_USE_DIM),
        max_num: int | None = None,
        compensate_velocity: bool = True,
        filtering: str = "none",
        normalize: bool = False,
    ) -> None:
        if filtering not in ("none", "default"):
            raise ValueError(f"filtering: {filtering!r} is unknown, use 'none' or 'default'")
        if list(use_dim)[: len(_LEADING)] != _LEADING or not all(0 <= i < _WIDTH for i in use_dim):
            raise ValueError(
                f"use_dim of the radar loader must start with {_LEADING} (x, y, z, rcs, vx, vy, time lag) and stay "
                f"below {_WIDTH}, got {list(use_dim)}"
            )
        self.sweeps_num = at_least(1, sweeps_num, "sweeps_num")
        self.use_dim = list(use_dim)
        self.max_num = max_num
        self.compensate_velocity = compensate_velocity
        self.filtering = filtering
        self.normalize = normalize

    def __call__(self, sample: Sample, context: Context) -> Sample:
        sweeps = [
            (sweep, (channel[0].timestamp - sweep.timestamp) * 1e-6)
            for channel in context.record.radars.values()
            for sweep in channel[: self.sweeps_num]
        ]
        files = [context.root / sweep.path for sweep, _ in sweeps]
        poses, lags = [sweep.sensor2lidar for sweep, _ in sweeps], [lag for _, lag in sweeps]
        (points,) = context.read(
            _read_sweeps, files, poses, lags, self.use_dim, self.compensate_velocity, self.filtering
        )
        points = subsample(points, self.max_num, context)
        if self.normalize:
            points[:, 3:6] /= _FULL_SCALE
        sample.radar = torch.from_numpy(points)
        return sample


def subsample(points: np.ndarray, max_num: int | None, context: Context) -> np.ndarray:
    """At most `max_num` of the points: a random subset while training, an evenly spaced one otherwise; None for all."""
    if max_num is None or len(points) <= max_num:
        return points
    if context.training:
        return points[np.sort(context.rng.choice(len(points), max_num, replace=False))]
    return points[np.arange(max_num) * len(points) // max_num]


def _read_sweeps(
    files: Sequence[Path],
    poses: Sequence[np.ndarray],
    lags: Sequence[float],
    use_dim: Sequence[int],
    compensate_velocity: bool,
    filtering: str,
) -> list[np.ndarray]:
    """The points of all sweeps of a frame in its LiDAR frame: (R, len(use_dim)) float32."""
    sweeps = [np.zeros((0, _WIDTH), dtype=np.float32)]
    for file, pose, lag in zip(files, poses, lags, strict=True):
        raw = read_radar_pcd(file)
        _check_states(raw, file)
        if filtering == "default":
            raw = raw[_passes_default_filter(raw)]
        moved = _to_lidar(raw, pose, lag if compensate_velocity else 0.0)
        sweeps.append(np.concatenate([moved, _encode(raw, lag)], axis=1))
    return [np.concatenate(sweeps)[:, list(use_dim)]]


def _to_lidar(raw: np.ndarray, sensor2lidar: np.ndarray, motion: float) -> np.ndarray:
    """The 18 fields with position and both velocities in the LiDAR frame, moved on by `motion` seconds."""
    out = raw.copy()
    rotation = sensor2lidar[:3, :3]
    out[:, :3] = raw[:, :3] @ rotation.T + sensor2lidar[:3, 3]
    for vx in (_COLUMN["vx"], _COLUMN["vx_comp"]):
        out[:, vx : vx + 2] = raw[:, vx : vx + 2] @ rotation[:2, :2].T
    out[:, :2] += out[:, _COLUMN["vx_comp"] : _COLUMN["vy_comp"] + 1] * motion
    return out


def _encode(raw: np.ndarray, lag: float) -> np.ndarray:
    """(R, 40) float32: columns 18 to 57."""
    columns = [np.full((len(raw), 1), lag)]
    for name in ("dyn_prop", "ambig_state", "invalid_state"):
        columns.append(raw[:, _COLUMN[name], None] == np.arange(_STATES[name]))
    columns.append(raw[:, _COLUMN["pdh0"], None] > np.arange(_STATES["pdh0"] - 1))
    columns.append(_passes_default_filter(raw)[:, None])
    return np.concatenate(columns, axis=1).astype(np.float32)


def _passes_default_filter(raw: np.ndarray) -> np.ndarray:
    kept = [np.isin(raw[:, _COLUMN[name]], list(states)) for name, states in _DEFAULT_FILTER.items()]
    return np.logical_and.reduce(kept)


def _check_states(raw: np.ndarray, path: Path) -> None:
    for name, size in _STATES.items():
        values = raw[:, _COLUMN[name]]
        wrong = values[(values < 0) | (values >= size)]
        if len(wrong):
            raise ValueError(
                f"radar file {path}: {name} is {int(wrong[0])}, expected 0 to {size - 1}; the file is damaged (fetch "
                "it again), or its writer has other states than nuScenes (write those of nuScenes)"
            )
