"""Five FMCW radars: returns with Doppler, angular noise, clutter, misses, in the 43-byte nuScenes layout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmdet3d.datasets.synthetic.catalog import KINDS
from mmdet3d.datasets.synthetic.geometry import invert
from mmdet3d.datasets.synthetic.world import World

__all__ = ["MAX_RANGE", "RECORD", "STEPS", "RadarNoise", "cross_section", "observe", "pcd_bytes", "returns"]

RECORD = np.dtype(
    [
        ("x", "<f4"),
        ("y", "<f4"),
        ("z", "<f4"),
        ("dyn_prop", "i1"),
        ("id", "<i2"),
        ("rcs", "<f4"),
        ("vx", "<f4"),
        ("vy", "<f4"),
        ("vx_comp", "<f4"),
        ("vy_comp", "<f4"),
        ("is_quality_valid", "i1"),
        ("ambig_state", "i1"),
        ("x_rms", "i1"),
        ("y_rms", "i1"),
        ("invalid_state", "i1"),
        ("pdh0", "i1"),
        ("vx_rms", "i1"),
        ("vy_rms", "i1"),
    ]
)
STEPS = (-0.01, 0.0, 0.01)  # seconds around a sweep at which `observe` wants the radar's pose
MAX_RANGE = 90.0
_FIELD_OF_VIEW = np.radians(62)
_MOVING, _STATIONARY, _ONCOMING, _CANDIDATE, _CROSSING = 0, 1, 2, 3, 6


@dataclass(frozen=True)
class RadarNoise:
    """Errors of the radar.

    Args:
        azimuth: standard deviation, radians.
        distance: standard deviation, metres.
        doppler: standard deviation of the radial velocity, m/s.
        miss: share of returns that get lost.
        clutter: mean number of false returns per sweep.
    """

    azimuth: float
    distance: float
    doppler: float
    miss: float
    clutter: float


def observe(
    world: World, t: float, radar2global: np.ndarray, hits: np.ndarray, noise: RadarNoise, rng: np.random.Generator
) -> np.ndarray:
    """One sweep.

    Args:
        world: the scene.
        t: seconds.
        radar2global: (3, 4, 4), its pose at `t` + `STEPS`, the outer two for its own velocity.
        hits: (A,) LiDAR rays on each actor at about that time; hidden actors return little.
        noise: errors.
        rng: random numbers.

    Returns:
        Structured array of `RECORD`, never empty. Positions are in the sensor frame with z = 0. `vx_comp`, `vy_comp` is
        the radial part of the target's velocity over ground as a vector along the ray; `vx`, `vy` is the same minus the
        radar's own velocity, in steps of 0.25 m/s.
    """
    before, now, after = radar2global
    to_radar = invert(now)
    own = (to_radar[:3, :3] @ ((after[:3, 3] - before[:3, 3]) / (STEPS[2] - STEPS[0])))[:2]
    xy, actor = returns(world, t, to_radar, hits, noise, rng)
    velocity = np.zeros((len(xy), 2))
    on_actor = actor >= 0
    velocity[on_actor] = world.velocities(t)[actor[on_actor]] @ to_radar[:2, :2].T
    distance, bearing = np.hypot(*xy.T), np.arctan2(xy[:, 1], xy[:, 0])
    radial = (velocity * xy).sum(1) / distance + rng.normal(0, noise.doppler, len(xy))
    ghosts = ~on_actor & (rng.random(len(xy)) < 0.06)
    radial[ghosts] += rng.normal(0, 4, ghosts.sum())
    distance = distance + rng.normal(0, noise.distance, len(xy))
    bearing = bearing + rng.normal(0, noise.azimuth, len(xy))
    seen = (np.abs(bearing) < _FIELD_OF_VIEW) & (distance > 0.5) & (distance < MAX_RANGE)
    xy = (distance[:, None] * np.stack([np.cos(bearing), np.sin(bearing)], -1))[seen]
    return _records(xy, radial[seen], own, cross_section(world, actor[seen], rng), rng)


def pcd_bytes(records: np.ndarray) -> bytes:
    """A nuScenes radar file: 11 header lines, 43 bytes per return and one closing newline, which its readers need."""
    size = {"<f4": "4 F", "|i1": "1 I", "<i2": "2 I"}
    names = RECORD.names or ()
    kinds = [size[RECORD[name].str].split() for name in names]
    header = [
        "# .PCD v0.7 - Point Cloud Data file format",
        "VERSION 0.7",
        "FIELDS " + " ".join(names),
        "SIZE " + " ".join(k[0] for k in kinds),
        "TYPE " + " ".join(k[1] for k in kinds),
        "COUNT " + " ".join("1" for _ in kinds),
        f"WIDTH {len(records)}",
        "HEIGHT 1",
        "VIEWPOINT 0 0 0 1 0 0 0",
        f"POINTS {len(records)}",
        "DATA binary",
    ]
    return "\n".join(header).encode() + b"\n" + records.tobytes() + b"\n"


def returns(
    world: World, t: float, to_radar: np.ndarray, hits: np.ndarray, noise: RadarNoise, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """True positions (N, 2) in the sensor frame and the actor of each, -1 for clutter. Walls return too, as clutter."""
    pose = world.poses(t)
    centre = pose[:, :2] @ to_radar[:2, :2].T + to_radar[:2, 3]
    distance = np.hypot(*centre.T)
    mean = np.array([KINDS[a.name].returns if a.name else 0.0 for a in world.actors])
    mean = mean * np.clip(1.35 - distance / 60, 0.1, 1) * (1 - noise.miss) * np.where(hits > 0, 1.0, 0.15)
    mean[(distance > MAX_RANGE) | (centre[:, 0] < -10)] = 0
    actor = np.repeat(np.arange(len(mean)), rng.poisson(mean))
    length, width = world.sizes[actor, 0], world.sizes[actor, 1]
    along, across = rng.uniform(-0.47, 0.47, (2, len(actor)))
    # Half of the returns come from the side that faces the radar, the others from corners, wheels, the underbody.
    yaw = pose[actor, 2] + np.arctan2(to_radar[1, 0], to_radar[0, 0])
    view = np.stack([-centre[actor, 0], -centre[actor, 1]], -1)
    forward = np.cos(yaw) * view[:, 0] + np.sin(yaw) * view[:, 1]
    left = np.cos(yaw) * view[:, 1] - np.sin(yaw) * view[:, 0]
    facing, end_on = rng.random(len(actor)) < 0.6, np.abs(forward) * width > np.abs(left) * length
    along = np.where(facing & end_on, 0.46 * np.sign(forward), along) * length
    across = np.where(facing & ~end_on, 0.46 * np.sign(left), across) * width
    spot = np.stack([np.cos(yaw) * along - np.sin(yaw) * across, np.sin(yaw) * along + np.cos(yaw) * across], -1)
    clutter = np.concatenate([_walls(world, pose, to_radar, rng), _scatter(noise.clutter, rng)])
    return np.concatenate([centre[actor] + spot, clutter]), np.concatenate([actor, np.full(len(clutter), -1)])


def _walls(world: World, pose: np.ndarray, to_radar: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns (N, 2) from the outlines of buildings."""
    walls = np.nonzero(~world.labelled)[0]
    wall = np.repeat(walls, rng.poisson(1.5, len(walls)))
    along = rng.uniform(-0.5, 0.5, len(wall)) * world.sizes[wall, 0]
    across = np.where(rng.random(len(wall)) < 0.5, -0.5, 0.5) * world.sizes[wall, 1]
    c, s = np.cos(pose[wall, 2]), np.sin(pose[wall, 2])
    xy = pose[wall, :2] + np.stack([c * along - s * across, s * along + c * across], -1)
    return xy @ to_radar[:2, :2].T + to_radar[:2, 3]


