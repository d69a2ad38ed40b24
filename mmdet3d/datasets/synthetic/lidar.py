"""A 32-beam spinning LiDAR: exact ray casting against convex solids and the ground, then range noise and drop-out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmdet3d.datasets.synthetic.geometry import face_planes, invert, transform
from mmdet3d.datasets.synthetic.world import World

__all__ = ["BEAMS", "COLUMNS", "MAX_RANGE", "RANGE_NOISE", "Scan", "cast", "measure"]

BEAMS, COLUMNS = 32, 1084
MAX_RANGE = 100.0
RANGE_NOISE = 0.02  # metres, standard deviation
_GROUND, _SKY = -1, -2

_ELEVATION = np.radians(np.linspace(-30.67, 10.67, BEAMS)).astype(np.float32)
# Clockwise from straight behind, as the real sensor turns; the wrap-around lies at the first column.
_AZIMUTH = (np.pi - (np.arange(COLUMNS) + 0.5) * (2 * np.pi / COLUMNS)).astype(np.float32)
_COS_E, _SIN_E = np.cos(_ELEVATION)[:, None], np.sin(_ELEVATION)[:, None]
_COS_A, _SIN_A = np.cos(_AZIMUTH)[None], np.sin(_AZIMUTH)[None]
_STEP = 2 * np.pi / COLUMNS


@dataclass
class Scan:
    """Noise-free ray casting, (32, 1084) beams by columns.

    Args:
        depth: metres along the ray, infinite where nothing is hit.
        solid: index of the solid that is hit, -1 ground, -2 nothing.
        cosine: of the angle of incidence.
        hits: (A,) rays that hit each actor.
    """

    depth: np.ndarray
    solid: np.ndarray
    cosine: np.ndarray
    hits: np.ndarray


def cast(world: World, t: float, lidar2global: np.ndarray) -> Scan:
    """Follow every ray of one revolution, taken as instantaneous at `t` seconds.

    Args:
        world: the scene.
        t: seconds.
        lidar2global: (4, 4).
    """
    corners = transform(invert(lidar2global), world.solids(t))
    normals, offsets = (v.astype(np.float32) for v in face_planes(corners))
    depth, cosine = _ground(lidar2global)
    solid = np.where(np.isfinite(depth), _GROUND, _SKY).astype(np.int32)
    for index, rows, columns in _windows(corners):
        _intersect(normals[index], offsets[index], index, (rows, columns), depth, solid, cosine)
    seen = solid[solid >= 0]
    hits = np.bincount(world.owner[seen], minlength=len(world.actors))
    return Scan(depth, solid, cosine, hits)


def measure(world: World, scan: Scan, lidar2global: np.ndarray, dropout: float, rng: np.random.Generator) -> np.ndarray:
    """Points (N, 5) float32 of a scan: x, y, z in the LiDAR frame, intensity in [0, 255], ring.

    Args:
        world: the scene.
        scan: of `cast`.
        lidar2global: (4, 4), as given to `cast`.
        dropout: share of returns that get lost anyhow; dark, slanting and distant surfaces lose more.
        rng: random numbers.
    """
    column, ring = np.nonzero(np.isfinite(scan.depth).T)
    depth, solid, cosine = (v[ring, column] for v in (scan.depth, scan.solid, scan.cosine))
    direction = np.stack(
        [_COS_E[ring, 0] * _COS_A[0, column], _COS_E[ring, 0] * _SIN_A[0, column], _SIN_E[ring, 0]], -1
    )
    reflectivity = world.reflectivity[np.maximum(solid, 0)]
    on_ground = solid == _GROUND
    landed = transform(lidar2global, direction[on_ground] * depth[on_ground, None])
    reflectivity[on_ground] = world.ground.reflectivity[world.ground.cells(*landed[:, :2].T)]
    strength = reflectivity * np.sqrt(cosine)
    kept = (1 - dropout) / (1 + np.exp((depth - 38 - 90 * strength) / 6))
    keep = rng.random(len(depth), dtype=np.float32) < kept
    depth, direction, ring, strength = depth[keep], direction[keep], ring[keep], strength[keep]
    depth = depth + RANGE_NOISE * rng.standard_normal(len(depth), dtype=np.float32)
    intensity = np.clip(90 * strength * rng.normal(1, 0.15, len(depth)), 0, 255)
    return np.column_stack([direction * depth[:, None], np.floor(intensity), ring]).astype("<f4")


def _ground(lidar2global: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth and cosine of incidence on the plane z = 0."""
    up = lidar2global[2, :3].astype(np.float32)
    slope = _COS_E * (up[0] * _COS_A + up[1] * _SIN_A) + up[2] * _SIN_E
    with np.errstate(divide="ignore"):
        depth = np.where(slope < 0, np.float32(-lidar2global[2, 3]) / slope, np.inf)
    depth[depth > MAX_RANGE] = np.inf
    return depth.astype(np.float32), np.abs(slope)


