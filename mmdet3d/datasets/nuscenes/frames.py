"""nuScenes tables to `FrameRecord`s."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mmdet3d.datasets.nuscenes.infos import check_calibration, drop_bad_boxes
from mmdet3d.datasets.nuscenes.published import CAMERAS, RADARS, pose_matrix
from mmdet3d.datasets.nuscenes.tables import CLASS_OF_CATEGORY
from mmdet3d.datasets.records import CameraRecord, FrameRecord, SensorRecord

if TYPE_CHECKING:
    from nuscenes import NuScenes

__all__ = ["FrameReader"]

RADAR_SWEEPS = 10


class FrameReader:
    """Builds `FrameRecord`s of one nuScenes version.

    Args:
        tables: the devkit's tables.
        max_sweeps: LiDAR history per frame.
        allow_missing: leave out sensors and sweeps whose file is absent instead of raising FileNotFoundError.
        annotated: read boxes (false for the test split).
        radar: read radar sweeps.

    Attributes:
        lidar: channel that frames hang on.
        cameras, radars: known channels, in the order of tensors.
        class_of_category: detection classes.
    """

    lidar: ClassVar[str] = "LIDAR_TOP"
    cameras: ClassVar[Sequence[str]] = CAMERAS
    radars: ClassVar[Sequence[str]] = RADARS
    class_of_category: ClassVar[Mapping[str, str]] = CLASS_OF_CATEGORY

    def __init__(
        self, tables: NuScenes, max_sweeps: int, allow_missing: bool, annotated: bool, radar: bool = True
    ) -> None:
        self.tables = tables
        self.max_sweeps = max_sweeps
        self.allow_missing = allow_missing
        self.annotated = annotated
        self.radar = radar
        self.missing: set[str] = set()
        self._pose = functools.lru_cache(maxsize=4096)(self._read_pose)
        # A sweep belongs to the history of about ten frames.
        self._is_file = functools.lru_cache(maxsize=1 << 14)(os.path.isfile)

    def scene(self, scene_token: str) -> list[FrameRecord]:
        """Frames of a scene in time order; `missing` then holds the scene's files that are not there."""
        self.missing = set()
        scene = self.tables.get("scene", scene_token)
        location = self._location(scene)
        return [self._frame(sample, location) for sample in self._samples(scene["first_sample_token"])]

    def _location(self, scene: dict[str, Any]) -> str:
        return self.tables.get("log", scene["log_token"])["location"]

    def _samples(self, token: str) -> Iterator[dict[str, Any]]:
        while token:
            sample = self.tables.get("sample", token)
            yield sample
            token = sample["next"]

    def _frame(self, sample: dict[str, Any], location: str) -> FrameRecord:
        if self.lidar not in sample["data"]:
            others = ", ".join(self._channels(sample, "lidar", ())) or "none"
            raise ValueError(
                f"sample {sample['token']} of {self.tables.version} has no {self.lidar} key frame (LiDARs: {others}), "
                "the channel of sensor.json that frames and the devkit hang on"
            )
        key = self.tables.get("sample_data", sample["data"][self.lidar])
        lidar2ego, ego2global = self._reference(key, sample)
        global2lidar = np.linalg.inv(ego2global @ lidar2ego)
        scan, sweeps = self._scans(key, sample, global2lidar)
        record = FrameRecord(
            token=sample["token"],
            timestamp=sample["timestamp"],
            lidar=scan,
            lidar2ego=lidar2ego,
            ego2global=ego2global,
            sweeps=sweeps,
            cameras=self._cameras(sample, global2lidar),
            radars=self._radars(sample, global2lidar) if self.radar else {},
            scene_token=sample["scene_token"],
            prev_token=sample["prev"],
            next_token=sample["next"],
            location=location,
        )
        if self.annotated:
            self._annotate(record, sample, global2lidar)
        check_calibration(record, f"{self.tables.dataroot}/{self.tables.version}")
        drop_bad_boxes(record)
        return record

    # -- sensors ----------------------------------------------------------------------------------------------------

    def _reference(self, key: dict[str, Any], sample: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """The frame's LiDAR to ego, and ego to global coordinates."""
        return self._sensor_pose(key), self._ego_pose(key)

    def _scans(
        self, key: dict[str, Any], sample: dict[str, Any], global2lidar: np.ndarray
    ) -> tuple[SensorRecord, list[SensorRecord]]:
        """The key-frame scan, and the others."""
        scan = SensorRecord(key["filename"], key["timestamp"], np.eye(4), key["token"])
        return scan, self._history(key, sample, global2lidar, self.max_sweeps + 1)[1:]

    def _cameras(self, sample: dict[str, Any], global2lidar: np.ndarray) -> dict[str, CameraRecord]:
        cameras = {}
        for channel in self._channels(sample, "camera", self.cameras):
            data = self.tables.get("sample_data", sample["data"][channel])
            if self._exists(data, sample):
                camera2ego = self._sensor_pose(data)
                sensor = self.tables.get("calibrated_sensor", data["calibrated_sensor_token"])
                cameras[channel] = CameraRecord(
                    path=data["filename"],
                    timestamp=data["timestamp"],
                    sensor2lidar=global2lidar @ self._ego_pose(data) @ camera2ego,
                    token=data["token"],
                    intrinsics=np.asarray(sensor["camera_intrinsic"], dtype=np.float64),
                    camera2ego=camera2ego,
                    size=_size(data),
                )
        return cameras

    def _radars(self, sample: dict[str, Any], global2lidar: np.ndarray) -> dict[str, list[SensorRecord]]:
        radars = {}
        for channel in self._channels(sample, "radar", self.radars):
            data = self.tables.get("sample_data", sample["data"][channel])
            sweeps = self._history(data, sample, global2lidar, RADAR_SWEEPS)
            if sweeps and sweeps[0].token == data["token"]:
                radars[channel] = sweeps
        return radars

    def _channels(self, sample: dict[str, Any], modality: str, known: Sequence[str]) -> list[str]:
        """The sample's channels of a sort of sensor: nuScenes' in their order, then those of other names by name."""
        others = sorted(sample["data"].keys() - {*known})
        own = [c for c in others if self.tables.get("sample_data", sample["data"][c])["sensor_modality"] == modality]
        return [*(c for c in known if c in sample["data"]), *own]

    def _history(
        self, key: dict[str, Any], sample: dict[str, Any], global2lidar: np.ndarray, length: int
    ) -> list[SensorRecord]:
        """The key frame and up to `length - 1` earlier records of its channel, newest first, that have a file."""
        records = []
        data: dict[str, Any] | None = key
        for _ in range(length):
            if data is None:
                break
            # The key-frame scan stays even without its file: the frame's poses and boxes hang on it.
            if self._exists(data, sample) or data["token"] == sample["data"][self.lidar]:
                matrix = global2lidar @ self._ego_pose(data) @ self._sensor_pose(data)
                records.append(SensorRecord(data["filename"], data["timestamp"], matrix, data["token"]))
            data = self.tables.get("sample_data", data["prev"]) if data["prev"] else None
        return records

    def _exists(self, data: dict[str, Any], sample: dict[str, Any]) -> bool:
        path = os.path.join(self.tables.dataroot, data["filename"])
        if self._is_file(path):
            return True
        if not self.allow_missing:
            raise FileNotFoundError(
                f"{path} (sample {sample['token']}) is missing; complete the data set, or pass --allow-missing to use "
                "what exists"
            )
        self.missing.add(data["filename"])
        return False

    def _sensor_pose(self, data: dict[str, Any]) -> np.ndarray:
        return self._pose("calibrated_sensor", data["calibrated_sensor_token"])

    def _ego_pose(self, data: dict[str, Any]) -> np.ndarray:
        return self._pose("ego_pose", data["ego_pose_token"])

    def _read_pose(self, table: str, token: str) -> np.ndarray:
        entry = self.tables.get(table, token)
        return pose_matrix(entry["translation"], entry["rotation"])

    # -- annotations ------------------------------------------------------------------------------------------------

    def _annotate(self, record: FrameRecord, sample: dict[str, Any], global2lidar: np.ndarray) -> None:
        annotations = [self.tables.get("sample_annotation", token) for token in sample["anns"]]
        record.boxes = np.array([self._box(a, global2lidar) for a in annotations], dtype=np.float64).reshape(-1, 9)
        categories = [a["category_name"] for a in annotations]
        record.names = np.array([self.class_of_category.get(c, c) for c in categories], dtype=str)
        record.num_lidar_pts = np.array([a["num_lidar_pts"] for a in annotations], dtype=np.int64)
        record.num_radar_pts = np.array([a["num_radar_pts"] for a in annotations], dtype=np.int64)

    def _box(self, annotation: dict[str, Any], global2lidar: np.ndarray) -> np.ndarray:
        """(9,) of `Boxes3D`, velocity NaN where unknown."""
        pose = global2lidar @ pose_matrix(annotation["translation"], annotation["rotation"])
        width, length, height = annotation["size"]
        # The scanner is tilted, so a yaw about its z axis only approximates the box; published infos hold this angle.
        yaw = np.arctan2(-pose[0, 1], pose[0, 0])
        velocity = np.append(self.tables.box_velocity(annotation["token"])[:2], 0.0)
        return np.array([*pose[:3, 3], length, width, height, yaw, *(global2lidar[:3, :3] @ velocity)[:2]])


def _size(data: dict[str, Any]) -> tuple[int, int] | None:
    """Width and height of an image; own tables need not say."""
    width, height = data.get("width"), data.get("height")
    return (int(width), int(height)) if width and height else None