def _scatter(mean: float, rng: np.random.Generator) -> np.ndarray:
    """False returns (N, 2), at least one, so that no sweep is empty."""
    count = rng.poisson(mean) + 1
    distance, bearing = rng.uniform(3, 70, count), rng.uniform(-1, 1, count) * _FIELD_OF_VIEW * 0.98
    return np.stack([distance * np.cos(bearing), distance * np.sin(bearing)], -1)


def cross_section(world: World, actor: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N,) dBsm of returns from each `actor` (N,), -1 for clutter."""
    mean = np.array([KINDS[a.name].rcs if a.name else 0.0 for a in world.actors] + [-2.0])
    return np.round((mean[actor] + rng.normal(0, 5, len(actor))) * 2) / 2


def _records(
    xy: np.ndarray, radial: np.ndarray, own: np.ndarray, rcs: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    out = np.zeros(len(xy), RECORD)
    out["x"], out["y"] = xy.T
    out["id"] = np.arange(len(xy))
    out["rcs"] = rcs
    compensated = radial[:, None] * xy / np.hypot(*xy.T)[:, None]
    out["vx_comp"], out["vy_comp"] = compensated.T
    out["vx"], out["vy"] = (np.round((compensated - own) * 4) / 4).T
    moving = np.abs(radial) > 0.6
    still = np.where(rng.random(len(xy)) < 0.85, _STATIONARY, _CANDIDATE)
    towards = np.where(radial < -0.6, _ONCOMING, np.where(np.abs(xy[:, 1]) > np.abs(xy[:, 0]), _CROSSING, _MOVING))
    out["dyn_prop"] = np.where(moving, towards, still)
    out["is_quality_valid"] = 1
    out["ambig_state"] = np.where(rng.random(len(xy)) < 0.97, 3, rng.integers(1, 3, len(xy)))
    out["invalid_state"] = rng.choice([0, 4, 9, 16], len(xy), p=[0.94, 0.02, 0.02, 0.02])
    out["pdh0"] = rng.choice([1, 2, 3], len(xy), p=[0.8, 0.12, 0.08])
    for name, base in (("x_rms", 19), ("y_rms", 19), ("vx_rms", 16), ("vy_rms", 3)):
        out[name] = base + (rng.random(len(xy)) < 0.15)
    return out
