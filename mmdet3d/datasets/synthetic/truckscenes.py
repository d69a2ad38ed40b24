"""The procedural world in the layout of MAN TruckScenes: four cameras, six LiDARs and six 4-D radars on a truck."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mmdet3d.datasets.synthetic import lidar
from mmdet3d.datasets.synthetic.generate import generate
from mmdet3d.datasets.synthetic.geometry import matrix, quaternion, transform
from mmdet3d.datasets.synthetic.radar import STEPS
from mmdet3d.datasets.synthetic.radar4d import observe_4d
from mmdet3d.datasets.synthetic.rig import Mount, Rig, flat
from mmdet3d.datasets.synthetic.scene import Recorder, Shot
from mmdet3d.datasets.synthetic.settings import WorldSettings
from mmdet3d.datasets.synthetic.tables import token
from mmdet3d.structures.camera_boxes import CAMERA_TO_LEVEL

__all__ = ["IMAGE_SIZE", "TRUCK", "generate_truckscenes"]

IMAGE_SIZE = (420, 200)  # pixels, about a fifth of the real ones
_PIXELS, _PINHOLE = (1980, 943), (1150.0, 990.0, 471.5)
_SHORT_RANGE = 35.0  # metres
_REVOLUTION = 0.1  # seconds
_UTM = np.array([691_000.0, 5_334_000.0])  # of the world's origin, metres
_MOTION = ("vx", "vy", "vz", "ax", "ay", "az", "yaw", "pitch", "roll", "yaw_rate", "pitch_rate", "roll_rate")


def _camera(channel: str, place: tuple[float, float, float], yaw: float) -> Mount:
    level = matrix(quaternion(np.radians(yaw), pitch=np.radians(3.0)), np.zeros(3)) @ CAMERA_TO_LEVEL.numpy()
    return Mount(channel, place, _quaternion(level[:3, :3]), 0.0, _PINHOLE, _PIXELS)


def _quaternion(rotation: np.ndarray) -> tuple[float, float, float, float]:
    from scipy.spatial.transform import Rotation  # half a second that most imports of this module need not pay

    x, y, z, w = (float(v) for v in Rotation.from_matrix(rotation).as_quat())
    return w, x, y, z


# A truck with a tall cabin; places are plausible, not the real ones.
TRUCK = Rig(
    cameras=(
        _camera("CAMERA_LEFT_FRONT", (1.5, 1.2, 2.6), 35),
        _camera("CAMERA_RIGHT_FRONT", (1.5, -1.2, 2.6), -35),
        _camera("CAMERA_LEFT_BACK", (1.2, 1.3, 2.6), 140),
        _camera("CAMERA_RIGHT_BACK", (1.2, -1.3, 2.6), -140),
    ),
    lidars=(
        Mount("LIDAR_LEFT", (1.4, 1.3, 2.3), flat(0), 0.0),
        Mount("LIDAR_RIGHT", (1.4, -1.3, 2.3), flat(0), 0.012),
        Mount("LIDAR_TOP_FRONT", (1.7, 0.0, 3.4), flat(0), 0.02),
        Mount("LIDAR_TOP_LEFT", (0.4, 1.1, 3.4), flat(90), -0.015),
        Mount("LIDAR_TOP_RIGHT", (0.4, -1.1, 3.4), flat(-90), -0.02),
        Mount("LIDAR_REAR", (-1.5, 0.0, 1.2), flat(180), 0.018),
    ),
    radars=(
        Mount("RADAR_LEFT_FRONT", (2.0, 1.0, 0.8), flat(20), 0.016),
        Mount("RADAR_LEFT_SIDE", (1.0, 1.2, 1.0), flat(90), 0.009),
        Mount("RADAR_LEFT_BACK", (-0.5, 1.2, 1.0), flat(160), -0.011),
        Mount("RADAR_RIGHT_FRONT", (2.0, -1.0, 0.8), flat(-20), 0.021),
        Mount("RADAR_RIGHT_SIDE", (1.0, -1.2, 1.0), flat(-90), -0.017),
        Mount("RADAR_RIGHT_BACK", (-0.5, -1.2, 1.0), flat(-160), 0.004),
    ),
)


def generate_truckscenes(
    out_dir: str | Path, settings: WorldSettings | None = None, workers: int = 1, progress: bool = True
) -> Path:
    """Write the data set that `settings` describe, or what is still missing of it; see `generate`.

    Tables are TruckScenes': no maps or logs, the motion of cabin and chassis (which move as one), global coordinates in
    a UTM zone. `num_radar_pts` counts key-frame returns inside the box. The world has neither animals nor signs.
    """
    return generate(out_dir, settings or WorldSettings(image_size=IMAGE_SIZE), workers, progress, _TruckRecorder)


class _TruckRecorder(Recorder):
    tables = (
        *("scene", "sample", "sample_data", "ego_pose", "instance", "sample_annotation"),
        *("ego_motion_cabin", "ego_motion_chassis", "weather_annotation"),
    )
    layout = {"layout": "TruckScenes"}  # noqa: RUF012

    @classmethod
    def rig_for(cls, settings: WorldSettings) -> Rig:
        """The truck's, whatever the settings' number of cameras."""
        return TRUCK

    def record(self) -> dict[str, list[dict[str, Any]]]:
        self.rows |= {"log": [], "map": []}
        rows = super().record()
        for table in ("ego_pose", "sample_annotation"):
            for row in rows[table]:
                row["translation"][:2] = (np.array(row["translation"][:2]) + _UTM).tolist()
        return {name: rows[name] for name in self.tables}

    def _record_lidar(self) -> list[tuple[float, np.ndarray]]:
        """Scans of all scanners, of which only two see far; hits are the first one's."""
        first: list[tuple[float, np.ndarray]] = []
        for number, mount in enumerate(self.rig.lidars):
            shots = self._shots(mount, self.settings.lidar_sweeps)
            for shot in shots:
                lidar2global = self._sensor2global(shot)
                scan = lidar.cast(self.world, shot.time, lidar2global)
                if number == 0:
                    first.append((shot.time, scan.hits))
                points = lidar.measure(self.world, scan, lidar2global, self.settings.dropout, self.rng["l"])
                if number > 1:
                    points = points[np.linalg.norm(points[:, :3], axis=1) < _SHORT_RANGE]
                self._file(shot, "pcd").write_bytes(self._scan_bytes(points, shot))
                if shot.is_key:
                    xyz = transform(lidar2global, points[:, :3].astype(float))
                    self.lidar_counts[shot.frame] += self._count(xyz, shot.frame, flat=False)
            self._add_data(shots, "pcd", "pcd")
        return first

    def _scan_bytes(self, points: np.ndarray, shot: Shot) -> bytes:
        """Points are as old as their bearing says, although all are seen at once."""
        turn = np.arctan2(points[:, 1], points[:, 0]) / (2 * np.pi)
        table = np.zeros(len(points), [(n, "<f4") for n in ("x", "y", "z", "intensity")] + [("timestamp", "<u8")])
        for name, column in zip(("x", "y", "z", "intensity"), points.T, strict=False):
            table[name] = column
        table["timestamp"] = self._timestamp(shot.time) + np.round(turn * _REVOLUTION * 1e6).astype(np.int64)
        return _pcd(table)

    def _record_radars(self, scans: list[tuple[float, np.ndarray]]) -> None:
        times = np.array([t for t, _ in scans])
        names = ("x", "y", "z", "vrel_x", "vrel_y", "vrel_z", "rcs")
        for mount in self.rig.radars:
            shots = self._shots(mount, self.settings.radar_sweeps)
            for shot in shots:
                poses = np.stack([self.world.ego2global(shot.time + dt) @ mount.sensor2ego for dt in STEPS])
                hits = scans[int(np.abs(times - shot.time).argmin())][1]
                seen = observe_4d(self.world, shot.time, poses, hits, self.settings.radar_noise, self.rng["r"])
                ray = seen.xyz / np.linalg.norm(seen.xyz, axis=1, keepdims=True)
                columns = np.column_stack([seen.xyz, ray * seen.relative[:, None], seen.rcs])
                table = np.zeros(len(columns), [(name, "<f4") for name in names])
                for name, column in zip(names, columns.T, strict=True):
                    table[name] = column
                self._file(shot, "pcd").write_bytes(_pcd(table))
                if shot.is_key:
                    self.radar_counts[shot.frame] += self._count(transform(poses[1], seen.xyz), shot.frame, flat=False)
            self._add_data(shots, "pcd", "pcd")

    def _write_map(self) -> None:
        """There is none."""

    def _describe(self) -> None:
        super()._describe()
        self.rows["weather_annotation"] = [
            {"token": token(self.settings.seed, self.name, "weather"), "temperature": 288.0, "wind_speed": 2.0}
        ]
        self.rows["scene"][0] |= {
            "log_token": "",
            "description": "weather.clear;daytime.noon",
            "weather_annotation_token": self.rows["weather_annotation"][0]["token"],
        }
        for table in ("ego_motion_cabin", "ego_motion_chassis"):
            self.rows[table] = self._motion(table)

    def _motion(self, table: str) -> list[dict[str, Any]]:
        """In the vehicle's frame at 100 Hz, from half a second before the first key frame to as long after the last."""
        rows = []
        for step in range(round((self.settings.duration + 1.0) * 100) + 1):
            time, dt = step / 100 - 0.5, 0.005
            before, now, after = (self.world.ego2global(time + d) for d in (-dt, 0.0, dt))
            velocity = now[:3, :3].T @ (after[:3, 3] - before[:3, 3]) / (2 * dt)
            acceleration = now[:3, :3].T @ (after[:3, 3] - 2 * now[:3, 3] + before[:3, 3]) / dt**2
            change = now[:3, :3].T @ (after[:3, :3] - before[:3, :3]) / (2 * dt)
            angles = [np.arctan2(now[1, 0], now[0, 0]), -np.arcsin(now[2, 0]), np.arctan2(now[2, 1], now[2, 2])]
            rates = [change[1, 0], change[0, 2], change[2, 1]]
            values = [*velocity, *acceleration, *angles, *rates]
            rows.append(
                {
                    "token": token(self.settings.seed, self.name, table, step),
                    "timestamp": self._timestamp(time),
                    **{name: float(value) for name, value in zip(_MOTION, values, strict=True)},
                }
            )
        return rows


def _pcd(table: np.ndarray) -> bytes:
    """A .pcd file in binary of the columns of a structured array."""
    kinds = [table.dtype[name] for name in table.dtype.names]
    header = {
        "VERSION": "0.7",
        "FIELDS": " ".join(table.dtype.names),
        "SIZE": " ".join(str(kind.itemsize) for kind in kinds),
        "TYPE": " ".join(kind.kind.upper() for kind in kinds),
        "COUNT": " ".join("1" for _ in kinds),
        "WIDTH": str(len(table)),
        "HEIGHT": "1",
        "VIEWPOINT": "0 0 0 1 0 0 0",
        "POINTS": str(len(table)),
        "DATA": "binary",
    }
    return "".join(f"{key} {value}\n" for key, value in header.items()).encode() + table.tobytes()
