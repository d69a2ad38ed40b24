"""Info layouts of other programs, turned into `FrameRecord`s."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from mmdet3d.datasets.records import CameraRecord, FrameRecord, SensorRecord

__all__ = ["CAMERAS", "RADARS", "pose_matrix", "records_of_data_list", "records_of_infos", "relative_path"]

# The order is the camera index of every tensor.
CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
RADARS = ("RADAR_FRONT", "RADAR_FRONT_LEFT", "RADAR_FRONT_RIGHT", "RADAR_BACK_LEFT", "RADAR_BACK_RIGHT")

# Longer than wide without exception, so their size columns tell the convention.
_ELONGATED = ("car", "truck", "bus", "bicycle", "motorcycle")


def pose_matrix(translation: Sequence[float], quaternion: Sequence[float]) -> np.ndarray:
    """(4, 4) float64 of a translation (metres) and a quaternion (w, x, y, z), which is normalised; NaN stays NaN."""
    from scipy.spatial.transform import Rotation  # half a second that most imports of this module need not pay

    matrix = np.eye(4)
    w, x, y, z = (float(v) for v in quaternion)
    finite = np.isfinite([w, x, y, z]).all()
    matrix[:3, :3] = Rotation.from_quat([x, y, z, w]).as_matrix() if finite else np.nan
    matrix[:3, 3] = translation
    return matrix


def relative_path(path: str, channel: str = "") -> str:
    """`/any/prefix/samples/LIDAR_TOP/a.bin` to `samples/LIDAR_TOP/a.bin`; a bare file name is one of `channel`."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    for k in range(len(parts) - 1, -1, -1):
        if parts[k] in ("samples", "sweeps"):
            return "/".join(parts[k:])
    if len(parts) == 1 and channel:
        return f"samples/{channel}/{parts[0]}"
    return path


# -- `infos` with sensor2lidar_rotation: mmdetection3d before v1.0, BEVFusion, CRKD ---------------------------------


def records_of_infos(infos: Sequence[Mapping[str, Any]]) -> list[FrameRecord]:
    """Frames of the `infos` list; the box convention is found from the sizes of elongated classes."""
    old = _is_old_convention(infos)
    records = [_record_of_info(i, old) for i in infos]
    _complete_order(records)
    return records


def _complete_order(records: Sequence[FrameRecord]) -> None:
    """Fill in `next_token` where the file tells the frame before each frame only, as CRKD's do."""
    if all(r.prev_token is None for r in records):
        return
    following = {r.prev_token: r.token for r in records if r.prev_token}
    for record in records:
        record.prev_token = record.prev_token or ""
        if record.next_token is None:
            record.next_token = following.get(record.token, "")


def _is_old_convention(infos: Iterable[Mapping[str, Any]]) -> bool:
    """True where the sizes are width, length, height (the fourth column is below the fifth for cars)."""
    found = [i["gt_boxes"][np.isin(i["gt_names"], _ELONGATED), 3:5] for i in infos if len(i.get("gt_boxes", ()))]
    sizes = np.concatenate(found) if found else np.zeros((0, 2))
    sizes = sizes[(sizes > 0).all(axis=1)]
    if len(sizes):
        return bool(np.median(np.log(sizes[:, 1] / sizes[:, 0])) > 0)
    if any(len(i.get("gt_boxes", ())) for i in infos):
        warnings.warn(
            "the info file has no car, truck, bus or two-wheeler to tell its box convention; that of BEVFusion and "
            "CRKD (width, length, height) is assumed",
            stacklevel=3,
        )
    return True


def _record_of_info(info: Mapping[str, Any], old: bool) -> FrameRecord:
    cams = info.get("cams", {})
    cameras = {c: _camera(cams[c]) for c in (*CAMERAS, *(c for c in cams if c not in CAMERAS)) if c in cams}
    boxes, names = _boxes(info, old)
    return FrameRecord(
        token=info["token"],
        timestamp=int(info["timestamp"]),
        lidar=SensorRecord(relative_path(info["lidar_path"], "LIDAR_TOP"), int(info["timestamp"]), np.eye(4)),
        lidar2ego=pose_matrix(info["lidar2ego_translation"], info["lidar2ego_rotation"]),
        ego2global=pose_matrix(info["ego2global_translation"], info["ego2global_rotation"]),
        sweeps=[_sensor(s) for s in info.get("sweeps", ())],
        cameras=cameras,
        radars={c: _without_repeats([_sensor(s) for s in sweeps]) for c, sweeps in info.get("radars", {}).items()},
        boxes=boxes,
        names=names,
        num_lidar_pts=_counts(info.get("num_lidar_pts")),
        num_radar_pts=_counts(info.get("num_radar_pts")),
        scene_token=info.get("scene_token", ""),
        prev_token=info.get("prev_token", info.get("prev")),
        next_token=info.get("next_token", info.get("next")),
        location=info.get("location") or "",
    )


def _boxes(info: Mapping[str, Any], old: bool) -> tuple[np.ndarray | None, np.ndarray | None]:
    if "gt_boxes" not in info:
        return None, None
    given = np.asarray(info["gt_boxes"], dtype=np.float64).reshape(-1, 7)
    velocity = np.asarray(info.get("gt_velocity", np.full((len(given), 2), np.nan)), dtype=np.float64).reshape(-1, 2)
    boxes = np.concatenate([given, velocity], axis=1)
    if old:
        boxes[:, [3, 4]] = boxes[:, [4, 3]]
        boxes[:, 6] = -boxes[:, 6] - np.pi / 2
    boxes[:, 6] = wrap_angle(boxes[:, 6])
    return boxes, np.asarray(info["gt_names"]).astype(str).reshape(-1)


