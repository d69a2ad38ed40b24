"""The ground-truth database: every annotated object with its LiDAR points, for `ObjectPaste`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmdet3d.datasets.nuscenes.infos import FORMAT, read_infos
from mmdet3d.datasets.nuscenes.published import wrap_angle
from mmdet3d.datasets.nuscenes.resumable import digest_files, resumable_map
from mmdet3d.datasets.records import Context, FrameRecord
from mmdet3d.io.files import atomic_write
from mmdet3d.io.pickles import dump_pickle, load_pickle
from mmdet3d.shell import command
from mmdet3d.structures import Boxes3D

__all__ = ["DatabaseRecord", "create_database", "read_database"]

_FRAMES_PER_PIECE = 40
_SCANS = [
    {"type": "LoadPointsFromFile", "load_dim": 5, "use_dim": 5},
    {"type": "LoadPointsFromMultiSweeps", "sweeps_num": 10, "load_dim": 5, "use_dim": 5, "remove_close": True},
]


@dataclass
class DatabaseRecord:
    """One object.

    Args:
        name: class, or the full category for classes outside the ten.
        path: its points, (P, 5) float32, relative to the dataset root.
        token: sample it was cut from.
        box: (9,) float32, convention of `Boxes3D`, LiDAR frame of that sample; velocity 0 where unknown.
        origin: (3,) float32; the stored points plus `origin` lie in that LiDAR frame.
        num_points: P.
        difficulty: 0 in nuScenes.
    """

    name: str
    path: str
    token: str
    box: np.ndarray
    origin: np.ndarray
    num_points: int
    difficulty: int = 0


def read_database(path: str | Path) -> dict[str, list[DatabaseRecord]]:
    """Objects by class, of our database file or a published one of CRKD.

    Published boxes are x, y, z (bottom), w, l, h, yaw clockwise from -y; BEVFusion's own files hold the gravity centre
    in the z column and look the same, so they must not be used.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another layout, or an unsafe or damaged file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"ground-truth database {path} does not exist; create it with {command('create-data')} nuscenes, or "
            "take "
            "ObjectPaste out of the pipeline"
        )
    content = load_pickle(path)
    try:
        if content.get("metadata", {}).get("format") == FORMAT:
            return {name: [DatabaseRecord(**r) for r in records] for name, records in content["objects"].items()}
        return {name: [_published(r) for r in records] for name, records in content.items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no ground-truth database of nuScenes ({type(error).__name__}: {error})") from None


def _published(record: Mapping[str, Any]) -> DatabaseRecord:
    x, y, bottom, width, length, height, yaw, *velocity = np.asarray(record["box3d_lidar"], dtype=np.float64)
    heading = wrap_angle(-yaw - np.pi / 2)
    vx, vy = np.nan_to_num(velocity) if velocity else (0.0, 0.0)
    return DatabaseRecord(
        name=str(record["name"]),
        path=str(record["path"]),
        token=str(record["image_idx"]),
        box=np.array([x, y, bottom + height / 2, length, width, height, heading, vx, vy], dtype=np.float32),
        origin=np.array([x, y, bottom], dtype=np.float32),
        num_points=int(record["num_points_in_gt"]),
        difficulty=int(record.get("difficulty", 0)),
    )


def create_database(infos: Path, root: Path, out_dir: Path, tag: str, workers: int) -> Path:
    """Cut every object of the train infos out of its ten latest scans.

    Writes `{tag}_gt_database/{sample}_{class}_{k}.bin` and `{tag}_dbinfos_train.pkl`. Frames whose scan is missing and
    objects without a point are left out.

    Args:
        infos: our train info file.
        root: dataset root.
        out_dir: where the database goes.
        tag: first part of the names.
        workers: processes.
    """
    path = out_dir / f"{tag}_dbinfos_train.pkl"
    metadata = {"format": FORMAT, "infos": digest_files([infos])}
    if path.is_file() and load_pickle(path).get("metadata") == metadata:
        print(f"{path} is up to date")
        return path
    records, _ = read_infos(infos)
    records = sorted((r for r in records if (root / r.lidar.path).is_file()), key=lambda r: r.timestamp)
    pieces = {f"{k:06d}": records[k : k + _FRAMES_PER_PIECE] for k in range(0, len(records), _FRAMES_PER_PIECE)}
    folder = out_dir / f"{tag}_gt_database"
    folder.mkdir(parents=True, exist_ok=True)

    def cut(frames: list[FrameRecord]) -> list[dict[str, Any]]:
        return [asdict(o) for frame in frames for o in cut_objects(frame, root, folder)]

    parts = out_dir / f".{path.stem}.{metadata['infos']}.parts"
    objects: dict[str, list[dict[str, Any]]] = {}
    for piece in resumable_map(cut, pieces, parts, workers, f"{path.name}, {_FRAMES_PER_PIECE} frames each"):
        for record in piece:
            objects.setdefault(record["name"], []).append(record)
    dump_pickle({"metadata": metadata, "objects": objects}, path)
    print(f"{path}: " + (", ".join(f"{len(v)} {k}" for k, v in objects.items()) or "no object to paste"))
    return path


def cut_objects(frame: FrameRecord, root: Path, folder: Path) -> list[DatabaseRecord]:
    """Write the points of each object of `frame` into `folder` and describe them."""
    from mmdet3d.datasets.transforms.compose import Compose

    if frame.boxes is None or not len(frame.boxes):
        return []
    context = Context(frame, root, np.random.RandomState(0), training=False)
    sample = Compose(_SCANS).load(context)
    assert sample is not None and sample.points is not None, "a loader drops no sample"
    assert frame.names is not None and frame.num_lidar_pts is not None and frame.num_radar_pts is not None
    points = sample.points
    seen = np.flatnonzero(frame.num_lidar_pts + frame.num_radar_pts > 0)
    found = []
    for k in seen:
        box = np.nan_to_num(frame.boxes[k]).astype(np.float32)
        inside = points_in_box(points, torch.from_numpy(box)).numpy()
        if len(inside):
            inside[:, :3] -= box[:3]
            name = str(frame.names[k])
            file = folder / f"{frame.token}_{name.replace('/', '-')}_{k}.bin"  # a class of an own data set
            with atomic_write(file, "wb") as handle:
                handle.write(inside.astype("<f4").tobytes())
            relative = f"{folder.name}/{file.name}"
            found.append(DatabaseRecord(name, relative, frame.token, box, box[:3].copy(), len(inside)))
    return found


def points_in_box(points: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """The rows of `points` (P, >=3) strictly inside `box` (9,)."""
    near = ((points[:, :3] - box[:3]).abs() <= box[3:6].norm() / 2).all(dim=1)
    candidates = points[near]
    return candidates[Boxes3D(box[None]).contains(candidates)[0]]