def _windows(corners: np.ndarray) -> list[tuple[int, slice, slice]]:
    """Rows and columns of beams that may hit each solid within range; two windows across the wrap-around."""
    flat, height = corners[..., :2], corners[..., 2]
    middle = flat.mean(1)
    distance = np.hypot(*middle.T)
    radius = np.hypot(*np.moveaxis(flat - middle[:, None], -1, 0)).max(1)
    bearing = np.arctan2(middle[:, 1], middle[:, 0])
    turn = np.arctan2(flat[..., 1], flat[..., 0]) - bearing[:, None]
    turn = (turn + np.pi) % (2 * np.pi) - np.pi
    first = np.floor((np.pi - bearing - turn.max(1)) / _STEP).astype(int) - 1
    last = np.ceil((np.pi - bearing - turn.min(1)) / _STEP).astype(int) + 1
    near, far = np.maximum(distance - radius, 0.3), distance + radius
    low, high = height.min(1), height.max(1)
    bottom = np.arctan2(low, np.where(low < 0, near, far))
    top = np.arctan2(high, np.where(high > 0, near, far))
    rows = np.searchsorted(_ELEVATION, np.stack([bottom, top]))
    windows = []
    for i in np.nonzero((near < MAX_RANGE) & (rows[0] < rows[1]))[0]:
        vertical = slice(rows[0, i], rows[1, i])
        a, b = first[i], last[i]
        windows.append((i, vertical, slice(max(a, 0), min(b, COLUMNS))))
        if a < 0:
            windows.append((i, vertical, slice(a + COLUMNS, COLUMNS)))
        if b > COLUMNS:
            windows.append((i, vertical, slice(0, b - COLUMNS)))
    return windows


def _intersect(
    normals: np.ndarray,
    offsets: np.ndarray,
    index: int,
    window: tuple[slice, slice],
    depth: np.ndarray,
    solid: np.ndarray,
    cosine: np.ndarray,
) -> None:
    """Slab test of one solid (6 planes) against a window of beams; nearer hits are written."""
    rows, columns = window
    across = normals[:, :1] * _COS_A[:, columns] + normals[:, 1:2] * _SIN_A[:, columns]
    rate = _COS_E[rows, 0][None, :, None] * across[:, None] + (normals[:, 2:3] * _SIN_E[rows, 0][None])[:, :, None]
    rate[rate == 0] = 1e-9
    reach = offsets[:, None, None] / rate
    entry = np.where(rate < 0, reach, -np.inf)
    face = entry.argmax(0)
    enter = np.take_along_axis(entry, face[None], 0)[0]
    leave = np.where(rate > 0, reach, np.inf).min(0)
    hit = (enter < leave) & (enter > 0.5) & (enter < depth[rows, columns]) & (enter < MAX_RANGE)
    if hit.any():
        depth[rows, columns][hit] = enter[hit]
        solid[rows, columns][hit] = index
        cosine[rows, columns][hit] = np.abs(np.take_along_axis(rate, face[None], 0)[0][hit])
