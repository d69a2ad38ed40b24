"""Frames for tests: one made by hand from small files, and the real ones straight from the nuScenes tables."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from pyquaternion import Quaternion

from mmdet3d.datasets.records import CameraRecord, Context, FrameRecord, SensorRecord

CLASSES = ["car", "truck", "construction_vehicle", "bus", "trailer", "barrier", "motorcycle", "bicycle"]
CLASSES += ["pedestrian", "traffic_cone"]
RANGE = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
REAL_TOKEN = "ca9a282c9e77460f8360f564131a8af5"
CAMERAS = ["CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT"]
_TABLES = [
    "sample_data",
    "sample_annotation",
    "calibrated_sensor",
    "ego_pose",
    "sensor",
    "sample",
    "instance",
    "category",
]
_GENERAL = {
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.construction": "construction_vehicle",
    "movable_object.trafficcone": "traffic_cone",
}


def context(record: FrameRecord, root: Path, seed: int = 0, **others: object) -> Context:
    return Context(record, Path(root), np.random.RandomState(seed), classes=tuple(CLASSES), **others)


def pose(rotation: list[float], translation: list[float]) -> np.ndarray:
    matrix = Quaternion(rotation).transformation_matrix
    matrix[:3, 3] = translation
    return matrix


@lru_cache(maxsize=2)
def _tables(root: Path) -> dict[str, dict[str, dict]]:
    tables = {}
    for name in _TABLES:
        rows = json.loads((root / "v1.0-mini" / f"{name}.json").read_text())
        tables[name] = {row["token"]: row for row in rows}
    return tables


@lru_cache(maxsize=4)
def real_frame(root: Path, token: str = REAL_TOKEN) -> FrameRecord:
    """The frame `token` from the JSON tables, written without the project's own info reader."""
    tables = _tables(root)
    files = {}
    for row in tables["sample_data"].values():
        if row["sample_token"] == token and row["is_key_frame"]:
            sensor = tables["calibrated_sensor"][row["calibrated_sensor_token"]]
            files[tables["sensor"][sensor["sensor_token"]]["channel"]] = (row, sensor)

    def sensor2global(row: dict, sensor: dict) -> np.ndarray:
        ego = tables["ego_pose"][row["ego_pose_token"]]
        sensor2ego = pose(sensor["rotation"], sensor["translation"])
        return pose(ego["rotation"], ego["translation"]) @ sensor2ego

    lidar_row, lidar_sensor = files["LIDAR_TOP"]
    global2lidar = np.linalg.inv(sensor2global(lidar_row, lidar_sensor))
    ego = tables["ego_pose"][lidar_row["ego_pose_token"]]

    def geometry(channel: str) -> tuple[str, int, np.ndarray]:
        row, sensor = files[channel]
        return row["filename"], row["timestamp"], global2lidar @ sensor2global(row, sensor)

    cameras = {}
    for channel in CAMERAS:
        sensor = files[channel][1]
        cameras[channel] = CameraRecord(
            *geometry(channel),
            intrinsics=np.array(sensor["camera_intrinsic"]),
            camera2ego=pose(sensor["rotation"], sensor["translation"]),
        )
    rows = [a for a in tables["sample_annotation"].values() if a["sample_token"] == token]
    return FrameRecord(
        token=token,
        timestamp=tables["sample"][token]["timestamp"],
        lidar=SensorRecord(*geometry("LIDAR_TOP")),
        lidar2ego=pose(lidar_sensor["rotation"], lidar_sensor["translation"]),
        ego2global=pose(ego["rotation"], ego["translation"]),
        cameras=cameras,
        radars={c: [SensorRecord(*geometry(c))] for c in files if c.startswith("RADAR")},
        boxes=np.array([_box(row, global2lidar) for row in rows]),
        names=np.array([_name(row, tables) for row in rows]),
        num_lidar_pts=np.array([row["num_lidar_pts"] for row in rows]),
    )


def _box(row: dict, global2lidar: np.ndarray) -> np.ndarray:
    matrix = global2lidar @ pose(row["rotation"], row["translation"])
    width, length, height = row["size"]
    yaw = np.arctan2(matrix[1, 0], matrix[0, 0])
    return np.array([*matrix[:3, 3], length, width, height, yaw, np.nan, np.nan])


def _name(row: dict, tables: dict) -> str:
    category = tables["category"][tables["instance"][row["instance_token"]]["category_token"]]["name"]
    if category in _GENERAL:
        return _GENERAL[category]
    return next((part for part in category.split(".") if part in CLASSES), category)


RADAR_FIELDS = ["x", "y", "z", "dyn_prop", "id", "rcs", "vx", "vy", "vx_comp", "vy_comp", "is_quality_valid"]
RADAR_FIELDS += ["ambig_state", "x_rms", "y_rms", "invalid_state", "pdh0", "vx_rms", "vy_rms"]
RADAR_HEADER = """# .PCD v0.7 - Point Cloud Data file format
VERSION 0.7
FIELDS {fields}
SIZE 4 4 4 1 2 4 4 4 4 4 1 1 1 1 1 1 1 1
TYPE F F F I I F F F F F I I I I I I I I
COUNT 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1
WIDTH {count}
HEIGHT 1
VIEWPOINT 0 0 0 1 0 0 0
POINTS {count}
DATA binary
"""
RADAR_DTYPE = np.dtype(
    [(n, k) for n, k in zip(RADAR_FIELDS, ["<f4"] * 3 + ["i1", "<i2"] + ["<f4"] * 5 + ["i1"] * 8, strict=True)]
)