def _sensor(entry: Mapping[str, Any]) -> SensorRecord:
    return SensorRecord(**_sensor_fields(entry))


def _camera(entry: Mapping[str, Any]) -> CameraRecord:
    intrinsics = entry["camera_intrinsics"] if "camera_intrinsics" in entry else entry["cam_intrinsic"]
    return CameraRecord(
        **_sensor_fields(entry),
        intrinsics=np.asarray(intrinsics, dtype=np.float64)[:3, :3],
        camera2ego=pose_matrix(entry["sensor2ego_translation"], entry["sensor2ego_rotation"]),
    )


def _sensor_fields(entry: Mapping[str, Any]) -> dict[str, Any]:
    matrix = np.eye(4)
    matrix[:3, :3] = entry["sensor2lidar_rotation"]
    matrix[:3, 3] = entry["sensor2lidar_translation"]
    channel = "LIDAR_TOP" if entry.get("type") == "lidar" else entry.get("type", "")
    return {
        "path": relative_path(entry["data_path"], channel),
        "timestamp": int(entry["timestamp"]),
        "sensor2lidar": matrix,
        "token": entry.get("sample_data_token", ""),
    }


def _without_repeats(sweeps: list[SensorRecord]) -> list[SensorRecord]:
    """Files padded to a fixed length repeat the earliest sweep; its points must not count several times."""
    return [s for k, s in enumerate(sweeps) if k == 0 or s.path != sweeps[k - 1].path]


# -- `data_list`: mmdetection3d 1.x ---------------------------------------------------------------------------------


def records_of_data_list(entries: Sequence[Mapping[str, Any]], metadata: Mapping[str, Any]) -> list[FrameRecord]:
    """Frames of a `data_list`; its boxes are x, y, z (gravity centre), l, w, h, yaw, and times are seconds."""
    names = {int(label): name for name, label in metadata.get("categories", {}).items() if label >= 0}
    # Writers leave out the key of a frame without objects, so it only means "not annotated" where no frame has it.
    annotated = any("instances" in e for e in entries)
    return [_record_of_entry(e, names, annotated) for e in entries]


def _record_of_entry(entry: Mapping[str, Any], names: Mapping[int, str], annotated: bool) -> FrameRecord:
    points = entry["lidar_points"]
    timestamp = _microseconds(entry["timestamp"])
    lidar2ego = _matrix(points["lidar2ego"])
    images = entry.get("images", {})
    channels = [c for c in (*CAMERAS, *sorted(images.keys() - {*CAMERAS})) if images.get(c, {}).get("img_path")]
    return FrameRecord(
        token=entry["token"],
        timestamp=timestamp,
        lidar=SensorRecord(relative_path(points["lidar_path"], "LIDAR_TOP"), timestamp, np.eye(4)),
        lidar2ego=lidar2ego,
        ego2global=_matrix(entry["ego2global"]),
        sweeps=[_sweep_of_entry(s) for s in entry.get("lidar_sweeps", ())],
        cameras={c: _camera_of_entry(images[c], c) for c in channels},
        **(_annotations(entry.get("instances", ()), names) if annotated else {}),
    )


def _sweep_of_entry(sweep: Mapping[str, Any]) -> SensorRecord:
    points = sweep["lidar_points"]
    return SensorRecord(
        path=relative_path(points["lidar_path"], "LIDAR_TOP"),
        timestamp=_microseconds(sweep["timestamp"]),
        sensor2lidar=_inverse(_matrix(points["lidar2sensor"])),
        token=sweep.get("sample_data_token", ""),
    )


def _camera_of_entry(image: Mapping[str, Any], channel: str) -> CameraRecord:
    return CameraRecord(
        path=relative_path(image["img_path"], channel),
        timestamp=_microseconds(image["timestamp"]),
        sensor2lidar=_inverse(_matrix(image["lidar2cam"])),
        token=image.get("sample_data_token", ""),
        intrinsics=np.asarray(image["cam2img"], dtype=np.float64)[:3, :3],
        camera2ego=_matrix(image["cam2ego"]),
    )


def _annotations(instances: Sequence[Mapping[str, Any]], names: Mapping[int, str]) -> dict[str, np.ndarray]:
    rows = [[*i["bbox_3d"][:7], *i.get("velocity", (np.nan, np.nan))] for i in instances]
    boxes = np.asarray(rows, dtype=np.float64).reshape(-1, 9)
    boxes[:, 6] = wrap_angle(boxes[:, 6])
    return {
        "boxes": boxes,
        "names": np.array([names.get(int(i["bbox_label_3d"]), "other") for i in instances], dtype=str),
        "num_lidar_pts": np.array([i["num_lidar_pts"] for i in instances], dtype=np.int64),
        "num_radar_pts": np.array([i.get("num_radar_pts", 0) for i in instances], dtype=np.int64),
    }


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6) if seconds < 1e12 else int(seconds)


def _matrix(rows: Any) -> np.ndarray:
    return np.asarray(rows, dtype=np.float64).reshape(4, 4)


def _inverse(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.inv(matrix) if np.isfinite(matrix).all() else matrix


def _counts(values: Any) -> np.ndarray | None:
    return None if values is None else np.asarray(values).astype(np.int64).reshape(-1)


def wrap_angle(angle: np.ndarray) -> np.ndarray:
    """Radians into [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi
