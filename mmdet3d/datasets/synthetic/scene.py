"""Drive through one scene with all sensors on: files of the sensors and rows of the tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from mmdet3d.datasets.synthetic import camera, lidar, radar
from mmdet3d.datasets.synthetic.geometry import quaternion, transform
from mmdet3d.datasets.synthetic.rig import NUSCENES, RIGS, Mount, Rig
from mmdet3d.datasets.synthetic.road import CELL, EXTENT
from mmdet3d.datasets.synthetic.settings import KEYFRAME_INTERVAL, WorldSettings
from mmdet3d.datasets.synthetic.tables import SCENE_TABLES, scene_name, token
from mmdet3d.datasets.synthetic.vector_map import LOCATION, place
from mmdet3d.datasets.synthetic.world import World, build_world
from mmdet3d.io.files import atomic_write

__all__ = ["ROAD", "Recorder", "Shot", "fragment_path", "record_scene"]

ROAD = "road"  # of a finished scene, beside its table rows

_ANNOTATED_RANGE = 80.0  # metres from the ego car
_MAP_PIXEL = 0.1  # metres; the devkit assumes it
_JPEG_QUALITY = 90


def fragment_path(root: Path, index: int) -> Path:
    """Where the table rows of a finished scene lie."""
    return root / ".scenes" / f"{scene_name(index)}.json"


def record_scene(recorder: type[Recorder], settings: WorldSettings, root: Path, index: int) -> None:
    """Write all files of a scene, its table rows last, so that rows exist only for complete scenes."""
    rows = recorder(settings, root, index).record()
    with atomic_write(fragment_path(root, index)) as file:
        file.write(json.dumps(rows))


@dataclass(frozen=True)
class Shot:
    """One exposure of a sensor: `back` steps before key frame `frame`, at `time` seconds."""

    mount: Mount
    frame: int
    back: int
    time: float

    @property
    def is_key(self) -> bool:
        return self.back == 0


class Recorder:
    """Files and table rows of one scene, in the layout of nuScenes.

    Attributes:
        rig: the sensors, see `rig_for`.
        tables: of which a scene has rows.
        layout: what marks a folder besides the settings.
    """

    tables: Sequence[str] = SCENE_TABLES
    layout: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def rig_for(cls, settings: WorldSettings) -> Rig:
        """The sensors of a world of these settings."""
        return Rig(RIGS[settings.cameras], NUSCENES.lidars, NUSCENES.radars)

    def __init__(self, settings: WorldSettings, root: Path, index: int) -> None:
        self.rig = self.rig_for(settings)
        self.settings, self.root, self.index = settings, root, index
        self.name = scene_name(index)
        self.world: World = build_world(settings.seed, index, settings.duration, settings.sway, settings.reach)
        self.corner = place(index, settings.scenes)  # of the scene's square, where the world begins that is rendered
        self.rows: dict[str, list[dict[str, Any]]] = {table: [] for table in self.tables}
        self.base = 1_600_000_000_000_000 + index * 1_000_000_000
        actors, frames = len(self.world.actors), settings.keyframes
        self.lidar_counts = np.zeros((frames, actors), int)
        self.radar_counts = np.zeros((frames, actors), int)
        self.visible = np.zeros((frames, actors), int)
        self.extent = np.zeros((frames, actors), int)
        self.rng = {m: np.random.default_rng([settings.seed, index, i + 1]) for i, m in enumerate(("l", "r", "c"))}
        self.look = camera.draw_look(settings.camera_gain, settings.camera_noise, self.rng["c"])

    def record(self) -> dict[str, list[dict[str, Any]]]:
        scans = self._record_lidar()
        self._record_cameras()
        self._record_radars(scans)
        self._write_map()
        self._annotate()
        self._describe()
        self.rows[ROAD] = [self.world.road.to_dict()]
        return self.rows

    # -- sensors ----------------------------------------------------------------------------------------------------

    def _shots(self, mount: Mount, sweeps: int) -> list[Shot]:
        """In order of time. Sweeps before the first key frame belong to it, so that all key frames have a history."""
        step = KEYFRAME_INTERVAL / (sweeps + 1)
        return [
            Shot(mount, k, back, round(k * KEYFRAME_INTERVAL + mount.delay - back * step, 6))
            for k in range(self.settings.keyframes)
            for back in range(sweeps, -1, -1)
        ]

    def _record_lidar(self) -> list[tuple[float, np.ndarray]]:
        """Returns time and hits per actor of every scan."""
        shots, scans = self._shots(self.rig.lidars[0], self.settings.lidar_sweeps), []
        for shot in shots:
            lidar2global = self._sensor2global(shot)
            scan = lidar.cast(self.world, shot.time, lidar2global)
            scans.append((shot.time, scan.hits))
            points = lidar.measure(self.world, scan, lidar2global, self.settings.dropout, self.rng["l"])
            self._file(shot, "pcd.bin").write_bytes(points.tobytes())
            if shot.is_key:
                xyz = transform(lidar2global, points[:, :3].astype(float))
                self.lidar_counts[shot.frame] = self._count(xyz, shot.frame, flat=False)
        self._add_data(shots, "pcd.bin", "pcd")
        return scans

    def _record_cameras(self) -> None:
        width, height = self.settings.image_size
        for mount in self.rig.cameras:
            shots = self._shots(mount, 0)
            for shot in shots:
                picture = camera.render(
                    self.world,
                    shot.time,
                    self._sensor2global(shot),
                    mount.intrinsics(width, height),
                    (width, height),
                    self.look,
                    self.rng["c"],
                )
                Image.fromarray(picture.image).save(self._file(shot, "jpg"), quality=_JPEG_QUALITY)
                self.visible[shot.frame] += picture.visible
                self.extent[shot.frame] += picture.extent
            self._add_data(shots, "jpg", "jpg", (height, width))

    def _record_radars(self, scans: list[tuple[float, np.ndarray]]) -> None:
        times = np.array([t for t, _ in scans])
        for mount in self.rig.radars:
            shots = self._shots(mount, self.settings.radar_sweeps)
            for shot in shots:
                poses = np.stack([self.world.ego2global(shot.time + dt) @ mount.sensor2ego for dt in radar.STEPS])
                hits = scans[int(np.abs(times - shot.time).argmin())][1]
                records = radar.observe(self.world, shot.time, poses, hits, self.settings.radar_noise, self.rng["r"])
                self._file(shot, "pcd").write_bytes(radar.pcd_bytes(records))
                if shot.is_key:
                    xyz = np.stack([records["x"], records["y"], records["z"]], -1).astype(float)
                    self.radar_counts[shot.frame] += self._count(transform(poses[1], xyz), shot.frame, flat=True)
            self._add_data(shots, "pcd", "pcd")

    def _sensor2global(self, shot: Shot) -> np.ndarray:
        return self.world.ego2global(shot.time) @ shot.mount.sensor2ego

    # -- annotations ------------------------------------------------------------------------------------------------

    def _box_poses(self, frame: int) -> np.ndarray:
        """(A, 4) x, y, heading, speed at a key frame, the position rounded as it is written."""
        poses = self.world.poses(frame * KEYFRAME_INTERVAL)
        poses[:, :2] = poses[:, :2].round(3)
        return poses

    def _count(self, xyz: np.ndarray, frame: int, flat: bool) -> np.ndarray:
        """(A,) points (N, 3), global, strictly inside each box; `flat` looks at the footprint only."""
        counts = np.zeros(len(self.world.actors), int)
        poses = self._box_poses(frame)
        for i in np.nonzero(self.world.labelled)[0]:
            half = self.world.sizes[i] / 2
            offset = xyz[:, :2] - poses[i, :2]
            near = (np.abs(offset) < np.hypot(half[0], half[1])).all(1)
            dx, dy = offset[near].T
            c, s = np.cos(poses[i, 2]), np.sin(poses[i, 2])
            inside = (np.abs(c * dx + s * dy) < half[0]) & (np.abs(c * dy - s * dx) < half[1])
            if not flat:
                inside &= np.abs(xyz[near, 2] - half[2]) < half[2]
            counts[i] = inside.sum()
        return counts

    def _annotate(self) -> None:
        """Each actor from the first to the last key frame in which a laser or radar point lies on it."""
        frames = range(self.settings.keyframes)
        poses = np.stack([self._box_poses(k) for k in frames])
        ego = np.stack([self.world.ego_pose(k * KEYFRAME_INTERVAL)[0] for k in frames])
        near = np.hypot(*np.moveaxis(poses[..., :2] - ego[:, None, :2], -1, 0)) < _ANNOTATED_RANGE
        sensed = near & (self.lidar_counts + self.radar_counts > 0) & self.world.labelled
        for i in np.nonzero(sensed.any(0))[0]:
            seen = np.nonzero(sensed[:, i])[0]
            self._add_instance(i, list(range(seen[0], seen[-1] + 1)), poses[:, i])

    def _add_instance(self, i: int, frames: list[int], poses: np.ndarray) -> None:
        actor = self.world.actors[i]
        instance = token(self.settings.seed, self.name, "instance", i)
        tokens = [token(instance, k) for k in frames]
        self.rows["instance"].append(
            {
                "token": instance,
                "category_token": token("category", actor.category),
                "nbr_annotations": len(frames),
                "first_annotation_token": tokens[0],
                "last_annotation_token": tokens[-1],
            }
        )
        length, width, height = (float(v) for v in actor.size)
        for n, k in enumerate(frames):
            attribute = actor.attribute(k * KEYFRAME_INTERVAL)
            self.rows["sample_annotation"].append(
                {
                    "token": tokens[n],
                    "sample_token": self._sample_token(k),
                    "instance_token": instance,
                    "visibility_token": self._visibility(k, i),
                    "attribute_tokens": [token("attribute", attribute)] if attribute else [],
                    "translation": [*(poses[k, :2] + self.corner).round(3).tolist(), height / 2],
                    "size": [width, length, height],
                    "rotation": quaternion(float(poses[k, 2])).tolist(),
                    "prev": tokens[n - 1] if n else "",
                    "next": tokens[n + 1] if n + 1 < len(tokens) else "",
                    "num_lidar_pts": int(self.lidar_counts[k, i]),
                    "num_radar_pts": int(self.radar_counts[k, i]),
                }
            )

    def _visibility(self, frame: int, actor: int) -> str:
        share = self.visible[frame, actor] / max(self.extent[frame, actor], 1)
        return str(1 + int(np.searchsorted([0.4, 0.6, 0.8], share, side="right")))

    # -- tables -----------------------------------------------------------------------------------------------------

    def _sample_token(self, frame: int) -> str:
        return token(self.settings.seed, self.name, "sample", frame)

    def _timestamp(self, time: float) -> int:
        return self.base + round(time * 1e6)

    def _filename(self, shot: Shot, suffix: str) -> str:
        folder, channel = "samples" if shot.is_key else "sweeps", shot.mount.channel
        return f"{folder}/{channel}/{self.name}__{channel}__{self._timestamp(shot.time)}.{suffix}"

    def _file(self, shot: Shot, suffix: str) -> Path:
        path = self.root / self._filename(shot, suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _add_data(self, shots: list[Shot], suffix: str, fileformat: str, size: tuple[int, int] = (0, 0)) -> None:
        """Rows of one channel in `sample_data` and `ego_pose`, which share their tokens."""
        tokens = [token(self.settings.seed, self.name, s.mount.channel, self._timestamp(s.time)) for s in shots]
        for n, shot in enumerate(shots):
            timestamp = self._timestamp(shot.time)
            translation, rotation = self.world.ego_pose(shot.time)
            self.rows["ego_pose"].append(
                {
                    "token": tokens[n],
                    "timestamp": timestamp,
                    "rotation": rotation.tolist(),
                    "translation": (translation + np.append(self.corner, 0.0)).tolist(),
                }
            )
            self.rows["sample_data"].append(
                {
                    "token": tokens[n],
                    "sample_token": self._sample_token(shot.frame),
                    "ego_pose_token": tokens[n],
                    "calibrated_sensor_token": token("calibrated_sensor", shot.mount.channel),
                    "timestamp": timestamp,
                    "fileformat": fileformat,
                    "is_key_frame": shot.is_key,
                    "height": size[0],
                    "width": size[1],
                    "filename": self._filename(shot, suffix),
                    "prev": tokens[n - 1] if n else "",
                    "next": tokens[n + 1] if n + 1 < len(tokens) else "",
                }
            )

    def _write_map(self) -> None:
        """Drivable area of the scene's square, 255 inside; the first row lies at the largest y."""
        index = ((np.arange(round(EXTENT / _MAP_PIXEL)) + 0.5) * _MAP_PIXEL / CELL).astype(int)
        mask = self.world.ground.drivable[np.ix_(index, index)].T[::-1]
        path = self.root / "maps" / f"{self.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask.astype(np.uint8) * 255).save(path, compress_level=3)

    def _describe(self) -> None:
        """Rows of `log`, `map`, `scene`, `sample`."""
        log = token(self.settings.seed, self.name, "log")
        samples = [self._sample_token(k) for k in range(self.settings.keyframes)]
        scene = token(self.settings.seed, self.name, "scene")
        self.rows["log"] = [
            {
                "token": log,
                "logfile": self.name,
                "vehicle": "synthetic",
                "date_captured": "2020-09-13",
                "location": LOCATION,
            }
        ]
        self.rows["map"] = [
            {
                "token": token(self.settings.seed, self.name, "map"),
                "log_tokens": [log],
                "category": "semantic_prior",
                "filename": f"maps/{self.name}.png",
            }
        ]
        self.rows["scene"] = [
            {
                "token": scene,
                "log_token": log,
                "nbr_samples": len(samples),
                "first_sample_token": samples[0],
                "last_sample_token": samples[-1],
                "name": self.name,
                "description": f"Procedural driving scene {self.index} of seed {self.settings.seed}",
            }
        ]
        self.rows["sample"] = [
            {
                "token": samples[k],
                "timestamp": self._timestamp(k * KEYFRAME_INTERVAL),
                "prev": samples[k - 1] if k else "",
                "next": samples[k + 1] if k + 1 < len(samples) else "",
                "scene_token": scene,
            }
            for k in range(len(samples))
        ]
