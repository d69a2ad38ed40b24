"""Depth files: the points of the key-frame scan in each key-frame image, for `LoadDepthFromFiles`."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mmdet3d.datasets.nuscenes.frames import FrameReader
from mmdet3d.datasets.nuscenes.resumable import digest, digest_files, resumable_map
from mmdet3d.datasets.nuscenes.tables import load_tables, version_splits
from mmdet3d.datasets.records import CameraRecord, FrameRecord
from mmdet3d.datasets.transforms.depth import DEPTH_FOLDER
from mmdet3d.datasets.transforms.lidar import read_points
from mmdet3d.io.files import atomic_write
from mmdet3d.shell import number_of
from mmdet3d.structures import project

__all__ = ["create_depth", "project_scan"]

_FRAMES_PER_PIECE = 10
_BORDER = 1.0


def create_depth(
    root: str | Path,
    version: str = "v1.0-trainval",
    out_dir: str | Path | None = None,
    workers: int = 1,
    allow_missing: bool = False,
) -> Path:
    """Write `depth_gt/{image file}.bin` for the key-frame images of the train and val splits.

    Each file holds float32 rows (u, v, depth) in pixels of the image and metres. Files of the same tables that are
    there already are kept, so that an interrupted run continues.

    Args:
        root: folder with `{version}/` and `samples/`.
        version: as for `create_nuscenes`; `v1.0` means `v1.0-trainval`.
        out_dir: where the folder `depth_gt` goes; the data set expects it in `root`.
        workers: processes.
        allow_missing: leave out images and scans whose file is absent.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: tables or (without `allow_missing`) sensor files are missing.
        ValueError: no train or val split, or the folder holds files of another origin.
    """
    root = Path(root)
    version = "v1.0-trainval" if version == "v1.0" else version
    folder = Path(out_dir or root) / DEPTH_FOLDER
    frames, missing = _frames(root, version, allow_missing)
    tables = digest_files(sorted((root / version).glob("*.json")))
    since = _claim(folder, version, tables)

    def write(piece: list[FrameRecord]) -> int:
        return sum(_write_frame(frame, root, folder, since) for frame in piece)

    pieces = {f"{k:06d}": frames[k : k + _FRAMES_PER_PIECE] for k in range(0, len(frames), _FRAMES_PER_PIECE)}
    parts = folder.with_name(f".{folder.name}.{digest([version, tables, missing])}.parts")
    written = sum(resumable_map(write, pieces, parts, workers, f"{folder}, {_FRAMES_PER_PIECE} frames each"))
    images = sum(len(f.cameras) for f in frames)
    absent = f"; {number_of(len(missing), 'file')} missing, e.g. {missing[0]}" if missing else ""
    print(f"{folder}: {number_of(images, 'image')}, {written} written now{absent}")
    return folder


def project_scan(points: np.ndarray, camera: CameraRecord, width: int, height: int) -> np.ndarray:
    """The points that a camera sees, ego motion between scan and image included.

    Args:
        points: (P, >=3), metres in the LiDAR frame of the key frame.
        camera: of the same key frame.
        width, height: of its image.

    Returns:
        (M, 3) float32 u, v in pixels and depth in metres: in front of the camera and more than a pixel inside the
        border.
    """
    lidar2image = camera.intrinsics @ np.linalg.inv(camera.sensor2lidar)[:3]
    matrix = np.vstack([lidar2image, [0.0, 0.0, 0.0, 1.0]])
    pixels, depth = project(torch.from_numpy(points[:, :3].astype(np.float64)), torch.from_numpy(matrix))
    u, v = pixels.unbind(dim=1)
    inside = (u > _BORDER) & (u < width - _BORDER) & (v > _BORDER) & (v < height - _BORDER)
    seen = inside & (depth > 0)
    return torch.stack([u, v, depth], dim=1)[seen].float().numpy()


def _frames(root: Path, version: str, allow_missing: bool) -> tuple[list[FrameRecord], list[str]]:
    """Key frames of the train and val splits that have a scan, and the names of absent files."""
    roles = version_splits(root, version)
    wanted = set(chain.from_iterable(scenes for role in ("train", "val") for scenes in roles.get(role, {}).values()))
    if not wanted:
        raise ValueError(f"version {version} has neither a train nor a val split to write depth files for")
    tables = load_tables(root, version)
    reader = FrameReader(tables, 0, allow_missing, annotated=False, radar=False)
    frames: list[FrameRecord] = []
    missing: set[str] = set()
    for scene in tables.scene:
        if scene["name"] in wanted:
            frames += reader.scene(scene["token"])
            missing |= reader.missing
    return [f for f in frames if f.lidar.path not in missing], sorted(missing)


def _claim(folder: Path, version: str, tables: str) -> int:
    """Note which tables the files come from; return since when that is so, in ns: older files are out of date."""
    note = folder / f".{version}.json"
    if not any(folder.glob(".*.json")) and any(folder.glob("*.bin")):
        raise ValueError(f"{folder} holds depth files of another origin; move them away, or choose another --out-dir")
    content = json.dumps({"tables": tables})
    if not note.is_file() or note.read_text() != content:
        with atomic_write(note) as file:
            file.write(content)
    return note.stat().st_mtime_ns


def _write_frame(frame: FrameRecord, root: Path, folder: Path, since: int) -> int:
    """Number of files written; those that are not older than `since` are kept."""
    targets = {c: folder / f"{Path(camera.path).name}.bin" for c, camera in frame.cameras.items()}
    todo = [c for c, path in targets.items() if not (path.is_file() and path.stat().st_mtime_ns >= since)]
    if not todo:
        return 0
    points = read_points(root / frame.lidar.path)
    for channel in todo:
        camera = frame.cameras[channel]
        with Image.open(root / camera.path) as image:
            width, height = image.size
        with atomic_write(targets[channel], "wb") as file:
            file.write(project_scan(points, camera, width, height).astype("<f4").tobytes())
    return len(todo)
