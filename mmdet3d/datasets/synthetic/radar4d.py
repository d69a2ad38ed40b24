"""4-D radars: returns with elevation, relative radial velocity and the velocity over ground that follows from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmdet3d.datasets.synthetic.geometry import invert, transform
from mmdet3d.datasets.synthetic.radar import MAX_RANGE, STEPS, RadarNoise, cross_section, returns
from mmdet3d.datasets.synthetic.world import World

__all__ = ["Sweep4D", "observe_4d"]

_DENSITY = 3  # times as many returns as the 2-D radar has
_ELEVATION = 2.0  # times as uncertain as azimuth
_FIELD = np.radians([60.0, 22.0])  # half of the field of view, azimuth and elevation
_CLUTTER = 1.5  # metres up to which clutter lies above the road


@dataclass(frozen=True)
class Sweep4D:
    """Returns of one sweep.

    Args:
        xyz: (R, 3), sensor frame (x forward, y left, z up), metres.
        rcs: (R,) dBsm.
        relative: (R,) radial velocity against the radar, m/s, negative when approaching.
        over_ground: (R,) the same plus the radar's own velocity along the ray.
    """

    xyz: np.ndarray
    rcs: np.ndarray
    relative: np.ndarray
    over_ground: np.ndarray


def observe_4d(
    world: World, t: float, radar2global: np.ndarray, hits: np.ndarray, noise: RadarNoise, rng: np.random.Generator
) -> Sweep4D:
    """One sweep; arguments as those of `radar.observe`.

    Returns lie on objects at any height, clutter near the road. Doppler noise is on the relative velocity.
    """
    before, now, after = radar2global
    to_radar = invert(now)
    own = to_radar[:3, :3] @ ((after[:3, 3] - before[:3, 3]) / (STEPS[2] - STEPS[0]))
    seen = [returns(world, t, to_radar, hits, noise, rng) for _ in range(_DENSITY)]
    flat, actor = np.concatenate([xy for xy, _ in seen]), np.concatenate([who for _, who in seen])
    height = np.append(world.sizes[:, 2], _CLUTTER)[actor] * rng.uniform(0.1, 0.95, len(actor))
    # `returns` gives places in the plane of the sensor; from there straight up or down to their height above the road.
    place = transform(now, np.column_stack([flat, np.zeros(len(flat))]))
    place[:, 2] = height
    xyz = transform(to_radar, place)
    velocity = np.zeros((len(xyz), 3))
    velocity[actor >= 0, :2] = world.velocities(t)[actor[actor >= 0]]
    distance, azimuth, elevation = _spherical(xyz)
    ray = xyz / distance[:, None]
    over_ground = ((velocity @ to_radar[:3, :3].T) * ray).sum(1)
    relative = over_ground - ray @ own + rng.normal(0, noise.doppler, len(xyz))
    distance = distance + rng.normal(0, noise.distance, len(xyz))
    azimuth = azimuth + rng.normal(0, noise.azimuth, len(xyz))
    elevation = elevation + rng.normal(0, _ELEVATION * noise.azimuth, len(xyz))
    level = distance * np.cos(elevation)
    xyz = np.column_stack([level * np.cos(azimuth), level * np.sin(azimuth), distance * np.sin(elevation)])
    kept = (np.abs(azimuth) < _FIELD[0]) & (np.abs(elevation) < _FIELD[1]) & (distance > 0.5) & (distance < MAX_RANGE)
    xyz, relative = xyz[kept], relative[kept]
    measured = relative + (xyz / np.linalg.norm(xyz, axis=1, keepdims=True)) @ own
    return Sweep4D(xyz, cross_section(world, actor[kept], rng), relative, measured)


def _spherical(xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    distance = np.linalg.norm(xyz, axis=1)
    return distance, np.arctan2(xyz[:, 1], xyz[:, 0]), np.arcsin(xyz[:, 2] / distance)