def write_radar(path: Path, detections: list[dict[str, float]]) -> None:
    """A radar file; fields that a detection does not name are 0."""
    records = np.zeros(len(detections), dtype=RADAR_DTYPE)
    for record, detection in zip(records, detections, strict=True):
        for name, value in detection.items():
            record[name] = value
    path.write_bytes(
        RADAR_HEADER.format(fields=" ".join(RADAR_FIELDS), count=len(records)).encode() + records.tobytes() + b"\n"
    )


def small_frame(root: Path, cameras: int = 2, sweeps: int = 3, seed: int = 7) -> FrameRecord:
    """A frame of small random files below `root`: 60 points, two 160x90 cameras looking along +y and -y, one radar."""
    rng = np.random.RandomState(seed)

    def scan(name: str) -> str:
        points = rng.uniform(-20, 20, (60, 5)).astype("<f4")
        points[:, 2] = rng.uniform(-2, 2, 60)
        points.tofile(root / name)
        return name

    def image(index: int) -> str:
        name = f"camera{index}.png"
        Image.fromarray(rng.randint(0, 256, (90, 160, 3), dtype=np.uint8)).save(root / name)
        return name

    intrinsics = np.array([[120.0, 0, 80], [0, 120, 45], [0, 0, 1]])
    looks = [np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]), np.array([[-1.0, 0, 0], [0, 0, -1], [0, -1, 0]])]
    views = {}
    for i in range(cameras):
        matrix = np.eye(4)
        matrix[:3, :3] = looks[i % 2]
        matrix[:3, 3] = [0.1 * i, 0.2, -0.3]
        views[f"CAM_{i}"] = CameraRecord(image(i), 10**6, matrix, intrinsics=intrinsics)
    write_radar(
        root / "radar.pcd",
        [
            {"x": 8, "y": 1, "rcs": 5, "vx_comp": 2, "vy_comp": 1, "ambig_state": 3, "pdh0": 1},
            {"x": 12, "y": -2, "rcs": 9, "vx_comp": -1, "ambig_state": 3, "dyn_prop": 2},
        ],
    )
    radar2lidar = np.eye(4)
    radar2lidar[:2, :2] = [[0, -1], [1, 0]]
    boxes = np.array(
        [
            [5.0, 6, 0, 4, 2, 1.5, 0.3, 1, 2],
            [-4, 8, 0.5, 0.7, 0.6, 1.8, -2.0, np.nan, np.nan],
            [3, -9, 0, 1, 0.5, 1, 1.0, 0, 0],
        ]
    )
    return FrameRecord(
        token="small",
        timestamp=10**6,
        lidar=SensorRecord(scan("key.bin"), 10**6, np.eye(4)),
        lidar2ego=np.eye(4),
        ego2global=np.eye(4),
        sweeps=[SensorRecord(scan(f"sweep{i}.bin"), 10**6 - 50_000 * (i + 1), np.eye(4)) for i in range(sweeps)],
        cameras=views,
        radars={"RADAR_FRONT": [SensorRecord("radar.pcd", 10**6, radar2lidar)]},
        boxes=boxes,
        names=np.array(["car", "pedestrian", "animal"]),
        num_lidar_pts=np.array([3, 3, 3]),
    )


def published_pipelines() -> tuple[list[dict], list[dict]]:
    """Train and test pipeline of CRKD's student."""
    load = [
        {"type": "LoadMultiViewImageFromFiles"},
        {"type": "LoadPointsFromFile", "load_dim": 5, "use_dim": 5, "reduce_beams": 32},
        {
            "type": "LoadPointsFromMultiSweeps",
            "sweeps_num": 9,
            "load_dim": 5,
            "use_dim": 5,
            "pad_empty_sweeps": True,
            "remove_close": True,
        },
        {"type": "LoadRadarPointsMultiSweeps", "sweeps_num": 6, "compensate_velocity": True, "filtering": "none"},
        {"type": "LoadAnnotations3D"},
    ]
    image = {"type": "ImageAug3D", "final_dim": [256, 704], "bot_pct_lim": [0.0, 0.0]}
    normalize = {"type": "ImageNormalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    train = [
        *load,
        {
            "type": "ObjectPaste",
            "stop_epoch": -1,
            "db_sampler": {"info_path": "absent.pkl", "sample_groups": {"car": 2}},
        },
        image | {"resize_lim": [0.38, 0.55], "rot_lim": [-5.4, 5.4], "rand_flip": True, "is_train": True},
        {
            "type": "GlobalRotScaleTrans",
            "resize_lim": [0.9, 1.1],
            "rot_lim": [-0.78539816, 0.78539816],
            "trans_lim": 0.5,
        },
        {"type": "RandomFlip3D"},
        {"type": "PointsRangeFilter", "point_cloud_range": RANGE},
        {"type": "ObjectRangeFilter", "point_cloud_range": RANGE},
        {"type": "ObjectNameFilter", "classes": CLASSES},
        normalize,
        {"type": "GridMask", "max_epoch": 20, "prob": 0.0},
        {"type": "PointShuffle"},
        {"type": "GTDepth", "keyframe_only": True},
    ]
    test = [
        *load,
        image | {"resize_lim": [0.48, 0.48], "is_train": False},
        {"type": "PointsRangeFilter", "point_cloud_range": RANGE},
        normalize,
        {"type": "GTDepth", "keyframe_only": True},
    ]
    return train, test
